"""Files that are either whole or not there."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
"""End of the names of files that are being written; those of a killed process stay behind."""


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Writes a file beside its place and moves it there once it is complete.

    Args:
        path: Where the file shall be; its folder is made.
        write: Called with the path to write to.
        durable: Whether to wait until the contents are on the disk, so that the file is whole even after a
            power failure.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "folder", "file.txt")
        >>> write_atomically(path, lambda partial: partial.write_text("whole"))
        >>> path.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        write(partial)
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _sync_folder(path.parent)
    except Exception as error:
        # Torch says neither which file it is, nor that the disk is full.
        error.add_note(f"This happened while {path} was written; is there room left on the disk?")
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_sums(path: Path) -> None:
    """Raises zipfile.BadZipFile unless a file of `torch.save` is whole, to the bit.

    `torch.load` does not look at the checksums that `torch.save` writes.

    Args:
        path: The file; it is read once.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of its part {damaged} is wrong")


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot
        return
    finally:
        os.close(descriptor)
