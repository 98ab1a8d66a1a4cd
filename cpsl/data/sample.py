"""Samples of a data set, and what all data sets have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from cpsl.data.labels import LabelSpace
from cpsl.data.reading import id_table, read_image, read_stored_label, require_same_size, to_classes


class Sample(NamedTuple):
    """One image with its label, as stored.

    Attributes:
        image: (3, H, W) uint8, RGB, in its native size.
        label: (H, W) uint8 class indices, 255 where ignored; None if there is no label.
        name: Key of the image, the same on every machine.
    """

    image: Tensor
    label: Tensor | None
    name: str


@runtime_checkable
class SegmentationDataset(Protocol):
    """Protocol of a data set; a class of your own needs no base class."""

    label_space: LabelSpace
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name."""
        ...

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8, without decoding the label."""
        ...


class Files:
    """Base of the data sets that read image and label files."""

    def __init__(
        self,
        label_space: LabelSpace,
        images: Mapping[str, Path],  # by key
        labels: Sequence[Path | None],  # of each image, None where there is none
        ids: Mapping[int, int],  # stored value to class index or 255
    ) -> None:
        self.label_space = label_space
        self.names = list(images)
        self._images = list(images.values())
        self._labels = list(labels)
        self._table = id_table(ids)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name; raises ValueError for damaged files, other sizes and unknown ids."""
        image, path, label = self.image(index), self._labels[index], None
        if path is not None:
            label = self._read_label(path)
            require_same_size(image, label, self._images[index], path)
        return Sample(image, label, self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return read_image(self._images[index])

    def label(self, index: int) -> Tensor | None:
        """Returns the label alone, (H, W) uint8, without decoding the image."""
        path = self._labels[index]
        return None if path is None else self._read_label(path)

    def _read_label(self, path: Path) -> Tensor:
        return to_classes(read_stored_label(path), self._table, path)


def read_label(dataset: SegmentationDataset, index: int) -> Tensor | None:
    """Returns the label alone; the image is decoded only if the data set has no method `label`."""
    read: Callable[[int], Tensor | None] | None = getattr(dataset, "label", None)
    return dataset[index].label if read is None else read(index)


class Subset:
    """Some images of a data set.

    Args:
        dataset: Any data set.
        indices: Indices of the images, in their order.

    Raises:
        ValueError: An index is out of range.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, write_streets
        >>> root = tempfile.mkdtemp()
        >>> write_streets(root, layout="gta5", style="game", count=4, size=(64, 128))
        >>> Subset(GTA5(root), [0, 2]).names
        ['00001', '00003']
    """

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        wrong = [index for index in indices if not 0 <= index < len(dataset)]
        if wrong:
            raise ValueError(f"indices must lie in 0...{len(dataset) - 1}, got {wrong[:5]}")
        self.label_space = dataset.label_space
        self.names = [dataset.names[index] for index in indices]
        self._dataset = dataset
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name."""
        return self._dataset[self._indices[index]]

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return self._dataset.image(self._indices[index])

    def label(self, index: int) -> Tensor | None:
        """Returns the label alone, (H, W) uint8."""
        return read_label(self._dataset, self._indices[index])
