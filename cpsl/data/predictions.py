"""Predictions as files for others: label ids for the server of Cityscapes, colours for people."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cpsl.data.labels import CITYSCAPES_IDS, LabelSpace
from cpsl.data.pseudo_labels import path_of, save_png


class LabelIdStore:
    """Label maps as PNGs of Cityscapes' label ids, of which its server wants one for each test image.

    The server finds a file by the city, sequence and frame in its name, which are the image's key.

    Args:
        folder: Made when the first map is written.
        classes: Classes of the maps, by Cityscapes' names.

    Raises:
        ValueError: Some classes are none of Cityscapes'.

    Example:
        >>> import tempfile
        >>> from cpsl.data.labels import CITYSCAPES_19
        >>> store = LabelIdStore(tempfile.mkdtemp(), CITYSCAPES_19)
        >>> store.write("berlin/berlin_000000_000019", torch.tensor([[0, 18]], dtype=torch.uint8))
        >>> with Image.open(store.folder / "berlin" / "berlin_000000_000019.png") as picture:
        ...     picture.getextrema()
        (7, 33)
    """

    def __init__(self, folder: str | Path, classes: LabelSpace) -> None:
        self.folder = Path(folder)
        ids = classes.stored_ids(CITYSCAPES_IDS)
        self._ids = torch.tensor(ids, dtype=torch.uint8)

    def write(self, name: str, label: Tensor) -> None:
        """Stores the labels of an image; they are there as a whole or not at all.

        Args:
            name: Key of the image.
            label: (H, W) integer class indices; each pixel is of a class.

        Raises:
            ValueError: The name leads out of the folder, or a pixel is of no class.
        """
        label = label.cpu().long()
        if not (label.min() >= 0 and label.max() < len(self._ids)):
            raise ValueError(
                f"{name}: labels must be 0...{len(self._ids) - 1}, got {label.min()}...{label.max()}"
            )
        ids = self._ids[label]
        save_png(path_of(self.folder, name), Image.fromarray(ids.numpy()))


class ColorStore:
    """Label maps as PNGs in the colours of the classes.

    Args:
        folder: Made when the first map is written.
        classes: Classes of the maps.

    Example:
        >>> import tempfile
        >>> from cpsl.data.labels import CITYSCAPES_19
        >>> store = ColorStore(tempfile.mkdtemp(), CITYSCAPES_19)
        >>> store.write("a", torch.tensor([[0, 255]], dtype=torch.uint8))
        >>> with Image.open(store.folder / "a.png") as picture:
        ...     picture.getpixel((0, 0)), picture.getpixel((1, 0))
        ((128, 64, 128), (0, 0, 0))
    """

    def __init__(self, folder: str | Path, classes: LabelSpace) -> None:
        self.folder = Path(folder)
        self._palette = torch.tensor([*classes.palette, (0, 0, 0)], dtype=torch.uint8)

    def write(self, name: str, label: Tensor) -> None:
        """Stores the labels of an image; they are there as a whole or not at all.

        Args:
            name: Key of the image.
            label: (H, W) integer class indices; what is no class is black.

        Raises:
            ValueError: The name leads out of the folder, or a label is negative.
        """
        label = label.cpu().long()
        if label.min() < 0:
            raise ValueError(f"{name}: labels must be 0 or more, got {label.min()}")
        colors = self._palette[label.clamp_max(len(self._palette) - 1)]
        save_png(path_of(self.folder, name), Image.fromarray(colors.numpy()))
