"""What a data set of images and labels gives."""

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
