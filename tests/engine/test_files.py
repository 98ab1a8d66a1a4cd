import os
import re
from pathlib import Path

import pytest
import torch

from cpsl.engine import load, save, write_text
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


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.pt"):
        load(tmp_path / "missing.pt")
