"""Generated street scenes as the files of a data set."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS
from cpsl.data.streets.draw import check_street, draw_street
from cpsl.data.streets.styles import Style
from cpsl.files import write_atomically
from cpsl.randomness import derive_seed

VERSION = 1
"""Of the drawing: a change of what a seed gives raises it, so that old and new files do not mix."""

# Cityscapes' label id of each train id; 0 is "unlabeled".
_LABEL_IDS = np.zeros(256, np.uint8)
_LABEL_IDS[:19] = CITYSCAPES_19.stored_ids(CITYSCAPES_IDS)
_COLORS = np.zeros((256, 3), np.uint8)
_COLORS[_LABEL_IDS[:19]] = CITYSCAPES_19.palette


def write_streets(
    root: str | Path,
    *,
    layout: Literal["gta5", "cityscapes"],
    style: Style,
    count: int,
    split: str = "train",
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
) -> None:
    """Writes generated scenes as files that `GTA5` or `Cityscapes` read.

    Files that are there already are kept, so an interrupted call is repeated to be completed.

    Args:
        root: Folder of the data set.
        layout: "gta5": images/00001.png and labels/00001.png; "cityscapes": leftImg8bit and gtFine with
            one city. Labels are stored as Cityscapes' label ids.
        style: As in `draw_street`.
        count: Number of scenes.
        split: Folder of a Cityscapes layout; each split has scenes of its own.
        size: Height and width in pixels.
        seed: Other seeds give other scenes.

    Raises:
        ValueError: Unknown layout, style or size; `root` holds scenes of other
            settings, or images that are not generated ones.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_streets(folder, layout="gta5", style="game", count=2)
        >>> sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
        ['images/00001.png', 'images/00002.png', 'labels/00001.png', 'labels/00002.png']
    """
    if layout not in ("gta5", "cityscapes"):
        raise ValueError(f'layout must be "gta5" or "cityscapes", got {layout!r}')
    settings: dict[str, object] = {
        "version": VERSION,
        "style": style,
        "split": split,
        "count": count,
        "size": list(size),
        "seed": seed,
    }
    root = Path(root)
    check_street(style, size)
    if layout == "gta5":
        _claim(root / "streets.json", settings, root / "images")
    else:
        _claim(root / f"streets-{split}.json", settings, root / "leftImg8bit" / split)
    for index in range(count):
        if layout == "gta5":
            name = f"{index + 1:05d}.png"
            image_path, label_path = root / "images" / name, root / "labels" / name
        else:
            name = f"{split}/streets/streets_{index:06d}_000000"
            image_path = root / "leftImg8bit" / f"{name}_leftImg8bit.png"
            label_path = root / "gtFine" / f"{name}_gtFine_labelIds.png"
        if image_path.exists() and label_path.exists():
            continue
        image, label = draw_street(derive_seed(seed, "streets", split, index), style, size)
        _write_png(image_path, Image.fromarray(image.permute(1, 2, 0).numpy()))
        ids = Image.fromarray(_LABEL_IDS[label.numpy()])
        if layout == "gta5":
            ids.putpalette(_COLORS.tobytes())
        _write_png(label_path, ids)


def _claim(marker: Path, settings: dict[str, object], images: Path) -> None:
    """Notes the settings before the first image, or refuses a folder that holds anything else."""
    if not marker.exists():
        if images.exists():
            raise ValueError(
                f"{images} exists, but {marker.name} does not: these are no generated streets. "
                "Choose another folder to draw them into."
            )
        text = json.dumps(settings, indent=2)
        write_atomically(marker, lambda partial: partial.write_text(text, encoding="utf-8"))
        return
    try:
        written = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{marker} is damaged ({error}): delete its folder, and the streets are drawn anew"
        ) from error
    if written != settings:
        raise ValueError(
            f"{marker.parent} holds generated streets of other settings: {written}, not {settings}. "
            "Choose another folder, or delete this one and draw them anew."
        )


def _write_png(path: Path, picture: Image.Image) -> None:
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"))
