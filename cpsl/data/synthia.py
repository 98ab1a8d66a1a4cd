"""SYNTHIA-RAND-CITYSCAPES (Ros et al., 2016)."""

from pathlib import Path

from torch import Tensor

from cpsl.data.labels import CITYSCAPES_16, SYNTHIA_IDS, LabelSpace
from cpsl.data.reading import (
    find_files,
    id_table,
    labels_of,
    read_image,
    read_png16,
    require_same_size,
    to_classes,
)
from cpsl.data.sample import Sample


class Synthia:
    """Images of a simulator, as unpacked: `RGB/` and `GT/LABELS/`.

    The labels are 16-bit PNGs with the class in the first channel and the instance in the second.

    Args:
        root: Folder with `RGB` and `GT/LABELS`.
        label_space: Classes to tell apart, by Cityscapes' names: 16, 13 or others; the rest is ignored.

    Attributes:
        names: Key of each image, such as "0000001".

    Raises:
        FileNotFoundError: A folder is missing or empty, or images have no labels; some are named.

    Example:
        >>> dataset = Synthia("data/synthia")  # doctest: +SKIP
        >>> dataset[0].image.shape  # doctest: +SKIP
        torch.Size([3, 760, 1280])
    """

    def __init__(self, root: str | Path, label_space: LabelSpace = CITYSCAPES_16) -> None:
        self.label_space = label_space
        images = find_files(Path(root) / "RGB", (".png", ".jpg"), "SYNTHIA images")
        labels = find_files(Path(root) / "GT" / "LABELS", (".png",), "SYNTHIA labels")
        self.names = list(images)
        self._images = list(images.values())
        self._labels = labels_of(self.names, labels, Path(root) / "GT" / "LABELS")
        self._table = id_table(label_space.index_of_ids(SYNTHIA_IDS))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name; see `Sample`.

        Raises:
            ValueError: A file is damaged, the sizes differ, or the label has unknown ids.
        """
        image, path = self.image(index), self._labels[index]
        label = to_classes(read_png16(path), self._table, path)
        require_same_size(image, label, self._images[index], path)
        return Sample(image, label, self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return read_image(self._images[index])
