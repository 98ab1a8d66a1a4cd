"""Errors that the commands report without a traceback."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def friendly_errors(debug: bool = False) -> Iterator[None]:
    """Ends the program with a short message for errors of data, files, settings and numbers."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        if debug:
            raise
        message, notes = str(error) or type(error).__name__, getattr(error, "__notes__", [])
        if "in DataLoader worker" in message:  # torch puts the worker's traceback before its error
            message = message.rpartition(f"\n{type(error).__name__}: ")[2].strip()
        elif "DataLoader worker" in message:  # it was killed, most often for lack of memory
            notes = [*notes, "Fewer --workers need less memory; --workers 0 shows the error itself."]
        raise SystemExit("\n".join([f"error: {message}", *notes, "--debug shows the traceback"])) from None


def describe_changes(
    folder: Path, title: str, before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()
) -> str:
    """Returns how settings differ from those of the results in their folder, except for the free ones."""
    changed = [
        f"  {name}: {before.get(name)} then, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in free
    ]
    advice = "Choose another folder with --output, or delete this one."
    return "\n".join([f"{folder} holds {title}:", *changed, advice]) if changed else ""
