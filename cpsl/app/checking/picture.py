"""Picture of a few images and labels as they are read, before hours of training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cpsl._internal.files import write_atomically
from cpsl.data import IGNORE_INDEX, DatasetCheck, LabelSpace, SegmentationDataset
from cpsl.visualize import overlay, panel, titled

TILE = (240, 320)
"""Height and width into which an image is fitted."""

COLUMNS = 2
"""Images per row; labels are beside their image."""

LINE = 20
"""Height of a line of the legend in pixels."""


def write_contact_sheet(path: Path, dataset: SegmentationDataset, result: DatasetCheck) -> None:
    """Writes the images that `check_dataset` chose, each beside its label as an overlay, and the classes.

    Ignored pixels are striped, images without a label stand alone.
    """
    sheet = contact_sheet(dataset, result)
    picture = Image.fromarray(sheet.movedim(0, -1).numpy())
    write_atomically(path, lambda partial: picture.save(partial, "PNG"))


def contact_sheet(dataset: SegmentationDataset, result: DatasetCheck) -> Tensor:
    """Draws the picture, (3, H, W) uint8.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, check_dataset, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="gta5", style="game", count=2, size=(64, 128))
        >>> contact_sheet(GTA5(folder), check_dataset(GTA5(folder))).shape[2] > 4 * 320
        True
    """
    palette, tiles = dataset.label_space.palette, list[Tensor]()
    for index in result.examples:
        image, label, name = dataset[index]
        shown = _fit(image, Image.Resampling.BILINEAR)
        tiles.append(titled(_center(shown), name))
        if label is not None:
            classes = _fit(label, Image.Resampling.NEAREST)
            covered = _stripe(overlay(shown, classes, palette, alpha=0.6), classes == IGNORE_INDEX)
            tiles.append(titled(_center(covered), "label as read"))
    labeled = len(tiles) > len(result.examples)
    sheet = panel(tiles, columns=min((1 + labeled) * COLUMNS, len(tiles)))
    if not labeled:
        return sheet
    return torch.cat([sheet, _legend(dataset.label_space, result, sheet.shape[2])], dim=1)


def _fit(picture: Tensor, resampling: Image.Resampling) -> Tensor:
    """Resizes an image (3, H, W) or a label (H, W) to the largest size that fits into a tile."""
    height, width = picture.shape[-2:]
    scale = min(TILE[0] / height, TILE[1] / width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    array = picture.movedim(0, -1).numpy() if picture.ndim == 3 else picture.numpy()
    resized = torch.from_numpy(np.array(Image.fromarray(array).resize(size, resampling)))
    return resized.movedim(-1, 0) if picture.ndim == 3 else resized


def _center(picture: Tensor) -> Tensor:
    """Puts a picture into the middle of a white tile."""
    height, width = picture.shape[1:]
    tile = torch.full((3, *TILE), 255, dtype=torch.uint8)
    top, left = (TILE[0] - height) // 2, (TILE[1] - width) // 2
    tile[:, top : top + height, left : left + width] = picture
    return tile


def _stripe(picture: Tensor, where: Tensor) -> Tensor:
    """Draws black and white diagonals over a part of a picture."""
    y, x = torch.arange(picture.shape[1])[:, None], torch.arange(picture.shape[2])
    phase = (x + y) % 12
    black, white = where & (phase < 2), where & (phase >= 6) & (phase < 8)
    return picture.masked_fill(black, 0).masked_fill(white, 255)


def _legend(classes: LabelSpace, result: DatasetCheck, width: int) -> Tensor:
    """Draws the color, the name and the share of each class, and those of ignored pixels."""
    pixels = max(int(result.counts.sum()), 1)
    ignored = result.ignored / max(pixels + result.ignored, 1)
    entries = [
        (f"{name} {100 * count / pixels:.2f} %", color)
        for name, color, count in zip(classes.names, classes.palette, result.counts.tolist(), strict=True)
    ]
    entries.append((f"ignored, {100 * ignored:.2f} % of all", (255, 255, 255)))
    columns = max(width // 220, 1)
    rows = -(-len(entries) // columns)
    picture = Image.new("RGB", (width, LINE * rows + 8), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    swatches = torch.zeros(picture.height, width, dtype=torch.bool)
    for number, (text, color) in enumerate(entries):
        left, top = number % columns * (width // columns) + 2, number // columns * LINE + 6
        draw.rectangle((left, top, left + 25, top + LINE - 6), fill=color, outline="black")
        # A long name must not run into its neighbor.
        while draw.textlength(text, font) > width // columns - 38 and len(text) > 1:
            text = text[:-2] + "…"
        draw.text((left + 32, top + LINE // 2 - 3), text, fill="black", font=font, anchor="lm")
        swatches[top + 1 : top + LINE - 6, left + 1 : left + 25] = number == len(classes)
    return _stripe(torch.from_numpy(np.array(picture)).movedim(-1, 0), swatches)
