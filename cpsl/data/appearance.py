"""What images show about how they should be read: the range of their values, label maps among them."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cpsl.data.matching import pattern_of_some, propose_patterns
from cpsl.data.pictures import Numbers, Picture, Range

GRID = 64
"""Rows and columns of a picture, at least, that are examined, evenly spaced; fewer than twice as many."""

OUTLIERS = 0.001
"""Share of the examined pixels on both ends that may lie outside of the range, such as defective ones."""

COLORS = 32
"""Most colors of a label map; their copies by lossy compression are rare."""

CUT_ROWS = 16
"""Last rows that are compared: decoders fill the rest of a picture that is cut off with one color."""


class Appearance(NamedTuple):
    """What an image shows about how it should be read.

    Attributes:
        bits: Bits per channel in the file: 8 to 16, or 32.
        gray: Whether it is gray, of more than 8 bits.
        low: Smallest value without outliers, as stored for gray pictures, else of the pixels read.
        high: Largest value without outliers.
        is_label_like: Whether it has few colors in flat areas, like a label map; None if it has one color.
        ends_flat: Whether its last rows have one color, other than black and white and the rest.
        fourth: Extent of the values of a channel that is dropped; see `Picture`.
        colorless: Whether red, green and blue are the same.
        several: Whether the file holds further pages or frames, which are not read.
    """

    bits: int
    gray: bool
    low: float
    high: float
    is_label_like: bool | None
    ends_flat: bool = False
    fourth: Range | None = None
    colorless: bool = False
    several: bool = False


def appearance_of(picture: Picture) -> Appearance:
    """Examines a sample of the pixels of an image.

    Example:
        >>> import torch
        >>> stripes = torch.arange(64).div(16, rounding_mode="floor").expand(3, 64, 64).to(torch.uint8)
        >>> appearance_of(Picture(stripes)).is_label_like
        True
    """
    pixels = picture.pixels.numpy()
    here, beside = _sample(pixels if picture.values is None else picture.values[None])
    low, high = _extent(here)
    last = pixels[:, -CUT_ROWS:]
    ends_flat = (
        pixels.shape[1] > 2 * CUT_ROWS
        and bool((last == last[:, :1, :1]).all())
        and not bool((pixels == last[:, :1, :1]).all())
        and set(last[:, 0, 0].tolist()) not in ({0}, {255})
    )
    like = _is_label_like(here, beside)
    rows, columns = (max(size // GRID, 1) for size in pixels.shape[1:])
    colors = pixels[:, ::rows, ::columns]
    colorless = bool((colors == colors[:1]).all())
    cut = ends_flat and not like
    gray, fourth, several = picture.values is not None, picture.fourth, picture.several
    return Appearance(picture.bits, gray, low, high, like, cut, fourth, colorless, several)


def appearance_of_numbers(values: Numbers) -> Appearance:
    """Examines gray numbers (H, W) of 32 bits that need a `value_range` to be an image."""
    here, _ = _sample(values[None])
    return Appearance(32, True, *_extent(here[np.isfinite(here)][None]), is_label_like=None)


def _sample(channels: Numbers) -> tuple[Numbers, Numbers]:
    """Returns pixels (C, N) of a picture (C, H, W), and their neighbors to the right."""
    rows = max(channels.shape[1] // GRID, 1)
    columns = max(channels.shape[2] // GRID, 1)
    part = channels[:, rows // 2 :: rows]
    here, beside = part[:, :, :-1:columns], part[:, :, 1::columns]
    if not here.size:
        here = beside = part
    return here.reshape(len(part), -1), beside.reshape(len(part), -1)


def _extent(sample: Numbers) -> Range:
    if not sample.size:
        return math.nan, math.nan
    ordered = np.sort(sample, axis=None)
    few = int(OUTLIERS * ordered.size)
    return float(ordered[few]), float(ordered[-1 - few])


def _is_label_like(here: Numbers, beside: Numbers) -> bool | None:
    colors = here[0] if len(here) == 1 else here.T.astype(np.int32) @ (1, 1 << 8, 1 << 16)
    counts = np.unique(colors, return_counts=True)[1]
    if len(counts) < 2:
        return None
    most = np.sort(counts)[-COLORS:].sum() / counts.sum()
    flat = (here == beside).all(axis=0).mean()
    return bool(most > 0.99 and flat > 0.85)


def value_range_of(appearances: Iterable[Appearance | None], value_range: Range | None) -> Range | None:
    """Returns the `value_range` that gray images of more than 8 bits need, None if it is as it should be.

    It is wrong if the values of all these images fill less than a quarter of it, so that they are nearly
    black or without contrast, or if they exceed it by more than a quarter, so that they are clipped.

    Args:
        appearances: Of the images of a data set.
        value_range: With which they are read; None is the range of their bits.

    Example:
        >>> dark = Appearance(bits=16, gray=True, low=12, high=3071, is_label_like=False)
        >>> value_range_of([dark], None), value_range_of([dark], (0, 4095))
        ((0, 4095), None)
    """
    found = [look for look in appearances if look is not None and look.gray and math.isfinite(look.low)]
    if not found:
        return None
    low, high = min(look.low for look in found), max(look.high for look in found)
    bits = max(look.bits for look in found)
    unscaled = bits == 32 and value_range is None
    black, white = value_range or (0, 2**bits - 1)
    quarter = (white - black) / 4
    if not unscaled and high - low >= quarter and low >= black - quarter and high <= white + quarter:
        return None
    proposed = _round_range(low, high)
    return proposed if proposed != value_range else None


def _round_range(low: float, high: float) -> Range:
    """Returns a range that includes two values: from 0 to 1 or to all ones of some bits, where it is filled.

    >>> _round_range(0.1, 0.7), _round_range(3, 900), _round_range(27_300, 30_500.5)
    ((0.0, 1.0), (0, 1023), (27300, 30501))
    """
    if low < 0 or low > high / 2:
        return math.floor(low), math.ceil(high) + (math.floor(low) == math.ceil(high))
    if high <= 1 and (high > 0.25 or not high):
        return 0.0, 1.0
    if high < 1:
        return 0.0, float(f"{1.05 * high:.2g}")  # not less than `high`
    return 0, 2 ** math.ceil(math.log2(high + 1)) - 1


class LabelMaps(NamedTuple):
    """Label maps among the images of a folder.

    Attributes:
        names: Their relative paths.
        image_pattern: Pattern of the images alone, None if there is none.
    """

    names: list[str]
    image_pattern: str | None


def label_maps_among(
    names: Sequence[str], appearances: Sequence[Appearance | None], others: Collection[str] = ()
) -> LabelMaps | None:
    """Returns the images that seem to be label maps of the others, None if there are none.

    They have few colors in flat areas, and differ from the others in folder, extension, or the end of the
    name, are named like them otherwise, or are as many, and several. If all images look so, they are all
    returned.

    Args:
        names: Relative paths of the images with slashes.
        appearances: Of each image, None if it cannot be read.
        others: Relative paths of further files in the folder that are not read.

    Example:
        >>> photo, flat = (Appearance(8, False, 0, 255, is_label_like=like) for like in (False, True))
        >>> label_maps_among(["1.jpg", "1_L.png", "2.jpg", "2_L.png"], [photo, flat, photo, flat])
        LabelMaps(names=['1_L.png', '2_L.png'], image_pattern='*.jpg')
    """
    looks = [None if look is None else look.is_label_like for look in appearances]
    maps = [name for name, like in zip(names, looks, strict=True) if like]
    images = [name for name, like in zip(names, looks, strict=True) if like is False]
    if not maps:
        return None
    if not images:
        return LabelMaps(maps, None)
    pattern = pattern_of_some(images, [*maps, *others])
    twins = propose_patterns(maps, images)
    return LabelMaps(maps, pattern) if pattern or twins or len(maps) >= max(len(images), 2) else None
