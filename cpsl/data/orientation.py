"""Labels of pictures that EXIF rotates, and labels of another size than their image."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from cpsl.data.reading import rotate

Convention = Literal["auto", "rotated", "stored"]
"""Whether labels belong to the rotated picture or to its stored pixels; see `fit_label`."""


class OrientationError(ValueError):
    """Nothing tells whether a label belongs to the rotated picture or to its stored pixels."""


def fit_label(
    label: Tensor,
    own_orientation: int,
    size: tuple[int, int],
    orientation: int,
    paths: tuple[Path, Path],
    *,
    convention: Convention = "auto",
    resize: bool = False,
) -> Tensor:
    """Returns a label on the pixels of its image as displayed.

    Labels drawn over the displayed picture belong to the rotated image; the label's own orientation, if it
    has any, is applied. Labels that were made from the stored pixels are rotated like the image. "auto" takes
    the one of the image's size, and refuses to guess if both have it and differ, as after 180 degrees. If
    neither has it, but the label as stored, its orientation is a copy of the image's and is not applied.

    Args:
        label: (h, w) as stored.
        own_orientation: EXIF orientation of the label, 1 for none.
        size: (H, W) of the image as displayed.
        orientation: EXIF orientation of the image, 1 for none.
        paths: Files of image and label, for errors.
        convention: "rotated", "stored" or "auto".
        resize: Whether a label of another size is resized, to the nearest neighbor, or refused. Its shape
            may differ by rounding only.

    Raises:
        ValueError: The sizes differ.
        OrientationError: The convention cannot be recognized.

    Example:
        >>> label, paths = torch.tensor([[1, 2]]), (Path("a.jpg"), Path("a.png"))
        >>> fit_label(label, 1, (2, 1), 6, paths).tolist()  # of the size of the stored pixels
        [[1], [2]]
    """
    candidates = list[Tensor]()
    if convention != "stored":
        candidates.append(_rotated(label, own_orientation))
    if convention != "rotated":
        candidates.append(_rotated(label, orientation))
    fitting = [found for found in candidates if found.shape == size]
    if not fitting and convention == "auto" and own_orientation == orientation and label.shape == size:
        return label
    if not fitting and resize:
        fitting = [found for found in candidates if _has_shape(found, size)]
    if not fitting:
        _raise_sizes(label, own_orientation, size, orientation, paths, convention)
    first, *others = fitting
    if any(not torch.equal(first, other) for other in others):
        raise OrientationError(
            f"{paths[0]} is rotated by EXIF (orientation {orientation}, its label {own_orientation}), and "
            f"nothing tells whether its label {paths[1]} is: set label_orientation to "
            '"rotated" if labels belong to the displayed picture, or to "stored" if they belong to the '
            "stored pixels"
        )
    return first if first.shape == size else resize_label(first, size)


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a label (h, w) to the size (H, W), to the nearest neighbor of each pixel's center.

    Example:
        >>> resize_label(torch.tensor([[1, 2]]), (2, 4)).tolist()
        [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    rows, columns = (
        torch.tensor((2 * np.arange(wanted) + 1) * stored // (2 * wanted))
        for wanted, stored in zip(size, label.shape, strict=True)
    )
    return label[rows][:, columns]


def _rotated(label: Tensor, orientation: int) -> Tensor:
    return label if orientation == 1 else torch.from_numpy(rotate(label.numpy(), orientation).copy())


def _has_shape(label: Tensor, size: tuple[int, int]) -> bool:
    """Returns whether a label and an image (H, W) differ in scale alone, up to rounding to whole pixels."""
    (h, w), (height, width) = label.shape, size
    return abs(h * width - w * height) < max(height + width, h + w)


def _raise_sizes(
    label: Tensor,
    own_orientation: int,
    size: tuple[int, int],
    orientation: int,
    paths: tuple[Path, Path],
    convention: Convention,
) -> NoReturn:
    image, path = paths
    of_image = f" after its EXIF orientation {orientation}" if orientation != 1 else ""
    drawn, made = (_rotated(label, turn) for turn in (own_orientation, orientation))
    found, of_label = drawn, f" after its own EXIF orientation {own_orientation}"
    if convention == "stored":
        found, of_label = made, " after the same orientation"
    if found.shape == label.shape:
        of_label = ""
    possible = {"rotated": [drawn], "stored": [made], "auto": [drawn, made]}[convention]
    if convention == "rotated" and made.shape == size:
        hint = 'label_orientation = "stored" is for labels of the stored pixels'
    elif convention == "stored" and drawn.shape == size:
        hint = 'label_orientation = "rotated" is for labels of the displayed picture'
    elif own_orientation != 1 and label.shape == size:
        hint = "remove the EXIF orientation of labels that were drawn over the displayed picture"
    elif any(_has_shape(each, size) for each in possible):
        hint = "resize_labels = true accepts labels of another size"
    elif _has_shape(found.T, size):
        hint = "its sides are swapped: rotate or transpose it"
    else:
        hint = "its sides have another ratio: replace it by the label of the whole image"
    raise ValueError(
        f"{image} is {size[1]}x{size[0]}{of_image}, but its label {path} is "
        f"{found.shape[1]}x{found.shape[0]}{of_label}; {hint}"
    )


@runtime_checkable
class HasOrientation(Protocol):
    """Protocol of a data set of files: `orientation` returns the EXIF orientation of an image."""

    names: list[str]

    def orientation(self, index: int) -> int:
        """Returns 1 to 8, 1 for none."""
        ...


def rotated_images(
    dataset: HasOrientation, progress: Callable[[Iterable[int]], Iterable[int]] = iter, threads: int = 4
) -> dict[str, int]:
    """Returns the names of the images that EXIF rotates, each with its orientation 2 to 8.

    Only headers are read; damaged files are skipped.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from cpsl.data import SegmentationFolder
        >>> folder, exif = Path(tempfile.mkdtemp()), Image.Exif()
        >>> exif[0x0112] = 3
        >>> Image.new("RGB", (8, 4)).save(folder / "a.jpg", exif=exif)
        >>> rotated_images(SegmentationFolder(folder))
        {'a': 3}
    """

    def read(index: int) -> int:
        try:
            return dataset.orientation(index)
        except (OSError, ValueError):
            return 1

    indices = range(len(dataset.names))
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(read, indices)
        return {dataset.names[i]: o for i, o in zip(progress(indices), found, strict=True) if o != 1}
