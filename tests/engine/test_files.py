import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.engine import load, only_run_in, remove_partial_files, save, write_text
from cpsl.files import write_atomically


def test_a_failing_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_text(path, "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_tensors_come_back_and_code_does_not_run(tmp_path: Path) -> None:
    save(tmp_path / "good.pt", {"a": torch.arange(3), "b": [1, "two"]})
    assert load(tmp_path / "good.pt")["b"] == [1, "two"]
    Hostile.path = tmp_path / "owned"
    torch.save({"a": Hostile()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=re.escape("evil.pt")):
        load(tmp_path / "evil.pt")
    assert not Hostile.path.exists()


@pytest.mark.parametrize("content", [b"", b"text"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape("damaged.pt")):
        load(tmp_path / "damaged.pt")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "checkpoint.pt"
    save(path, {"iteration": 3, "weights": {"w": torch.arange(300.0), "b": torch.ones(7)}})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        state = load(path)
    except ValueError:
        return
    # A bit that means nothing, such as one of the padding.
    assert state["iteration"] == 3
    assert torch.equal(state["weights"]["w"], torch.arange(300.0))
    assert torch.equal(state["weights"]["b"], torch.ones(7))


def test_a_folder_lets_one_run_in(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cpsl.engine import only_run_in\n"
        "with only_run_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as first:
        assert first.stdout.readline() == "in\n"
        with (
            pytest.raises(BlockingIOError, match="another process is at work"),
            only_run_in(tmp_path),
        ):
            pass
        first.kill()
    with only_run_in(tmp_path):  # a killed process lets others in
        pass


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "stage" / "kept.txt", "whole")
    (tmp_path / "stage" / ".model.pt.123.partial").write_text("half")
    remove_partial_files(tmp_path)
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["kept.txt"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.pt"):
        load(tmp_path / "missing.pt")
