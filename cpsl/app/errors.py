"""Errors that the commands report without a traceback."""

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpsl.training.log import log_to_file

_PERMISSION = "you have no permission for it; change the permissions, or choose another folder"
_REMEDIES = {
    "ENOSPC": "the disk is full; free space, then run the same command again",
    "EDQUOT": "your disk quota is used up; free space, then run the same command again",
    "EACCES": _PERMISSION,
    "EPERM": _PERMISSION,
    "EROFS": "the disk is read-only; choose another folder",
    "ENOENT": "it does not exist, or the folder for it cannot be created",
    "ENOTDIR": "a part of this path is a file, not a folder; choose another path",
    "EISDIR": "it is a folder, where a file is expected",
    "EEXIST": "it exists, but is not a folder; choose another path",
    "ENAMETOOLONG": "the name is too long; choose a shorter one",
    "EMFILE": "too many files are open; use fewer --workers, or raise the limit with ulimit -n",
    "EIO": "the disk or network drive reports an error; try again, or use another disk",
    "ESTALE": "the network drive has changed; try again, or use another disk",
}

_KINDS = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, ImportError)


@contextmanager
def friendly_errors(debug: bool = False) -> Iterator[None]:
    """Ends the program with a short message for errors of data, files, settings, numbers and imports."""
    try:
        yield
    except _KINDS as error:
        if debug:
            raise
        message, notes = describe_error(error), getattr(error, "__notes__", [])
        if "in DataLoader worker" in message:  # torch puts the worker's traceback before its error
            message = _of_system(message.rpartition(f"\n{type(error).__name__}: ")[2].strip())
        elif "DataLoader worker" in message:  # it was killed, most often for lack of memory
            notes = [*notes, "Fewer --workers need less memory; --workers 0 shows the error itself."]
        text = "\n".join([f"error: {message}", *notes])
        log_to_file(text)
        raise SystemExit(f"{text}\n--debug shows the traceback") from None


def _of_system(text: str) -> str:
    """Returns the text of an error, with the remedy if it is the text of one of the operating system."""
    found = re.match(r"\[Errno (\d+)\] ([^:\n]*)(?:: (['\"])(.*)\3)?", text)
    if found is None:
        return text
    return describe_error(OSError(int(found[1]), found[2], found[4])) + text[found.end() :]


def describe_error(error: BaseException) -> str:
    """Returns the text of an error; for one of the system, the file, the reason and what to do.

    Example:
        >>> describe_error(PermissionError(13, os.strerror(13), "runs/a"))[:45]
        'runs/a: you have no permission for it; change'
    """
    if not (isinstance(error, OSError) and error.errno):
        return str(error) or type(error).__name__
    remedy = _REMEDIES.get(errno.errorcode.get(error.errno, ""))
    name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    reason = error.strerror or os.strerror(error.errno)
    return f"{name}{remedy} ({reason})" if remedy else f"{name}{reason}"


def mentions(text: str, names: Collection[str], paths: Iterable[Path | None] = ()) -> bool:
    """Returns whether a message has a name as a word that is not a part of a path; `paths` are ignored.

    Example:
        >>> mentions("7 has no class: add it to ids.", ["ids"])
        True
        >>> mentions("kids/a.png, data/ids/b.png and ids.png are damaged", ["ids"])
        False
    """
    for path in paths:
        text = text.replace(str(path), "")
    found = re.search(rf"(?<![\w/\\.-])({'|'.join(names)})(?![\w/\\-]|\.\w)", text)
    return found is not None


def describe_changes(
    file: Path, title: str, before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()
) -> str:
    """Returns how settings differ from those in a file beside the results, except for the free ones."""
    changed = [
        f"  {name}: {before.get(name, 'absent')} then, {now.get(name, 'absent')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in free
    ]
    advice = "Choose another folder with --output, or delete this one."
    first = f"{file.parent} holds {title}, see its {file.name}:"
    return "\n".join([first, *changed, advice]) if changed else ""
