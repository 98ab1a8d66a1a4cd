"""A case of bad input, how its answer is judged, and what the tables of cases are written with."""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from cpsl.data import SegmentationFolder
from project import RefusedError, copy_project, incomplete_files, run

IMAGE, LABEL = "source/images/a.png", "source/labels/a.png"
TARGET = "target/images/a.png"
LIBRARY_ERRORS = (ValueError, TypeError, OSError)
Act = Callable[[], object]


class Case(NamedTuple):
    """One thing that is wrong, or only seems so.

    Attributes:
        kind: Kind of fault.
        name: What is wrong.
        prepare: Makes it so, in the current folder: one or several actions.
        names: What the message must name: file, setting, argument or value; nothing where the input is legal.
        act: A command line of `cpsl`, which must end with a message, or a call that must raise ValueError,
            TypeError or OSError.
        finished: Whether the project has a finished run.
    """

    kind: str
    name: str
    prepare: Act | Sequence[Act] = ()
    names: str | tuple[str, ...] = ()
    act: str | Act = "adapt"
    finished: bool = False


def flaws(case: Case, folder: Path) -> list[str]:
    """Tries a case in an empty folder; returns what is wrong with the answer, nothing if it is a good one."""
    copy_project(folder, case.finished)
    steps = [case.prepare] if callable(case.prepare) else case.prepare
    names = (case.names,) if isinstance(case.names, str) else case.names
    errors = RefusedError if isinstance(case.act, str) else (RefusedError, *LIBRARY_ERRORS)
    error, message = None, ""
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        for step in steps:
            step()
        before = incomplete_files(folder)
        try:
            run(case.act) if isinstance(case.act, str) else case.act()
        except Exception as raised:
            error, message = raised, str(raised)
        left = incomplete_files(folder) - before
    found = [f"leaves {path} incomplete" for path in sorted(left)]
    if error is None:
        return found + ["is accepted"] * bool(names)
    if not (names and isinstance(error, errors)):
        return [*found, f"raises {type(error).__name__}: {message}"]
    if "Traceback" in message:
        found.append(f"shows a traceback: {message}")
    return found + [f"does not name {name}: {message}" for name in names if name not in message]


def truncate(path: str, share: float = 0.5) -> Act:
    return lambda: os.truncate(path, int(Path(path).stat().st_size * share))


def remove(path: str) -> Act:
    return lambda: Path(path).unlink()


def rename(path: str, other: str) -> Act:
    return lambda: Path(path).rename(other)


def replace(path: str, make: Callable[[Path], object]) -> Act:
    """Makes something else in the place of a file."""

    def act() -> None:
        Path(path).unlink(missing_ok=True)
        make(Path(path))

    return act


def content(path: str, data: bytes) -> Act:
    def act() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return act


def picture(path: str, mode: str = "RGB", size: tuple[int, int] = (64, 32), **options: Any) -> Act:
    """Writes a picture of one color, in the format of its suffix if `format` is not given."""
    color = options.pop("color", 0)
    return lambda: Image.new(mode, size, color).save(path, **options)


def stored(path: str, values: Any, dtype: Any = np.uint8) -> Act:
    """Writes an array, or a map of one number, as a picture."""
    values = np.full((32, 64), values) if isinstance(values, int) else values
    return lambda: Image.fromarray(np.asarray(values, dtype)).save(path)


def settings(old: str, new: str) -> Act:
    """Replaces a part of the settings."""

    def act() -> None:
        text = Path("settings.toml").read_text(encoding="utf-8")
        assert old in text
        Path("settings.toml").write_text(text.replace(old, new, 1), encoding="utf-8")

    return act


def saved(path: str, state: Any) -> Act:
    return lambda: torch.save(state, path)


def changed(path: str, change: Callable[[dict[str, Any]], object], to: str = "") -> Act:
    """Changes what a file of torch holds, or writes the changed state to another file."""

    def act() -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, to or path)

    return act


def read(labels: str | None = None, index: int = 0, **ids: Any) -> Any:
    """Reads a sample of the source domain."""
    return SegmentationFolder("source/images", labels, ["road", "car", "sky"], **ids)[index]


def gives(get: Callable[[], Any], wanted: Any) -> Act:
    """Compares the result of a call with what is wanted."""

    def act() -> None:
        got = get()
        assert got == wanted, f"{got} instead of {wanted}"

    return act
