"""What a case is, and the words that the tables of cases are written in."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from cpsl.data import SegmentationFolder
from healthy import run_program

IMAGE, LABEL = "source/images/a.png", "source/labels/a.png"
START = "run/pseudo_labels/start.pt"

Area = Literal[
    "data",
    "labels",
    "stored labels",
    "settings",
    "checkpoints",
    "run folder",
    "environment",
    "library",
]
Break = Callable[[], object]
Program = Callable[[], object]


class Case(NamedTuple):
    """One thing that is wrong, or looks so.

    Attributes:
        area: What it concerns.
        name: What is wrong.
        breaks: Makes it so, in the current folder.
        invoke: Runs a program, or calls the library.
        says: Patterns that the message must contain; none where the input is legal.
        finished: Whether the project has a finished run.
    """

    area: Area
    name: str
    breaks: Break
    invoke: Program
    says: tuple[str, ...] = ()
    finished: bool = False


class LeftError(Exception):
    """A program left with a message and an exit code other than zero."""


# What a case breaks.


def nothing() -> None:
    """Leaves everything as it is."""


def together(*breaks: Break) -> Break:
    """Breaks several things."""
    return lambda: [each() for each in breaks]


def truncate(path: str, share: float = 0.5) -> Break:
    """Keeps only the beginning of a file."""
    return lambda: os.truncate(path, int(Path(path).stat().st_size * share))


def remove(path: str) -> Break:
    """Deletes a file."""
    return lambda: Path(path).unlink()


def content(path: str, data: bytes) -> Break:
    """Replaces the content of a file."""

    def act() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return act


def picture(
    path: str, mode: str = "RGB", size: tuple[int, int] = (64, 32), **options: Any
) -> Break:
    """Writes a picture of one colour, by the name of another format if `format` says so."""
    return lambda: Image.new(mode, size, options.pop("color", 0)).save(path, **options)


def stored(path: str, values: Any, dtype: Any = np.uint8) -> Break:
    """Writes an array as a picture."""
    return lambda: Image.fromarray(np.asarray(values, dtype)).save(path)


def rename(path: str, other: str) -> Break:
    """Moves a file."""
    return lambda: Path(path).rename(other)


def link(path: str, to: str) -> Break:
    """Makes a symbolic link."""
    return lambda: Path(path).symlink_to(to)


def in_place_of(path: str, make: Callable[[Path], object]) -> Break:
    """Removes a file and makes something else in its place."""

    def act() -> None:
        Path(path).unlink(missing_ok=True)
        make(Path(path))

    return act


def settings(old: str, new: str) -> Break:
    """Replaces a line of the settings."""

    def act() -> None:
        path = Path("settings.toml")
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return act


def saved(path: str, state: Callable[[], Any]) -> Break:
    """Saves something with torch."""
    return lambda: torch.save(state(), path)


def changed(path: str, change: Callable[[dict[str, Any]], object]) -> Break:
    """Changes what a file of torch holds."""

    def act() -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return act


# How a case is run.


def program(name: str, *options: str) -> Program:
    """Runs a program of `examples` with the project's settings."""

    def act() -> None:
        run_or_raise(name, "--config", "settings.toml", *options)

    return act


def adapt(*options: str) -> Program:
    """Runs the whole pipeline."""
    return program("adapt.py", *options)


def check(*options: str) -> Program:
    """Looks for everything that is wrong."""
    return program("adapt.py", "--check", "True", *options)


def read(
    images: str = "source/images", labels: str | None = None, index: int = 0, **ids: Any
) -> Any:
    """Reads an image of a folder."""
    return SegmentationFolder(images, labels, ["road", "car", "sky"], **ids)[index]


def gives(get: Callable[[], Any], wanted: Any) -> Program:
    """Compares the result of a call with what is wanted."""

    def act() -> None:
        got = get()
        assert got == wanted, f"{got} instead of {wanted}"

    return act


def gives_message(call: Callable[[], object]) -> Program:
    """Calls the library, which shall raise."""

    def act() -> None:
        call()

    return act


def run_or_raise(name: str, *options: str) -> None:
    """Runs a program of `examples`; raises if it does not end well."""
    ended = run_program(name, *options)
    if ended.error is not None:
        raise RuntimeError(f"traceback of {type(ended.error).__name__}") from ended.error
    if ended.code:
        raise LeftError(ended.said)
