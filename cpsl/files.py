"""Files that are either whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path


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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        # Torch says neither which file it is, nor that the disk is full.
        error.add_note(f"This happened while {path} was written; is there room left on the disk?")
        raise
    finally:
        partial.unlink(missing_ok=True)
