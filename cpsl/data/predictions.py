"""Predictions as files: label ids for the Cityscapes server, and colors."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cpsl.data.labels import CITYSCAPES_IDS, LabelSpace
from cpsl.data.pseudo_labels import path_of, save_png


class LabelIdStore:
    """Label maps as PNGs of Cityscapes' label ids, one per test image, as its server expects them."""

    def __init__(self, folder: str | Path, classes: LabelSpace) -> None:
        self.folder = Path(folder)
        self._ids = torch.tensor(classes.stored_ids(CITYSCAPES_IDS), dtype=torch.uint8)

    def write(self, name: str, label: Tensor) -> None:
        """Stores a label map (H, W) of integer class indices, none of them ignored."""
        label = label.cpu().long()
        low, high, last = label.min(), label.max(), len(self._ids) - 1
        if low < 0 or high > last:
            raise ValueError(f"{name}: labels must be 0...{last}, got {low}...{high}")
        save_png(path_of(self.folder, name), Image.fromarray(self._ids[label].numpy()))


class ColorStore:
    """Label maps as PNGs in the colors of the classes."""

    def __init__(self, folder: str | Path, classes: LabelSpace) -> None:
        self.folder = Path(folder)
        self._palette = torch.tensor([*classes.palette, (0, 0, 0)], dtype=torch.uint8)

    def write(self, name: str, label: Tensor) -> None:
        """Stores a label map (H, W) of integer class indices; pixels without a class become black."""
        label = label.cpu().long()
        if label.min() < 0:
            raise ValueError(f"{name}: labels must be 0 or more, got {label.min()}")
        colors = self._palette[label.clamp_max(len(self._palette) - 1)]
        save_png(path_of(self.folder, name), Image.fromarray(colors.numpy()))
