"""The settings of one domain: where its images and labels are, and how they are read."""

import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, with_config

from cpsl.app.ranges import Amount, Byte, Location, OfFiles, Positive, Size, ValueRange
from cpsl.data.names import Pattern
from cpsl.data.values import parse_color


def _check_stored(value: int | str) -> int | str:
    """Returns a stored number as int, a color as text; keys of a TOML table are texts."""
    if isinstance(value, int) or re.fullmatch(r"-?(0|[1-9]\d{0,4})", value):
        return int(value)
    parse_color(value)
    return value


def _check_pattern(pattern: str) -> str:
    Pattern(pattern)
    return pattern


Stored = Annotated[int | str, AfterValidator(_check_stored)]
Ids = MutableMapping[Stored, int | str]  # tyro makes an option of each key of a dict
FilePattern = Annotated[str, AfterValidator(_check_pattern)]


@with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))
@dataclass(frozen=True)
class Domain:
    """Images of one domain, and their labels if there are any."""

    dataset: Literal["gta5", "synthia", "cityscapes", "folder"] = "folder"
    """Layout of the files: "folder" reads `images` and `labels`, the others read `root`."""
    root: Location | None = None
    """Folder of gta5, synthia or cityscapes, as unpacked."""
    split: str = "train"
    """Split of cityscapes: train, val or test."""
    images: Location | None = None
    """Folder of images, searched recursively."""
    labels: Location | None = None
    """Folder of label images, named like the images if there are no patterns."""
    image_pattern: FilePattern = "*"
    """Names of the images in their folder, such as "*_image.png"; see docs/your_data.md."""
    label_pattern: FilePattern = "*"
    """Names of the labels, such as "*_annotation.png": stars stand for the same text in both patterns."""
    ids: Ids = field(default_factory=dict)
    """Stored number, or color "#rrggbb", to class name or index, 255 to ignore; omit it if they are equal."""
    first_id: Amount = 0
    """Without `ids`: stored number of the first class; smaller numbers are ignored."""
    tolerance: Byte = 0
    """Largest difference per channel from the numbers or colors of `ids`, for inexact labels such as JPEG."""
    ignore_unknown: bool = False
    """Ignore pixels whose stored number or color has no class, which are errors otherwise."""
    skip_unpaired: bool = False
    """Skip images and labels without a partner."""
    resize_labels: bool = False
    """Resize labels of another size than their image, which are errors otherwise."""
    label_orientation: Literal["auto", "rotated", "stored"] = "auto"
    """Labels follow pictures as rotated by EXIF, or their stored pixels; auto recognizes it by the size."""
    value_range: ValueRange | None = None
    """Stored values that mean black and white, for gray images of more than 8 bits or of decimal numbers."""
    cache: Location | None = None
    """Folder for copies of large images at training size, which are then decoded once; none if omitted."""
    max_images: Amount = 0
    """Use only this many images, evenly spaced; 0 uses all."""
    streets: Amount = 0
    """Generate this many street scenes in `root` first (gta5 and cityscapes); 0 generates none."""
    streets_size: tuple[int, int] = (128, 256)
    """Height and width of the generated scenes."""
    streets_seed: int = 0
    """Seed of the generated scenes; the seed of the run does not affect them."""
    weight: Positive | None = None
    """Sources: how often they are sampled; the square root of the number of images if all omit it."""
    from_target: bool = False
    """Sources: these are labeled images of the target, without color transfer and in its size."""
    size: OfFiles[Size | None] = None
    """Sources: size to which these images are resized, in place of `views.source_size`."""

    @property
    def given(self) -> bool:
        """Whether the domain is set at all."""
        return self.root is not None or self.images is not None
