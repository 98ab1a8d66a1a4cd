"""Copies of large images at the size of training, since decoding large files dominates its time."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cpsl._internal.files import write_atomically
from cpsl.data.labels import LabelSpace
from cpsl.data.orientation import resize_label
from cpsl.data.pictures import read_image
from cpsl.data.reading import read_header, read_stored_label
from cpsl.data.sample import Files, Sample, Subset
from cpsl.data.training import whole_image


class CachedDataset:
    """Images and labels of a data set, resized to one size and stored in a folder when they are first read.

    Images that are not larger than the size are read as they are. A copy is made again if the file has
    another size or time, or is read with other settings; labels are resized to the nearest neighbor. Copies
    of earlier files remain: the folder may be deleted at any time.

    Args:
        dataset: Data set that reads files.
        folder: Folder of the copies; several data sets may share it.
        size: (H, W) of the copies. Training resizes whole images to its `full_size` anyway, whatever their
            aspect ratio.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, write_streets
        >>> root = tempfile.mkdtemp()
        >>> write_streets(root, layout="gta5", style="game", count=1, size=(64, 128))
        >>> dataset = CachedDataset(GTA5(root), Path(root, "cache"), (32, 64))
        >>> dataset[0].image.shape, dataset[0].label.shape, len(list(Path(root, "cache").rglob("*.png")))
        (torch.Size([3, 32, 64]), torch.Size([32, 64]), 2)
    """

    label_space: LabelSpace
    names: list[str]

    def __init__(self, dataset: Files | Subset, folder: Path, size: tuple[int, int]) -> None:
        self.label_space = dataset.label_space
        self.names = dataset.names
        self._dataset = dataset
        self._folder = folder
        self._size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name."""
        if not self._is_large(index):
            return self._dataset[index]
        image, label = self._path(index, "image"), self._path(index, "label")
        if not (image.exists() and (label.exists() or self._dataset.files(index)[1] is None)):
            sample = self._dataset[index]
            _write(image, whole_image(sample.image, self._size))
            if sample.label is not None:
                _write(label, resize_label(sample.label, self._size))
        return Sample(self.image(index), self.label(index), self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        if not self._is_large(index):
            return self._dataset.image(index)
        path = self._path(index, "image")
        if not path.exists():
            _write(path, whole_image(self._dataset.image(index), self._size))
        with _naming_copy():
            return read_image(path)

    def label(self, index: int) -> Tensor | None:
        """Returns the label alone, (H, W) uint8."""
        path = self._path(index, "label")
        if self._is_large(index) and path.exists():
            with _naming_copy():
                return torch.from_numpy(read_stored_label(path))
        label = self._dataset.label(index)
        return resize_label(label, self._size) if label is not None and self._is_large(index) else label

    def _is_large(self, index: int) -> bool:
        (height, width), _ = read_header(self._dataset.files(index)[0])
        return height > self._size[0] and width > self._size[1]

    def _path(self, index: int, kind: str) -> Path:
        """Returns the file of a copy; its name depends on all that the copy depends on."""
        key = [kind, self._size, self._dataset.fingerprint]
        for path in self._dataset.files(index)[: 1 if kind == "image" else 2]:
            if path is not None:
                status = path.stat()
                key.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        return self._folder / digest[:2] / f"{digest}.png"


@contextmanager
def _naming_copy() -> Iterator[None]:
    """Adds to the errors of a damaged copy what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}. It is a copy in the cache: delete it, and it is made again") from error


def _write(path: Path, picture: Tensor) -> None:
    channels_last = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
    content = Image.fromarray(channels_last.contiguous().numpy())
    write_atomically(path, partial(content.save, format="PNG", compress_level=1))
