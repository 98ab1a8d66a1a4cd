"""Cityscapes (Cordts et al., 2016), and other data in its layout."""

import warnings
from pathlib import Path

from torch import Tensor

from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS, LabelSpace
from cpsl.data.reading import (
    find_files,
    id_table,
    read_image,
    read_stored_label,
    require_same_size,
    to_classes,
)
from cpsl.data.sample import Sample

_IMAGE, _IDS, _TRAIN_IDS = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds"


class Cityscapes:
    """Street images as unpacked: `leftImg8bit/<split>/<city>/` and `gtFine/<split>/<city>/`.

    Labels are not needed to train on a target: without them `label` is None. If only some images have one,
    a warning says so. Where both are there, `labelIds` are read rather than `labelTrainIds`.

    Args:
        root: Folder with `leftImg8bit` and perhaps `gtFine`.
        split: "train", "val" or "test".
        label_space: Classes to tell apart, by Cityscapes' names; others are ignored.

    Attributes:
        names: Key of each image, such as "aachen/aachen_000000_000019".
        labelled: Number of images that have a label.

    Raises:
        FileNotFoundError: There are no images.

    Example:
        >>> import tempfile
        >>> from cpsl.data.streets import write_streets
        >>> root = Path(tempfile.mkdtemp())
        >>> write_streets(root, layout="cityscapes", style="real", count=1, split="val", size=(64, 128))
        >>> dataset = Cityscapes(root, "val")
        >>> dataset.names, dataset.labelled
        (['streets/streets_000000_000000'], 1)
    """

    def __init__(
        self, root: str | Path, split: str = "train", label_space: LabelSpace = CITYSCAPES_19
    ) -> None:
        self.label_space = label_space
        folder = Path(root) / "leftImg8bit" / split
        images = find_files(folder, (".png", ".jpg"), f"Cityscapes images of the split {split}")
        images = {
            name.removesuffix(_IMAGE): path
            for name, path in images.items()
            if name.endswith(_IMAGE)
        }
        if not images:
            raise FileNotFoundError(f"no file below {folder} is named *{_IMAGE}.png")
        self.names = list(images)
        self._images = list(images.values())
        label_folder = Path(root) / "gtFine" / split
        self._labels = [_find_label(label_folder, name) for name in self.names]
        unlabelled = [n for n, path in zip(self.names, self._labels, strict=True) if path is None]
        self.labelled = len(self.names) - len(unlabelled)
        if unlabelled and self.labelled:
            warnings.warn(
                f"{len(unlabelled)} of {len(self.names)} images of the split {split} have no label in "
                f"{label_folder}, such as {', '.join(unlabelled[:3])}",
                stacklevel=2,
            )
        self._ids = id_table(label_space.index_of_ids(CITYSCAPES_IDS))
        self._train_ids = id_table(label_space.index_of_ids(CITYSCAPES_TRAIN_IDS))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name; see `Sample`.

        Raises:
            ValueError: A file is damaged, the sizes differ, or the label has unknown ids.
        """
        image, path = self.image(index), self._labels[index]
        if path is None:
            return Sample(image, None, self.names[index])
        table = self._train_ids if path.stem.endswith(_TRAIN_IDS) else self._ids
        label = to_classes(read_stored_label(path), table, path)
        require_same_size(image, label, self._images[index], path)
        return Sample(image, label, self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return read_image(self._images[index])


def _find_label(folder: Path, name: str) -> Path | None:
    for suffix in (_IDS, _TRAIN_IDS):
        path = folder / f"{name}{suffix}.png"
        if path.exists():
            return path
    return None
