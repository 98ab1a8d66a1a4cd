"""Sizes of images and crops that the settings leave open: those of the person's own images."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from cpsl.app.config import Config
from cpsl.app.domain import Domain
from cpsl.app.ranges import Size
from cpsl.app.settings import override
from cpsl.data import SegmentationDataset
from cpsl.data.files import find_files
from cpsl.data.names import IMAGE_SUFFIXES, Pattern
from cpsl.data.reading import read_header
from cpsl.data.sample import files_of

LOOKED_AT = 25
"""Images of a folder whose sizes are read, evenly spaced."""
SAME_SHAPE = 1.05
"""Aspect ratios of source and target up to this factor apart count as equal."""


def choose_sizes(config: Config, given: Collection[str]) -> Config:
    """Returns the settings with sizes that fit the images of the target, where they are folders of images.

    The defaults are the sizes of the paper, which would distort other images. Nothing is chosen if the
    images cannot be read: the check of the settings names the reason.

    Args:
        config: All settings.
        given: Dotted names of the settings that a file or an option sets; these are kept.
    """
    if config.target.dataset != "folder":
        return config
    chosen: dict[str, Size] = {}
    full_size = config.views.full_size
    if "views.full_size" not in given:
        if (shape := _shape(config.target)) is None:
            return config
        full_size = chosen["full_size"] = fit_size(shape, config.views.pixels)
        if "views.source_size" not in given:
            sizes = [_own_size(source, shape, full_size) for source in config.sources]
            if not config.more_sources and sizes[0]:
                chosen["source_size"] = sizes[0]
            elif config.more_sources:
                config = _with_sizes(config, sizes)
    chosen["crop"] = fit_crop(full_size)
    views = {"width": full_size[1], **chosen}
    views = {name: value for name, value in views.items() if f"views.{name}" not in given}
    return override(config, {"views": views}, "sizes of the images")


def _own_size(source: Domain, target: Size, full_size: Size) -> Size | None:
    """Returns the size of source images whose shape is not that of the target; None for others."""
    shape = _shape(source) if source.dataset == "folder" and not source.from_target else None
    return None if shape is None or is_same_shape(shape, target) else size_at_width(shape, full_size[1])


def _with_sizes(config: Config, sizes: Sequence[Size | None]) -> Config:
    """Returns the settings with the sizes of the sources that have none."""
    first, *others = (replace(s, size=s.size or size) for s, size in zip(config.sources, sizes, strict=True))
    return replace(config, source=first, more_sources=tuple(others))


def fit_size(shape: Size, pixels: int) -> Size:
    """Returns the size at which images (H, W) are processed: their own, or a smaller one of their shape.

    At least 16 pixels each, as settings require.

    Example:
        >>> fit_size((240, 320), 80_000), fit_size((3000, 4000), 80_000)
        ((240, 320), (240, 320))
    """
    height, width = shape
    if height * width <= pixels:
        return max(height, 16), max(width, 16)
    factor = (pixels / (height * width)) ** 0.5
    return _multiple(height * factor), _multiple(width * factor)


def is_same_shape(first: Size, second: Size) -> bool:
    """Returns whether the aspect ratios of two sizes are nearly equal."""
    return 1 / SAME_SHAPE < (first[0] * second[1]) / (first[1] * second[0]) < SAME_SHAPE


def size_at_width(shape: Size, width: int) -> Size:
    """Returns the size of images of a shape (H, W) that are resized to a width; at least 16 pixels high."""
    return max(round(width * shape[0] / shape[1]), 16), width


def fit_crop(full_size: Size) -> Size:
    """Returns the size of training crops for whole images (H, W): four fifths, to a multiple of 32.

    That is the stride of most networks, whose maps then come out even. Sides below 160 pixels are cropped to
    a multiple of 16.

    Example:
        >>> fit_crop((240, 320)), fit_crop((512, 1024)), fit_crop((60, 120))
        ((192, 256), (416, 832), (48, 96))
    """
    height, width = map(_crop_side, full_size)
    return height, width


def _crop_side(extent: int) -> int:
    step = 32 if extent >= 160 else 16
    return max(min(round(0.8 * extent / step), extent // step), 1) * step


def _multiple(extent: float) -> int:
    """Returns the nearest multiple of 16, for which the maps of most networks come out even; at least 16."""
    return max(round(extent / 16), 1) * 16


def median_shape(dataset: SegmentationDataset) -> Size | None:
    """Returns the median height and width of the images of a data set; None if they cannot be read."""
    return _median_shape([path for i in range(len(dataset)) if (path := files_of(dataset, i)[0])])


def _shape(domain: Domain) -> Size | None:
    """Returns the median height and width of the images of a folder; None if they cannot be read."""
    if domain.images is None:
        return None
    try:
        pattern = None if domain.image_pattern == "*" else Pattern(domain.image_pattern)
        files = find_files(domain.images, IMAGE_SUFFIXES, "images", pattern=pattern)
    except (OSError, ValueError):
        return None
    return _median_shape([*files.values()])


def _median_shape(files: Sequence[Path]) -> Size | None:
    count = min(len(files), LOOKED_AT)
    try:
        shapes = [read_header(files[i * len(files) // count])[0] for i in range(count)]
        return round(median(h for h, _ in shapes)), round(median(w for _, w in shapes))
    except (OSError, ValueError):  # of no images as well
        return None
