"""A model at work: images, folders of images and videos in, label maps and pictures out.

    python examples/predict.py --weights runs/demo/distill_2/model.pt --input photos --output predicted

A stopped run goes on with the same command. `prediction.json` in the output says what its numbers mean.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from PIL import Image
from torch import Tensor

from cpsl import Prediction, Segmenter
from cpsl.data import ColorStore, HardLabelStore, LabelSpace
from cpsl.data.pseudo_labels import path_of, save_png
from cpsl.data.reading import find_files, read_image
from cpsl.engine import Precision, Process, autocast, progress, start_process, write_text
from cpsl.files import write_atomically
from cpsl.visualize import overlay
from stage import friendly_errors
from video import SUFFIXES as VIDEOS
from video import frame_rate, read_frames, write_video

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
Kind = Literal["labels", "colors", "overlay", "confidence"]


@dataclass(frozen=True)
class Arguments:
    """Segments images and videos."""

    weights: Path
    """A `model.pt` of a run, or a `.pkl` of the authors' release."""
    input: Path
    """An image, a video, or a folder of them with any subfolders."""
    output: Path
    """Folder of the results; each has the relative path of its image."""
    write: tuple[Kind, ...] = ("labels", "overlay")
    """labels: PNGs of class indices; colors: PNGs in the colours of the classes; overlay: these colours over
    the image, of a video another video, too; confidence: PNGs of 255 times the probability of the label."""
    flip: bool = False
    """Whether the mirror image is seen as well; probabilities are averaged."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which an image is seen, as multiples of `size`; probabilities are averaged."""
    size: tuple[int, int] | None = None
    """Height and width at which an image is seen; what the model's file says if left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "float32"
    """float32, bfloat16 or float16 (mixed precision)."""
    debug: bool = False
    """Show where in the code an error was raised."""


class UnreadableError(Exception):
    """A file of the input that is damaged, or needs what is not installed."""


def predict_all(arguments: Arguments, process: Process) -> list[str]:
    """Predicts all that is not there yet.

    Returns:
        What could not be read, a line each.

    Raises:
        FileNotFoundError: There is nothing to predict, or no model.
        ValueError: The model cannot be used, or the output holds other results or lies in the input.
    """
    found = _find(arguments.input)
    if arguments.output.resolve().is_relative_to(arguments.input.resolve()):
        raise ValueError(
            f"{arguments.output} lies in {arguments.input}: the next run would take results for images"
        )
    segmenter = Segmenter.load(arguments.weights, full_size=arguments.size, device=process.device)
    _note(arguments, segmenter)
    output = Output(arguments.output, arguments.write, segmenter.classes)
    unread = []
    for name, path in progress(found.items(), "images", process, total=len(found)):
        if not _is_video(path) and name in output:
            continue
        pictures, frames = _pictures(name, path), 0
        if _is_video(path):
            pictures = progress(pictures, path.name, process)
        try:
            for key, image in pictures:
                frames += 1
                if key not in output:
                    with autocast(process.device, arguments.precision):
                        prediction = segmenter.predict(
                            image, scales=arguments.scales, flip=arguments.flip
                        )
                    output.write(key, image, prediction)
        except UnreadableError as error:
            unread.append(str(error))
            continue
        if frames and _is_video(path) and "overlay" in arguments.write:
            output.join(name, frames, path)
    return unread


class Output:
    """The folder of the results, with a folder for each kind.

    Args:
        folder: Made when the first result is written.
        kinds: What is written.
        classes: Classes of the model.
    """

    def __init__(self, folder: Path, kinds: Sequence[Kind], classes: LabelSpace) -> None:
        self._folder = folder
        self._kinds = kinds
        self._palette = classes.palette
        self._labels = HardLabelStore(folder / "labels", classes.palette)
        self._colors = ColorStore(folder / "colors", classes)

    def __contains__(self, name: str) -> bool:
        return all(self.path(kind, name).exists() for kind in self._kinds)

    def path(self, kind: Kind, name: str) -> Path:
        """Returns the file of one kind of result."""
        path = path_of(self._folder / kind, name)
        return path.with_suffix(".jpg") if kind == "overlay" else path

    def write(self, name: str, image: Tensor, prediction: Prediction) -> None:
        """Writes the results of an image, each as a whole or not at all."""
        labels = prediction.labels.cpu()
        if "labels" in self._kinds:
            self._labels.write(name, labels)
        if "colors" in self._kinds:
            self._colors.write(name, labels)
        if "confidence" in self._kinds:
            grey = (255 * prediction.confidence).round().to(torch.uint8).cpu()
            save_png(self.path("confidence", name), Image.fromarray(grey.numpy()))
        if "overlay" in self._kinds:
            mixed = overlay(image, labels, self._palette).permute(1, 2, 0).contiguous()
            picture = Image.fromarray(mixed.numpy())
            write_atomically(
                self.path("overlay", name),
                lambda partial: picture.save(partial, "JPEG", quality=92),
            )

    def join(self, name: str, frames: int, video: Path) -> None:
        """Writes the overlays of a video's frames as a video, too, unless it is there."""
        path = self._folder / "overlay" / f"{name}.mp4"
        pictures = (read_image(self.path("overlay", _frame(name, i))) for i in range(frames))
        if not path.exists():
            rate = frame_rate(video)
            write_atomically(path, lambda partial: write_video(partial, pictures, rate))


def _find(path: Path) -> dict[str, Path]:
    if path.is_dir():
        return find_files(path, IMAGES + VIDEOS, "images or videos")
    if not path.exists():
        raise FileNotFoundError(f"there is no image, video or folder {path}")
    return {path.stem: path}


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _pictures(name: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the image of a file, or the frames of a video, each with its key."""
    try:
        if _is_video(path):
            for index, frame in enumerate(read_frames(path)):
                yield _frame(name, index), frame
        else:
            yield name, read_image(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreadableError(str(error)) from error


def _frame(name: str, index: int) -> str:
    return f"{name}/{index:06d}"


def _note(arguments: Arguments, segmenter: Segmenter) -> None:
    """Notes what the results come from; results of another model or way to look are not mixed with them."""
    with arguments.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    note = {
        "classes": segmenter.classes.names,
        "palette": segmenter.classes.palette,
        "weights": str(arguments.weights),
        "sha256": digest,
        "input": str(arguments.input.resolve()),
        "size": segmenter.full_size,
        "scales": arguments.scales,
        "flip": arguments.flip,
        "precision": arguments.precision,
    }
    path, now = arguments.output / "prediction.json", json.loads(json.dumps(note))
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    changed = [key for key in now if key != "weights" and before.get(key) != now[key]]
    if changed:
        raise ValueError(
            f"{arguments.output} holds predictions of something else:\n  "
            + "\n  ".join(f"{key}: {before.get(key)} then, {now[key]} now" for key in changed)
            + "\nChoose another folder with --output, or delete this one."
        )
    write_text(path, json.dumps(note, indent=1))


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, description=__doc__, config=(tyro.conf.FlagConversionOff,))
    with friendly_errors(arguments.debug), start_process(arguments.device) as process:
        unread = predict_all(arguments, process)
        print(f"results in {arguments.output}")
        if unread:
            raise SystemExit("\n".join(["these could not be read and have no result:", *unread]))
