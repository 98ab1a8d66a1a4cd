"""Cityscapes (Cordts et al., 2016), and other data in its layout."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from cpsl.data.class_tables import id_table, to_classes
from cpsl.data.files import find_files
from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS, LabelSpace
from cpsl.data.names import IMAGE_SUFFIXES
from cpsl.data.reading import read_stored
from cpsl.data.sample import Files

_IMAGE, _IDS, _TRAIN_IDS = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds"


class Cityscapes(Files):
    """Street images as unpacked: `leftImg8bit/<split>/<city>/` and `gtFine/<split>/<city>/`.

    Labels are optional: where there is none, `label` is None, with a warning if other images have one.
    `labelIds` have priority over `labelTrainIds`.

    Args:
        root: Folder with `leftImg8bit` and perhaps `gtFine`.
        split: "train", "val" or "test".
        label_space: Classes by Cityscapes' names; others are ignored.

    Attributes:
        names: Key of each image, such as "aachen/aachen_000000_000019".
        labeled: Number of images with a label.

    Raises:
        FileNotFoundError: There are no images.

    Example:
        >>> import tempfile
        >>> from cpsl.data.streets import write_streets
        >>> root = Path(tempfile.mkdtemp())
        >>> write_streets(root, layout="cityscapes", style="real", count=1, split="val", size=(64, 128))
        >>> dataset = Cityscapes(root, "val")
        >>> dataset.names, dataset.labeled
        (['streets/streets_000000_000000'], 1)
    """

    def __init__(
        self, root: str | Path, split: str = "train", label_space: LabelSpace = CITYSCAPES_19
    ) -> None:
        folder, label_folder = Path(root) / "leftImg8bit" / split, Path(root) / "gtFine" / split
        skipped: dict[Path, str] = {}
        found = find_files(folder, IMAGE_SUFFIXES, f"Cityscapes images of the split {split}", skipped=skipped)
        images = {n.removesuffix(_IMAGE): path for n, path in found.items() if n.endswith(_IMAGE)}
        others = (path for n, path in found.items() if not n.endswith(_IMAGE))
        skipped |= dict.fromkeys(others, f"its name does not end in {_IMAGE}")
        if not images:
            raise FileNotFoundError(f"no file below {folder} is named *{_IMAGE}.png")
        labels = _find_labels(label_folder, images)
        super().__init__(
            label_space, images, labels, label_space.index_of_ids(CITYSCAPES_IDS), skipped=skipped
        )
        self._train_ids = id_table(label_space.index_of_ids(CITYSCAPES_TRAIN_IDS))
        unlabeled = [n for n, path in zip(images, labels, strict=True) if path is None]
        self.labeled = len(images) - len(unlabeled)
        if unlabeled and self.labeled:
            warnings.warn(
                f"{len(unlabeled)} of {len(images)} images of the split {split} have no label in "
                f"{label_folder}, such as {', '.join(unlabeled[:3])}",
                stacklevel=2,
            )

    def _read_label(self, path: Path) -> tuple[Tensor, int]:
        table = self._train_ids if path.stem.endswith(_TRAIN_IDS) else self._table
        stored, orientation = read_stored(path)
        return to_classes(stored, table, path), orientation


def _find_labels(folder: Path, names: Iterable[str]) -> list[Path | None]:
    """Finds the label of each image; names are compared like those of images, see `find_files`."""
    try:
        found = find_files(folder, (".png",), "labels")
    except FileNotFoundError:
        found = {}
    return [found.get(f"{name}{_IDS}") or found.get(f"{name}{_TRAIN_IDS}") for name in names]
