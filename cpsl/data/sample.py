"""What a data set of images and labels gives."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from cpsl.data.labels import LabelSpace


class Sample(NamedTuple):
    """One image with its label, as stored, before any view is taken of it.

    Attributes:
        image: (3, H, W) uint8, RGB, native size.
        label: (H, W) uint8 class indices, 255 where ignored; None where there is no label.
        name: Key of the image, the same in every run and on every machine.
    """

    image: Tensor
    label: Tensor | None
    name: str


@runtime_checkable
class SegmentationDataset(Protocol):
    """What the rest of the library asks of a data set; a class of one's own needs no base class."""

    label_space: LabelSpace
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name."""
        ...

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8, without decoding the label."""
        ...


class Subset:
    """Some of the images of a data set.

    Args:
        dataset: Any data set of this library, or of the same protocol.
        indices: Which images, in which order.

    Raises:
        ValueError: There is no image of an index.

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
            raise ValueError(f"the images are 0...{len(dataset) - 1}, there is none of {wrong[:5]}")
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
