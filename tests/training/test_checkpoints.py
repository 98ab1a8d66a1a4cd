import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl._internal.files import write_atomically
from cpsl.training import load, save
from cpsl.training.checkpoints import (
    exclusive_run,
    load_checkpoint,
    remove_partial_files,
    save_checkpoint,
    write_text,
)


def test_a_failing_writer_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_text(path, "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as error:
        write_atomically(path, fail)
    assert any(str(path) in note for note in error.value.__notes__)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("free", "kind"), [(0, OSError), (10**9, RuntimeError)])
def test_a_full_disk_is_named_though_torch_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type[Exception]
) -> None:
    def fail(partial: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 0")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(kind) as error:
        write_atomically(tmp_path / "file", fail)
    if kind is OSError:
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_tensors_are_loaded_and_code_does_not_run(tmp_path: Path) -> None:
    save(tmp_path / "good.pt", {"a": torch.arange(3), "b": [1, "two"]})
    assert load(tmp_path / "good.pt")["b"] == [1, "two"]
    Hostile.path = tmp_path / "owned"
    torch.save({"a": Hostile()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=re.escape("evil.pt")) as refused:
        load(tmp_path / "evil.pt")
    assert "weights_only" not in str(refused.value)  # torch recommends to switch it off
    assert not Hostile.path.exists()


@pytest.mark.parametrize("content", [b"", b"text"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape("damaged.pt")):
        load(tmp_path / "damaged.pt")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_detected(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    path = tmp_path_factory.mktemp("flipped") / "checkpoint.pt"
    save(path, {"iteration": 3, "weights": {"w": torch.arange(300.0), "b": torch.ones(7)}})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        state = load(path)
    except ValueError:
        return
    # A bit without meaning, such as one of the padding.
    assert state["iteration"] == 3
    assert torch.equal(state["weights"]["w"], torch.arange(300.0))
    assert torch.equal(state["weights"]["b"], torch.ones(7))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Training would begin again, and overwrite hours of work."""
    path = tmp_path / "checkpoint.pt"
    for step in range(2):
        save_checkpoint(path, {"step": step})

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(type(error)) as raised:
            load_checkpoint(path)
    assert any(str(path) in note for note in raised.value.__notes__)
    assert load_checkpoint(path) == {"step": 1}


@pytest.mark.parametrize("before", [True, False])
def test_what_follows_a_damaged_checkpoint_is_said(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in range(1 + before):
        save_checkpoint(path, {"step": step})
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="the checkpoint before" if before else "begins again"):
        assert load_checkpoint(path) == ({"step": 0} if before else None)


def test_a_folder_accepts_one_run_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cpsl.training.checkpoints import exclusive_run\n"
        "with exclusive_run(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(BlockingIOError, match=re.escape(str(tmp_path))), exclusive_run(tmp_path):
            pass
        first.kill()
    with exclusive_run(tmp_path):  # the lock ends with its process
        pass


def test_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "stage" / "kept.txt", "whole")
    (tmp_path / "stage" / ".model.pt.123.partial").write_text("half")
    remove_partial_files(tmp_path)
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["kept.txt"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        load(tmp_path / "missing.pt")


def test_folders_and_other_contents_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list"):
        load(tmp_path / "list.pt")


@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_system_need_not_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Windows does not open folders, and some file systems do not sync them."""
    call = getattr(os, refused)

    def refuse(target: Any, *args: Any) -> Any:
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "refused")
        return call(target, *args)

    monkeypatch.setattr(os, refused, refuse)
    write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").read_text() == "text"


def test_files_are_synced_through_a_writable_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to sync others."""
    synced = []

    def sync(descriptor: int) -> None:
        if not os.path.isdir(descriptor):
            os.write(descriptor, b"")  # fails if it is open for reading alone
            synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "file.txt", "text")
    assert len(synced) == 1


ON_WINDOWS = """
import sys, types
from pathlib import Path
from typing import Any
import torch, tqdm.contrib.logging, torch.utils.tensorboard, torchvision
import cpsl._internal.files, cpsl._internal.distributed
sys.platform = "win32"
sys.modules["fcntl"] = sys.modules["resource"] = None
locked = set()

def locking(descriptor, mode, size):
    if "x" in locked:
        raise PermissionError(13, "locked")
    locked.add("x")

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
import cpsl.training
from cpsl.training import cost
from cpsl.training.checkpoints import exclusive_run

cost._STATUS = cost._CLEAR = Path("absent")
cost.reset_peak_memory(torch.device("cpu"))
assert cost.peak_memory(torch.device("cpu")) == 0
folder = Path(sys.argv[1])
with exclusive_run(folder):
    try:
        with exclusive_run(folder):
            raise AssertionError("not locked")
    except BlockingIOError as error:
        assert str(folder) in str(error)
"""


def test_windows_needs_no_module_of_unix(tmp_path: Path) -> None:
    """Neither fcntl nor resource; the folder of a run is locked by msvcrt."""
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_system_without_locks_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("cpsl.training.checkpoints._lock", refuse)
    with exclusive_run(tmp_path):
        pass
