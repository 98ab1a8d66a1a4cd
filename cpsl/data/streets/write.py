"""Generated street scenes, as tensors and as the files of a data set."""

import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cpsl._internal.files import write_atomically
from cpsl._internal.randomness import derive_seed
from cpsl._internal.workers import map_in_processes
from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS
from cpsl.data.streets.rendering import paint, photograph
from cpsl.data.streets.street import draw_scene
from cpsl.data.streets.styles import CAMERAS, TOWNS, Style

VERSION = 1
"""Increased when the scene of a seed changes, so that old and new files are not mixed."""

# Cityscapes' label id of each train id; 0 is "unlabeled".
_LABEL_IDS = np.zeros(256, np.uint8)
_LABEL_IDS[:19] = CITYSCAPES_19.stored_ids(CITYSCAPES_IDS)
_COLORS = np.zeros((256, 3), np.uint8)
_COLORS[_LABEL_IDS[:19]] = CITYSCAPES_19.palette


def draw_street(seed: int, style: Style, size: tuple[int, int] = (128, 256)) -> tuple[Tensor, Tensor]:
    """Draws one street scene and its labels.

    The scene depends on seed and style alone, not on the size; see `write_streets` for the arguments. Equal
    arguments give the same bytes on every machine (another version of Pillow may blend single pixels of an
    edge differently). The styles have the same 19 classes with the same shapes and differ as domains do.

    Returns:
        Image (3, H, W) uint8 and label (H, W) uint8: Cityscapes' train ids, 255 ignored.

    Example:
        >>> image, label = draw_street(7, "real", (64, 128))
        >>> image.shape, label.shape
        (torch.Size([3, 64, 128]), torch.Size([64, 128]))
    """
    _check(style, size)
    random = Random(derive_seed(seed, style))
    image, label = paint(draw_scene(TOWNS[style], random), size)
    image = photograph(image, label, CAMERAS[style], random)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label)


def _check(style: Style, size: tuple[int, int]) -> None:
    if style not in TOWNS:
        raise ValueError(f'style must be "game" or "real", got {style!r}')
    if min(size) < 32:
        raise ValueError(f"size (height, width) must be at least 32 pixels each, got {size}")


def write_streets(
    root: str | Path,
    *,
    layout: Literal["gta5", "cityscapes"],
    style: Style,
    count: int,
    split: str = "train",
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
    workers: int = 0,
) -> None:
    """Writes generated scenes as files for `GTA5` or `Cityscapes`.

    Existing files are kept, so that a repeated call completes an interrupted one.

    Args:
        root: Folder of the data set.
        layout: "gta5": images/00001.png and labels/00001.png; "cityscapes": leftImg8bit and gtFine with
            one city. Labels are stored as Cityscapes' label ids.
        style: "game": clean, saturated, wide streets. "real": dull light, rough surfaces, sensor noise,
            narrow and crowded streets, the bonnet of the camera's own car.
        count: Number of scenes.
        split: Split of the Cityscapes layout; each split has different scenes.
        size: Height and width in pixels, at least 32 each.
        seed: Seed of the scenes.
        workers: Number of processes that draw; 0 draws in this one.

    Raises:
        ValueError: An argument is invalid, or `root` holds other images or scenes of other settings.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_streets(folder, layout="gta5", style="game", count=2)
        >>> sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
        ['images/00001.png', 'images/00002.png', 'labels/00001.png', 'labels/00002.png']
    """
    if layout not in ("gta5", "cityscapes"):
        raise ValueError(f'layout must be "gta5" or "cityscapes", got {layout!r}')
    _check(style, size)
    root, settings = (
        Path(root),
        {"style": style, "split": split, "count": count, "size": [*size], "seed": seed},
    )
    if layout == "gta5":
        _claim(root / "streets.json", settings, root / "images")
    else:
        _claim(root / f"streets-{split}.json", settings, root / "leftImg8bit" / split)
    scenes = [
        _Scene(derive_seed(seed, "streets", split, index), *_files(root, layout, split, index))
        for index in range(count)
    ]
    missing = [scene for scene in scenes if not (scene.image.exists() and scene.label.exists())]
    write = partial(_write_scene, missing, style, size, layout == "gta5")
    for _ in map_in_processes(write, len(missing), workers):
        pass


class _Scene(NamedTuple):
    """Seed and files of a scene."""

    seed: int
    image: Path
    label: Path


def _files(root: Path, layout: str, split: str, index: int) -> tuple[Path, Path]:
    """Returns the paths of a scene's image and label."""
    if layout == "gta5":
        name = f"{index + 1:05d}.png"
        return root / "images" / name, root / "labels" / name
    name = f"{split}/streets/streets_{index:06d}_000000"
    return root / "leftImg8bit" / f"{name}_leftImg8bit.png", root / "gtFine" / f"{name}_gtFine_labelIds.png"


def _write_scene(
    scenes: list[_Scene], style: Style, size: tuple[int, int], with_colors: bool, index: int
) -> None:
    """Draws a scene and writes its files; labels of GTA5 have a palette."""
    seed, image_path, label_path = scenes[index]
    image, label = draw_street(seed, style, size)
    ids = Image.fromarray(_LABEL_IDS[label.numpy()])
    if with_colors:
        ids.putpalette(_COLORS.tobytes())
    _write_png(image_path, Image.fromarray(image.permute(1, 2, 0).numpy()))
    _write_png(label_path, ids)


def _claim(marker: Path, scenes: dict[str, object], images: Path) -> None:
    """Records the settings before the first image is written, or refuses a folder with other content."""
    settings = {"version": VERSION, **scenes}
    if not marker.exists():
        if images.exists():
            raise ValueError(
                f"{images} holds other images: there is no {marker.name}. Choose another folder."
            )
        text = json.dumps(settings, indent=2)
        write_atomically(marker, lambda partial: partial.write_text(text, encoding="utf-8"))
        return
    try:
        written = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{marker} is damaged ({error}): delete its folder to start again") from error
    if written != settings:
        raise ValueError(
            f"{marker.parent} holds generated streets of other settings: {written}, not {settings}. "
            "Choose another folder, or delete this one."
        )


def _write_png(path: Path, picture: Image.Image) -> None:
    # Noise hardly compresses: the default level takes three times as long and saves a tenth of the size.
    write_atomically(path, lambda partial: picture.save(partial, format="PNG", compress_level=1))
