"""Readers who leave, full disks and encodings: nothing is lost, nothing looks like a fault of the program."""

import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tiny import COMMAND, ENVIRONMENT
from cpsl._internal.output import patient

posix = pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")


@posix
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_reader_who_leaves_is_no_error(parts: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe:
        stream = patient(pipe)
        for part in parts:
            print(part, file=stream, flush=True)


@posix
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_what_an_encoding_lacks_is_written_as_escapes(text: str) -> None:
    read, write = os.pipe()
    with open(read, "rb") as other, open(write, "w", encoding="ascii", newline="\n") as pipe:
        stream = patient(pipe)
        stream.write(text)
        stream.flush()
        pipe.close()
        assert other.read().decode("ascii") == text.encode("ascii", "backslashreplace").decode()


@posix
def test_a_full_disk_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full, pytest.raises(OSError, match="space"):
        print("text", file=patient(full), flush=True)


@posix
@pytest.mark.parametrize("words", [["recipes"], ["adapt", "--help-all"], ["--help"]])
@pytest.mark.parametrize("output", ["closed", "full"])
def test_a_list_ends_without_a_traceback(words: list[str], output: str) -> None:
    if output == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    read, write = os.pipe() if output == "closed" else (None, os.open("/dev/full", os.O_WRONLY))
    if read is not None:
        os.close(read)
    ended = subprocess.run(
        [*COMMAND, *words], stdout=write, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
    )
    os.close(write)
    assert ended.returncode == (0 if output == "closed" else 1)
    assert "Traceback" not in ended.stderr
    assert ("disk is full" in ended.stderr) == (output == "full")


def test_a_stream_without_a_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpsl._internal.output import be_patient

    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    be_patient()
    print("text")
    assert stream.getvalue() == "text\n"
