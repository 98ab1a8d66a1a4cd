"""Files that are either complete or absent, and the reading of tensors."""

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from cpsl._internal.file_kinds import describe_file

PARTIAL_SUFFIX = ".partial"
"""Suffix of files that are being written; a killed process leaves them behind."""

FULL = 1_000_000
"""Bytes of free space below which a disk is full."""


def _scalars_and_arrays() -> list[Any]:
    safe: list[Any] = [np.dtype, np.ndarray]
    safe += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")]
    for example, name in ((np.float64(0), "scalar"), (np.zeros(0), "_reconstruct")):
        constructor: Any = example.__reduce__()[0]
        safe += [(constructor, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    return safe


SCALARS_AND_ARRAYS = _scalars_and_arrays()
"""What builds numbers and arrays of NumPy, which run no code, by their names in NumPy 1 and 2."""


def in_full(path: Path) -> str:
    """Returns a path as it is given, with the absolute one if it is relative.

    Example:
        >>> in_full(Path("a")) == f"a ({os.getcwd()}/a)", in_full(Path("/a"))
        (True, '/a')
    """
    return str(path) if path.is_absolute() else f"{path} ({os.path.abspath(path)})"


def without_number(error: BaseException) -> str:
    """Returns the text of an error without the number that the operating system has for it.

    Example:
        >>> without_number(PermissionError(13, "Permission denied", "a.png"))
        "Permission denied: 'a.png'"
    """
    return re.sub(r"\[Errno -?\d+\] ", "", str(error))


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Calls `write` with a temporary path, and renames the file once it is complete.

    If `durable`, the file is on the disk afterwards, so that it survives a power failure.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "folder", "file.txt")
        >>> write_atomically(path, lambda partial: partial.write_text("complete"))
        >>> path.read_text()
        'complete'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        write(partial)
        if durable:
            with partial.open("r+b") as file:  # Windows syncs no file that is open for reading alone
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _sync_folder(path.parent)
    except Exception as error:
        free = shutil.disk_usage(path.parent).free
        if isinstance(error, RuntimeError) and free < FULL:  # torch names neither the file nor a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        error.add_note(f"This happened while writing {path}, with {free / 1e9:.1f} GB of disk space free.")
        raise
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a dictionary that `torch.save` wrote, without running code from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds other objects than tensors and plain values, or no dictionary.
    """
    content = load_safely(path, device, checksums=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def load_safely(path: Path, device: torch.device | str = "cpu", *, checksums: bool = False) -> Any:
    """Reads what any version of torch has written, without running code from the file.

    Args:
        path: The file.
        device: Device of the tensors.
        checksums: Whether to verify the checksums, which files of torch before 1.6 lack.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds other objects than tensors and plain values.
        MemoryError, torch.OutOfMemoryError, OSError: It may be intact, but could not be read now.
    """
    try:
        if checksums:
            check_sums(path)
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {in_full(path)}") from None
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: you have no permission to read it") from None
    except Exception as error:  # torch raises errors of many types
        if is_passing(error):
            error.add_note(f"This happened while reading {path}.")
            raise
        raise ValueError(f"{path} cannot be read: {_reason(path, error)}") from error


def is_passing(error: Exception) -> bool:
    """Returns whether an error tells nothing about the file: memory is full, or a disk failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    passing = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
    # torch has no type for full main memory.
    return getattr(error, "errno", None) in passing or "DefaultCPUAllocator" in str(error)


def _reason(path: Path, error: Exception) -> str:
    """Returns why torch cannot load a file."""
    if reason := describe_file(path):
        return reason
    # Some texts recommend to load the file with weights_only=False, which runs code of the file.
    if not isinstance(error, UnpicklingError) and "weights_only" not in str(error):
        return f"it is damaged or no file of torch ({error})"
    name = re.search(r"GLOBAL (?P<name>[\w.]+)", str(error))
    if name is None:
        return "it is damaged, no file of torch, or holds other objects than tensors and plain values"
    return f"it holds a {name['name']}: save the state_dict() of a network, without other objects"


def check_sums(path: Path) -> None:
    """Raises BadZipFile unless a file has the checksums that `torch.save` writes and `torch.load` ignores."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of its part {damaged} is wrong")


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system supports this."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)  # refused by Windows
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # refused by some file systems
        return
    finally:
        os.close(descriptor)
