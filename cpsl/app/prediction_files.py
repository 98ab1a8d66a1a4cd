"""The files of `cpsl predict`: results by kind, and the record of their inputs.

The key of a video ends in a slash: it is the folder of its frames.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from cpsl import Segmenter
from cpsl._internal.files import write_atomically
from cpsl.app.video import frame_rate, write_video
from cpsl.data import HardLabelStore
from cpsl.data.formats import naming
from cpsl.data.legends import write_legend
from cpsl.data.pictures import read_image
from cpsl.data.predictions import ColorStore
from cpsl.data.pseudo_labels import path_of, save_png
from cpsl.inference import Prediction
from cpsl.visualize import overlay

Kind = Literal["labels", "colors", "overlay", "confidence"]
FRAME = re.compile(r"\d{6,}")
"""The number of a frame."""

FRAME_FILE = re.compile(r"\d{6,}\.(png|jpg)")
"""A result of a frame; beside it may be the overlay 000000.mp4 of another video."""

JPEG_SIDE = 65_500
"""Largest width and height of a JPEG."""


class UnreadableError(Exception):
    """A file of the input is damaged, or needs a package that is not installed."""


class Inputs:
    """Sizes and modification times of the files that were predicted, in `inputs.jsonl` of the output."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "inputs.jsonl"
        self._known: dict[str, list[int]] = {}
        for line in self._path.read_text("utf-8", "replace").splitlines() if self._path.exists() else ():
            try:
                name, *status = json.loads(line)
                self._known[name] = status
            except (ValueError, TypeError):  # the last line of a killed process
                continue

    def unchanged(self, name: str, path: Path) -> bool:
        """Returns whether a file is the one that was recorded."""
        return self._known.get(name) == _status(path)

    def record(self, name: str, path: Path) -> None:
        """Records a file, before its results are written."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([name, *_status(path)])}")

    def gone(self, found: Collection[str]) -> list[str]:
        """Returns the recorded names that are not among those found."""
        return sorted(self._known.keys() - found)


def _status(path: Path) -> list[int]:
    try:
        with naming(path):
            status = path.stat()
    except (FileNotFoundError, ValueError) as error:  # such as a broken link
        raise UnreadableError(str(error)) from error
    return [status.st_size, status.st_mtime_ns]


class Output:
    """The folder of the results, with a folder for each kind; created with the first result."""

    def __init__(self, folder: Path, kinds: Collection[Kind], segmenter: Segmenter) -> None:
        self._folder, self._kinds = folder, kinds
        self.description = folder / "prediction.json"
        self._classes = segmenter.classes
        self._labels = HardLabelStore(self._folder / "labels", segmenter.classes.palette)
        self._colors = ColorStore(self._folder / "colors", segmenter.classes)

    def __contains__(self, name: str) -> bool:
        return all(any(map(_is_complete, self._paths(kind, name))) for kind in self._kinds)

    def has_results(self) -> bool:
        """Returns whether the folder has files of any kind of result."""
        return any(_has_files(self._folder / kind) for kind in get_args(Kind))

    def refuse_foreign(self) -> None:
        """Raises ValueError if there are files where results belong, but no description of results.

        They may be labels of a data set, which results of the same names would replace.
        """
        foreign = [kind for kind in get_args(Kind) if _has_files(self._folder / kind)]
        if foreign and not self.description.exists():
            raise ValueError(
                f"{self._folder / foreign[0]} has files, but {self._folder} has no {self.description.name}: "
                "they are no results of this command, which could replace them; choose another folder "
                "with --output"
            )

    def write_legend(self) -> None:
        """Writes the colors of the classes, if any pictures show them."""
        if {"colors", "overlay"} & set(self._kinds):
            write_legend(self._folder, self._classes)

    def _paths(self, kind: Kind, name: str) -> list[Path]:
        """Returns the possible files of one kind of result: an overlay is a JPEG or a PNG."""
        path = path_of(self._folder / kind, name)
        return [path.with_suffix(".jpg"), path] if kind == "overlay" else [path]

    def write(self, name: str, image: Tensor, prediction: Prediction) -> None:
        """Writes the results of an image, each file atomically."""
        labels = prediction.labels.cpu()
        if "labels" in self._kinds:
            self._labels.write(name, labels)
        if "colors" in self._kinds:
            self._colors.write(name, labels)
        if "confidence" in self._kinds:
            gray = (255 * prediction.confidence).round().to(torch.uint8).cpu()
            save_png(self._paths("confidence", name)[0], Image.fromarray(gray.numpy()))
        if "overlay" in self._kinds:
            mixed = overlay(image, labels, self._classes.palette).permute(1, 2, 0).contiguous()
            picture, (jpeg, png) = Image.fromarray(mixed.numpy()), self._paths("overlay", name)
            if max(picture.size) > JPEG_SIDE:
                save_png(png, picture)
            else:
                write_atomically(jpeg, lambda partial: picture.save(partial, "JPEG", quality=92))

    def remove(self, name: str) -> bool:
        """Deletes the results of an image or video, of all kinds; returns whether there were any."""
        if name.endswith("/"):
            folders = [self._folder / kind / name for kind in get_args(Kind)]
            frames = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
            paths = [path for path in frames if FRAME_FILE.fullmatch(path.name)]
            paths.append(self._video(name))
        else:
            paths = [path for kind in get_args(Kind) for path in self._paths(kind, name)]
        found = [path for path in paths if path.is_file()]  # folders hold results of other inputs
        for path in found:
            path.unlink()
        return bool(found)

    def join(self, name: str, frames: int, video: Path) -> None:
        """Writes the overlays of a video's frames as a video, unless it exists."""
        path = self._video(name)
        of_frames = (self._paths("overlay", frame_key(name, i)) for i in range(frames))
        pictures = (read_image(next(path for path in paths if path.exists())) for paths in of_frames)
        if not path.exists():
            rate = frame_rate(video)
            write_atomically(path, lambda partial: write_video(partial, pictures, rate))

    def _video(self, name: str) -> Path:
        return self._folder / "overlay" / f"{name.removesuffix('/')}.mp4"


def _is_complete(path: Path) -> bool:
    """Returns whether a file exists and has content: a full disk or a failed copy leaves empty files."""
    return path.exists() and path.stat().st_size > 0


def _has_files(folder: Path) -> bool:
    """Returns whether a folder has files or links at any depth, except for hidden ones."""
    return any(path.is_file() or path.is_symlink() for path in folder.rglob("[!.]*"))


def frame_key(name: str, index: int) -> str:
    """Returns the key of the results of a frame.

    >>> frame_key("city/walk/", 7)
    'city/walk/000007'
    """
    return f"{name}{index:06d}"
