"""Text, tensors and checkpoints as files that are either complete or absent."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from cpsl._internal.files import PARTIAL_SUFFIX, read_tensors, write_atomically

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"), durable=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values atomically, in the format of `torch.save`."""
    write_atomically(path, lambda partial: torch.save(state, partial), durable=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Loads the result of `save`, without running code from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds other objects than tensors and plain values.
    """
    try:
        return read_tensors(path, device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: first run what writes it") from None
    except ValueError as error:
        error.add_note("Delete the file to create it again.")
        raise


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves a checkpoint and keeps the one before it as `<name>.previous`."""
    if path.exists():
        path.replace(_previous(path))
    save(path, state)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Loads the newest undamaged checkpoint, or returns None if there is none.

    Raises:
        MemoryError, torch.OutOfMemoryError, OSError: One may be intact, but could not be read now.
    """
    for candidate in (path, _previous(path)):
        try:
            return read_tensors(candidate, device)
        except FileNotFoundError:
            continue
        except ValueError as error:
            before = candidate == path and _previous(path).exists()
            used = "the checkpoint before it is used" if before else "training begins again"
            warnings.warn(f"{error}; {used}", stacklevel=2)
    return None


def remove_partial_files(folder: Path) -> None:
    """Removes files that killed processes left incomplete; no process may be writing in this folder."""
    for partial in folder.rglob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


@contextmanager
def exclusive_run(folder: Path) -> Iterator[None]:
    """Locks a folder against other runs; the system releases the lock when the process ends.

    Raises:
        BlockingIOError: Another process has locked the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise BlockingIOError(
                f"another process is running in {folder}: wait for it, or choose another --output"
            ) from None
        except OSError:  # some network file systems have no locks
            logging.getLogger("cpsl").debug("no locks in %s", folder)
        yield


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        # Unlike flock, lockf does not share the lock with the workers of a data loader, which outlive a
        # killed process by some seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")
