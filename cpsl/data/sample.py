"""Samples of a data set, and what all data sets have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from cpsl.data.class_tables import id_table, to_classes
from cpsl.data.labels import LabelSpace
from cpsl.data.orientation import Convention, fit_label
from cpsl.data.pictures import Picture, read_picture
from cpsl.data.reading import read_header, read_stored


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
    """Base of the data sets that read image and label files.

    Attributes:
        label_space: Classes.
        names: Key of each image.
        skipped: Files in the folders that are not read, with the reason.
        fingerprint: Describes how the files are read; equal for data sets that read a file in the same way.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        images: Mapping[str, Path],  # by key
        labels: Sequence[Path | None],  # of each image, None where there is none
        ids: Mapping[int, int] | None = None,  # stored value to class index or 255
        *,
        label_orientation: Convention = "auto",
        resize_labels: bool = False,
        value_range: tuple[float, float] | None = None,
        skipped: Mapping[Path, str] | None = None,
        how: object = None,  # what else determines how files are read
    ) -> None:
        self.label_space = label_space
        self.names = list(images)
        self.skipped = dict(skipped or {})
        self._images = list(images.values())
        self._labels = list(labels)
        self._table = id_table(ids or {})
        settings = type(self).__name__, label_space.names, label_orientation, resize_labels, value_range
        self.fingerprint = repr((*settings, how))
        self._label_orientation = label_orientation
        self._resize_labels = resize_labels
        self._value_range = value_range

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name; raises ValueError for damaged files, other sizes and unknown ids."""
        return self.sample(index, self.picture(index))

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return self.picture(index).pixels

    def picture(self, index: int) -> Picture:
        """Returns the image with what else its file holds."""
        return read_picture(self._images[index], self._value_range)

    def sample(self, index: int, picture: Picture) -> Sample:
        """Returns image, label and name, given what `picture` has returned."""
        size = picture.pixels.shape[1], picture.pixels.shape[2]
        return Sample(picture.pixels, self._fitted_label(index, size, picture.orientation), self.names[index])

    def label(self, index: int) -> Tensor | None:
        """Returns the label alone, (H, W) uint8, without decoding the image."""
        if self._labels[index] is None:
            return None
        return self._fitted_label(index, *read_header(self._images[index]))

    def stored_label(self, index: int) -> Tensor | None:
        """Returns the label as stored, (h, w) uint8: neither rotated nor resized to its image."""
        path = self._labels[index]
        return None if path is None else self._read_label(path)[0]

    def orientation(self, index: int) -> int:
        """Returns the EXIF orientation that is applied to an image, 1 to 8, 1 for none."""
        return read_header(self._images[index])[1]

    def files(self, index: int) -> tuple[Path, Path | None]:
        """Returns the files of an image and its label, None if it has no label."""
        return self._images[index], self._labels[index]

    def _fitted_label(self, index: int, size: tuple[int, int], orientation: int) -> Tensor | None:
        path = self._labels[index]
        if path is None:
            return None
        label, own = self._read_label(path)
        return fit_label(
            label,
            own,
            size,
            orientation,
            (self._images[index], path),
            convention=self._label_orientation,
            resize=self._resize_labels,
        )

    def _read_label(self, path: Path) -> tuple[Tensor, int]:
        """Returns class indices (H, W) as stored, and the label's own EXIF orientation."""
        stored, orientation = read_stored(path)
        return to_classes(stored, self._table, path), orientation


def read_label(dataset: SegmentationDataset, index: int) -> Tensor | None:
    """Returns the label alone; the image is decoded only if the data set has no method `label`."""
    read: Callable[[int], Tensor | None] | None = getattr(dataset, "label", None)
    return dataset[index].label if read is None else read(index)


def files_of(dataset: SegmentationDataset, index: int) -> tuple[Path | None, Path | None]:
    """Returns the files of an image and its label, None as far as the data set does not read any."""
    if isinstance(dataset, Subset):
        return files_of(dataset._dataset, dataset._indices[index])
    read: Callable[[int], tuple[Path, Path | None]] | None = getattr(dataset, "files", None)
    return (None, None) if read is None else read(index)


def picture_of(dataset: SegmentationDataset, index: int) -> Picture:
    """Returns an image, with what else its file holds if the data set reads files."""
    if isinstance(dataset, Subset):
        return picture_of(dataset._dataset, dataset._indices[index])
    return dataset.picture(index) if isinstance(dataset, Files) else Picture(dataset.image(index))


def sample_of(dataset: SegmentationDataset, index: int) -> tuple[Sample, Picture]:
    """Returns image, label and name, and what else the file of the image holds."""
    if isinstance(dataset, Subset):
        return sample_of(dataset._dataset, dataset._indices[index])
    if isinstance(dataset, Files):
        picture = dataset.picture(index)
        return dataset.sample(index, picture), picture
    sample = dataset[index]
    return sample, Picture(sample.image)


def stored_label(dataset: SegmentationDataset, index: int) -> Tensor | None:
    """Returns a label without its image; None if there is none, or if the data set reads both together."""
    if isinstance(dataset, Subset):
        return stored_label(dataset._dataset, dataset._indices[index])
    read: Callable[[int], Tensor | None] | None
    read = getattr(dataset, "stored_label", None) or getattr(dataset, "label", None)
    return None if read is None else read(index)


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
        self.skipped: dict[Path, str] = getattr(dataset, "skipped", {})
        self.fingerprint: str = getattr(dataset, "fingerprint", "")
        self._dataset: Any = dataset
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name."""
        sample: Sample = self._dataset[self._indices[index]]
        return sample

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        image: Tensor = self._dataset.image(self._indices[index])
        return image

    def label(self, index: int) -> Tensor | None:
        """Returns the label alone, (H, W) uint8."""
        return read_label(self._dataset, self._indices[index])

    def orientation(self, index: int) -> int:
        """Returns the EXIF orientation of an image, of a data set that reads files."""
        orientation: int = self._dataset.orientation(self._indices[index])
        return orientation

    def files(self, index: int) -> tuple[Path, Path | None]:
        """Returns the files of an image and its label, of a data set that reads files."""
        files: tuple[Path, Path | None] = self._dataset.files(self._indices[index])
        return files
