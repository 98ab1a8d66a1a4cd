"""Images as RGB of 8 bits, with what their files hold beyond that.

Errors name the file: FileNotFoundError if it is missing, ValueError if it is damaged or of another format.
"""

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cpsl.data.completeness import find_invented
from cpsl.data.formats import PICTURES, find_flaw, naming
from cpsl.data.reading import (
    ORIENTATION,
    codec_of,
    orientation_of_tiff,
    refuse_misread,
    unsigned_numbers,
    valid_orientation,
    white_of_ppm,
)

Numbers = npt.NDArray[np.integer] | npt.NDArray[np.floating]
Range = tuple[float, float]
"""Stored values of black and white."""


class Picture(NamedTuple):
    """An image as it is used, and what its file holds.

    Attributes:
        pixels: (3, H, W) uint8, RGB.
        orientation: EXIF orientation that was applied, 1 to 8, 1 for none.
        bits: Bits per channel in the file: 8 (or less) to 16, or 32.
        values: (H, W) numbers of a gray picture of more than 8 bits as stored, None for others.
        flaw: Why the file is damaged though it can be decoded, "" if nothing says so; see `find_flaw`.
        fourth: Smallest and largest value of a channel beside the colors that is dropped, such as
            transparency or infrared; None if there is none, or if it has one value; NaN if it is not decoded.
        several: Whether the file holds further pages or frames, which are not read.
    """

    pixels: Tensor
    orientation: int = 1
    bits: int = 8
    values: Numbers | None = None
    flaw: str = ""
    fourth: Range | None = None
    several: bool = False


class UnscaledError(ValueError):
    """A picture holds numbers of 32 bits, for which there is no `value_range`.

    Attributes:
        values: (H, W) numbers as stored.
    """

    def __init__(self, values: Numbers) -> None:
        self.values = values
        decimal = np.issubdtype(values.dtype, np.floating)
        kind = "floating-point numbers" if decimal else "whole numbers of 32 bits or with a sign"
        finite = values[np.isfinite(values)]
        if not finite.size:
            super().__init__("it holds no finite number: replace or remove it")
            return
        others = values.size - finite.size
        also = f", and {others} numbers that are not finite, which must be replaced" if others else ""
        super().__init__(
            f"it holds {kind}, {finite.min():.6g} to {finite.max():.6g}{also}: set value_range to the two "
            "values that mean black and white"
        )


def read_image(path: Path, value_range: Range | None = None) -> Tensor:
    """Reads an image file as RGB, (3, H, W) uint8.

    Gray and palette images are converted, transparency is dropped, the upper 8 of 16 bits are kept, the EXIF
    orientation is applied, and the first of several frames is read.

    Args:
        path: The file.
        value_range: Stored values that become 0 and 255, for gray images of more than 8 bits. Without, 16
            bits are scaled as a whole (a PGM from 0 to the white that it states), and images of
            floating-point numbers or 32 bits are refused.
    """
    return read_picture(path, value_range).pixels


def read_picture(path: Path, value_range: Range | None = None) -> Picture:
    """Reads an image like `read_image`, with what else its file holds.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.png")
        >>> Image.fromarray(np.array([[0, 4095]], np.uint16)).save(path)
        >>> read_picture(path, (0, 4095)).pixels[0], read_picture(path).pixels[0], read_picture(path).bits
        (tensor([[  0, 255]], dtype=torch.uint8), tensor([[ 0, 15]], dtype=torch.uint8), 16)
    """
    with naming(path):
        data = path.read_bytes()
        # From memory: Pillow rotates a TIFF that it maps from the disk before it knows the pixels.
        file = Image.open(io.BytesIO(data), formats=PICTURES)
        refuse_misread(file, data)
        codec = codec_of(file)
        orientation = orientation_of_tiff(file)
        # Cameras append small copies to a JPEG, which Pillow calls MPO.
        several = bool(getattr(file, "is_animated", False)) and file.format != "MPO"
        file.load()
        if invented := find_invented(file, data):
            raise ValueError(invented)
        orientation = orientation or valid_orientation(file.getexif().get(ORIENTATION))
        ImageOps.exif_transpose(file, in_place=True)
        picture: Image.Image = file
        bits, values = 16 if "16" in codec else 8, None
        if picture.mode[0] in "IF":
            whole = picture.mode == "F" or (picture.mode == "I" and file.format == "TIFF")
            bits = 32 if whole else 12 if codec.startswith("I;12") else 16
            values = unsigned_numbers(picture)
            if 0 < (white := white_of_ppm(codec)) < 65535:
                bits, value_range = white.bit_length(), value_range or (0, white)
                values = (values * (white / 65535)).round().astype(np.uint16)  # as stored
            picture = Image.fromarray(_to_8_bits(values, bits, value_range))
        elif value_range is not None and bits > 8:
            raise ValueError("value_range needs a gray image, but this one has colors of 16 bits")
        fourth = _fourth_channel(picture, codec)
        if picture.mode != "RGB":
            picture.info.pop("transparency", None)  # of a palette: Pillow would warn, and drop it as well
            picture = picture.convert("RGB")
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return Picture(pixels, orientation, bits, values, find_flaw(data, file.format), fourth, several)


def _fourth_channel(picture: Image.Image, codec: str) -> Range | None:
    """Returns the extent of the values of a channel beside gray or RGB, None if it has a single value."""
    if picture.mode == "RGB" and codec.startswith("RGBX"):  # a TIFF whose other channels mean anything
        return math.nan, math.nan
    if picture.mode not in ("LA", "PA", "La", "RGBA", "RGBa", "RGBX"):
        return None
    last = np.asarray(picture.getchannel(len(picture.getbands()) - 1))
    low, high = int(last.min()), int(last.max())
    return (low, high) if low < high else None


def _to_8_bits(values: Numbers, bits: int, value_range: Range | None) -> npt.NDArray[np.uint8]:
    """Scales the values of a gray picture of more than 8 bits to 0...255."""
    if value_range is None:
        if bits == 32:
            raise UnscaledError(values)
        return np.right_shift(values, bits - 8).astype(np.uint8)
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be two increasing numbers, got {low} and {high}")
    if others := int((~np.isfinite(values)).sum()):
        raise ValueError(f"it holds {others} numbers that are not finite: replace them")
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)
