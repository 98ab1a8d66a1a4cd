"""Text, tensors and checkpoints as files that are either whole or not there."""

import fcntl
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cpsl.files import PARTIAL_SUFFIX, check_sums, write_atomically


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"), durable=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values atomically, in torch's format."""
    write_atomically(path, lambda partial: torch.save(state, partial), durable=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Loads what `save` wrote, without running code from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds more than tensors and plain values.
    """
    try:
        check_sums(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {path}: what writes it has to run first"
        ) from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read: it is damaged or no file of this project ({error}). "
            "Delete it to start this part again."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves a checkpoint and keeps the one before it as `<name>.previous`."""
    if path.exists():
        path.replace(_previous(path))
    save(path, state)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Loads the newest checkpoint that is whole.

    Returns:
        Its state, or None where there is none.
    """
    for candidate in (path, _previous(path)):
        try:
            return load(candidate, device)
        except FileNotFoundError:
            continue
        except ValueError as error:
            warnings.warn(f"{error} The checkpoint before it is used.", stacklevel=2)
    return None


def remove_partial_files(folder: Path) -> None:
    """Removes what processes left that were killed while they wrote; nobody may be writing there."""
    for partial in folder.rglob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder for a while; a process that dies lets them in.

    Raises:
        BlockingIOError: Another process is at work in this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            # Unlike flock's, this lock is not shared with the workers of a data loader, which outlive a
            # killed process by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BlockingIOError(
                f"another process is at work in {folder}: wait for it, or choose another --output"
            ) from None
        except OSError:  # some network file systems have no locks
            logging.getLogger("cpsl").debug("no locks in %s", folder)
        yield


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")
