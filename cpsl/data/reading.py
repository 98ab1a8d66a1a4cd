"""Reading of image and label files.

Errors name the file: FileNotFoundError if it is missing, ValueError if it is damaged or of another format.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from cpsl.data.class_tables import Stored
from cpsl.data.files import find_files as find_files
from cpsl.data.files import find_labels as find_labels

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Accepted formats, whatever the suffix. Pillow would run an external program for some others (EPS).
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
OTHER_FORMATS = {
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei|hev|mif|msf)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a TIFF of an unusual kind": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "a NumPy array": rb"\x93NUMPY",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
}
"""Names and first bytes of formats that are not read."""
LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP")
ORIENTATION = 0x0112  # tag of EXIF: 1 to 8, how stored pixels are turned to be displayed
EXIF_OF_PNG = {"exif", "Raw profile type exif", "Raw profile type APP1", "XML:com.adobe.xmp", "xmp"}
"""Texts of a PNG that may hold an orientation; without them its pixels need not be decoded to know it."""
# Tags of TIFF.
PHOTOMETRIC, BITS, SAMPLE_FORMAT, PLANES = 262, 258, 339, 284


def read_image(path: Path, value_range: tuple[float, float] | None = None) -> Tensor:
    """Reads an image file as RGB, (3, H, W) uint8.

    Gray and palette images are converted, transparency is dropped, the upper 8 of 16 bits are kept, the EXIF
    orientation is applied, and the first of several frames is read.

    Args:
        path: The file.
        value_range: Stored values that become 0 and 255, for gray images of more than 8 bits. Without, 16
            bits are scaled as a whole, and images of floating-point numbers or 32 bits are refused.
    """
    return read_turned_image(path, value_range)[0]


def read_turned_image(path: Path, value_range: tuple[float, float] | None = None) -> tuple[Tensor, int]:
    """Reads an image like `read_image`, and the EXIF orientation that was applied: 1 to 8, 1 for none."""
    with _naming(path):
        data = path.read_bytes()
        # From memory: Pillow turns a TIFF that it maps from the disk before it knows the pixels.
        file = Image.open(io.BytesIO(data), formats=PICTURES)
        _refuse_misread(file, data)
        codec = _codec(file)
        orientation = _orientation_of_tiff(file)
        file.load()
        orientation = orientation or _valid(file.getexif().get(ORIENTATION))
        ImageOps.exif_transpose(file, in_place=True)
        picture: Image.Image = file
        if picture.mode[0] in "IF":
            picture = Image.fromarray(_to_8_bits(picture, file.format, codec, value_range))
        elif value_range is not None and "16" in codec:
            raise ValueError("value_range needs a gray image, but this one has colors of 16 bits")
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), orientation


def _to_8_bits(
    picture: Image.Image, file_format: str | None, codec: str, value_range: tuple[float, float] | None
) -> npt.NDArray[np.uint8]:
    """Scales the values of a gray picture of more than 8 bits to 0...255."""
    values = _unsigned(picture)
    if value_range is None:
        if picture.mode == "F" or (picture.mode == "I" and file_format == "TIFF"):
            kind = (
                "floating-point numbers" if picture.mode == "F" else "whole numbers of 32 bits or with a sign"
            )
            raise ValueError(
                f"it holds {kind}, {values.min():.6g} to {values.max():.6g}: set value_range to the two "
                "values that mean black and white"
            )
        return (values >> (4 if "12" in codec else 8)).astype(np.uint8)
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be two increasing numbers, got {low} and {high}")
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Reads (H, W) of a displayed picture and its EXIF orientation, without decoding it."""
    with _naming(path), Image.open(path, formats=PICTURES) as file:
        orientation = _orientation_of_tiff(file)
        width, height = file.size
        if orientation:
            width, height = file.tag_v2[256], file.tag_v2[257]  # type: ignore[attr-defined]
        elif file.format != "PNG" or not EXIF_OF_PNG.isdisjoint(file.info) or _has_late_text(path):
            orientation = _valid(file.getexif().get(ORIENTATION))
        return (width, height) if orientation >= 5 else (height, width), orientation or 1


def turn(stored: Stored, orientation: int) -> Stored:
    """Turns stored pixels (H, W) as an EXIF orientation of 1 to 8 demands.

    Example:
        >>> turn(np.array([[1, 2]]), 6).tolist(), turn(np.array([[1, 2]]), 3).tolist()
        ([[1], [2]], [[2, 1]])
    """
    turned = stored.T if orientation >= 5 else stored
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    return turned


def _orientation_of_tiff(file: Image.Image) -> int:
    """Returns the orientation of a TIFF that is not loaded yet, since Pillow turns it; 0 for other files."""
    return _valid(file.getexif().get(ORIENTATION)) if file.format == "TIFF" else 0


def _valid(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _has_late_text(path: Path) -> bool:
    """Returns whether a PNG has text or EXIF after its pixels, which Pillow reads only with them."""
    with path.open("rb") as file:
        file.seek(len(PNG_SIGNATURE))
        late = False
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            late = late or kind == b"IDAT"
            if late and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, 1)
    return False


def read_stored_label(path: Path) -> Stored:
    """Reads the numbers (H, W) of a label without colors: gray values, palette indices, or 0 and 1."""
    return read_stored(path)[0]


def read_stored(path: Path, *, colors: bool = False, lossy: bool = False) -> tuple[Stored, int]:
    """Reads what a label file stores for each pixel, before any turning, and its own EXIF orientation.

    Args:
        path: PNG (with verified checksums), BMP, GIF, TIFF, WebP or PPM.
        colors: Whether to read the colors as numbers 0xRRGGBBAA, also of gray and palette files; opaque
            pixels end in 0xFF.
        lossy: Whether to read also JPEG and other lossy files, whose values are inexact.
    """
    with _naming(path):
        data = path.read_bytes()
        file = Image.open(io.BytesIO(data), formats=PICTURES)
        _refuse_misread(file, data)
        lossless = _is_lossless(file, data)
        if not (lossy or lossless):
            raise ValueError(
                f"{file.format} changes the stored values, so this format is not supported without a "
                "`tolerance`"
            )
        if file.format == "PNG":
            file.verify()
            file = Image.open(io.BytesIO(data), formats=["PNG"])
        if getattr(file, "n_frames", 1) > 1:
            raise ValueError(f"a label must be one picture, but this file has {file.n_frames}")  # type: ignore[attr-defined]
        codec, orientation = _codec(file), _orientation_of_tiff(file)
        file.load()
        turned = orientation
        orientation = orientation or _valid(file.getexif().get(ORIENTATION))
        values = _colors(file, codec) if colors else _numbers(file, codec)
        if turned:  # by Pillow
            values = turn(values, {6: 8, 8: 6}.get(turned, turned))
    return values, orientation


def label_kind(path: Path) -> tuple[str, bool]:
    """Returns Pillow's mode of a label, such as "L", "P" or "RGB", and whether its format is lossless.

    A GIF with a palette counts as "RGB", since its numbers are not reliable. Nothing is decoded.
    """
    with _naming(path), Image.open(path, formats=PICTURES) as file:
        mode = "RGB" if (file.mode, file.format) == ("P", "GIF") else file.mode
        return mode, _is_lossless(file, path.read_bytes() if file.format == "WEBP" else b"")


def _numbers(picture: ImageFile.ImageFile, codec: str) -> Stored:
    """Returns the stored numbers of a picture without color channels."""
    mode = picture.mode
    if mode == "F":
        raise ValueError("a label must hold whole numbers, but this file holds floating-point numbers")
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise ValueError(
            f"a label must hold one number per pixel (gray or palette), but this image has the channels "
            f'{mode}; for colors, `ids` maps each color to its class, such as {{ "#ff0000" = 1 }}'
        )
    if (picture.mode, picture.format) == ("P", "GIF"):
        raise ValueError(
            "the numbers in a GIF change whenever it is saved: `ids` must map its colors, such as "
            '{ "#ffffff" = 1 }'
        )
    if re.search(r";\d*I", codec) and mode in ("L", "1"):
        raise ValueError("its number 0 means white, which changes the numbers: store it with 0 as black")
    scale = re.search(r"ppm.* (\d+)$", codec)
    if scale and int(scale[1]) not in (255, 65535):
        raise ValueError(f"its numbers are scaled to {scale[1]}: store it as PNG")
    values = _unsigned(picture)
    if mode == "1":
        return values.astype(np.uint8)
    # Pillow spreads gray values of 2 and 4 bits over 0...255.
    factor = {"L;2": 85, "L;4": 17}.get(codec[:3], 1) if mode == "L" else 1
    return values // np.uint8(factor) if factor > 1 else values


def _colors(picture: Image.Image, codec: str) -> Stored:
    """Returns the colors of a picture as numbers 0xRRGGBBAA."""
    if ";16" in codec and picture.mode[0] not in "IF":
        raise ValueError("`ids` maps colors of 8 bits per channel, but this label has 16 bits: store 8 bits")
    if picture.mode[0] in "IF":
        raise ValueError(
            f"`ids` maps colors, but this label has gray values of more than 8 bits ({picture.mode})"
        )
    channels = np.array(picture.convert("RGBA"))
    return channels.view(">u4")[..., 0].astype(np.uint32)


def _refuse_misread(file: Image.Image, data: bytes) -> None:
    """Raises ValueError for kinds of files whose numbers Pillow changes without an error."""
    if file.format == "BMP" and file.mode == "1" and int.from_bytes(data[28:30], "little") != 1:
        raise ValueError("it is a BMP of 8 bits with a palette of black and white: store it as PNG")
    if file.format != "TIFF":
        return
    tags = file.tag_v2  # type: ignore[attr-defined]
    if tags.get(PHOTOMETRIC) == 0 and file.mode[0] in "IF":
        raise ValueError("its number 0 means white: store it with 0 as black")
    if file.mode == "L" and 2 in _tuple(tags.get(SAMPLE_FORMAT, 1)):
        raise ValueError("it holds whole numbers of 8 bits with a sign: store them without")
    if tags.get(PLANES) == 2 and max(_tuple(tags.get(BITS, 1))) > 8:
        raise ValueError("its colors of more than 8 bits are stored in separate planes: store them together")


def _tuple(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _unsigned(picture: Image.Image) -> Stored:
    """Returns the numbers of a picture; Pillow reads 32 bits without a sign as if they had one."""
    values = np.array(picture)
    if picture.mode == "I" and picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        if _tuple(tags.get(BITS, 1)) == (32,) and _tuple(tags.get(SAMPLE_FORMAT, 1)) == (1,):
            values = values.view(np.uint32)
    return values


def _codec(file: Image.Image) -> str:
    """Returns how the pixels of a file that is not loaded yet are stored, such as "L;4" or "ppm L 15"."""
    tile = getattr(file, "tile", None)
    if not tile:
        return ""
    name, arguments = tile[0][0], tile[0][3]
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    return " ".join(map(str, (name, *parts))) if name.startswith("ppm") else str(parts[0])


def _is_lossless(file: Image.Image, data: bytes) -> bool:
    if file.format == "WEBP":
        return {b"VP8 ", b"ANMF"}.isdisjoint(_riff_chunks(data))
    return file.format in LOSSLESS and file.info.get("compression") not in ("jpeg", "webp")


def _riff_chunks(data: bytes) -> set[bytes]:
    """Returns the names of the chunks of a WebP file."""
    names, place = set[bytes](), 12
    while place + 8 <= len(data):
        names.add(data[place : place + 4])
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return names


def load_verified(path: Path) -> Image.Image:
    """Loads a PNG after checking its checksums; raises Pillow's errors."""
    picture = _open_verified(path)
    picture.load()
    return picture


def _open_verified(path: Path) -> ImageFile.ImageFile:
    """Opens a PNG after checking its checksums, which decoding alone ignores.

    Other formats are refused, since lossy compression may have changed the numbers.
    """
    data = io.BytesIO(path.read_bytes())
    Image.open(data, formats=["PNG"]).verify()
    data.seek(0)
    return Image.open(data, formats=["PNG"])


def read_png16(path: Path) -> npt.NDArray[np.uint16]:
    """Reads the first channel (H, W) of a 16-bit PNG in full depth.

    Pillow has no mode for 16-bit color. It keeps the byte of each number that it takes for the upper one: the
    upper byte of the file's big-endian numbers, and the lower byte if they are declared little-endian.
    """
    with _naming(path):
        upper, lower = _open_verified(path), _open_verified(path)
        codec, box, offset, layout = lower.tile[0]
        if layout == "I;16B":
            return np.asarray(upper).astype(np.uint16)
        if layout not in ("RGB;16B", "RGBA;16B"):
            raise ValueError(f"expected a gray or color PNG with 16 bits per channel, not 8, got {layout}")
        lower.tile = [(codec, box, offset, layout.replace("16B", "16L"))]  # type: ignore[list-item]
        high, low = (np.asarray(picture.getchannel("R")).astype(np.uint16) for picture in (upper, lower))
    return high << np.uint16(8) | low


def png_size(path: Path) -> tuple[int, int] | None:
    """Returns (H, W) from the first bytes of a PNG, None for other files."""
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(PNG_SIGNATURE):
        return None
    width, height = struct.unpack(">II", start[16:])
    return height, width


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file's name to errors of its decoding."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder") from None
    except UnidentifiedImageError:
        reason = _other_format(path) if path.stat().st_size else "it is empty"
        raise ValueError(f"{path} cannot be read: {reason}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        raise ValueError(f"{path} cannot be read: {error}") from error


def _other_format(path: Path) -> str:
    """Describes a file that is no picture that can be read."""
    with path.open("rb") as file:
        start = file.read(64)
    for name, signature in OTHER_FORMATS.items():
        if re.match(signature, start, re.DOTALL):
            return f"it is {name}, and this format is not supported: convert it to PNG or JPEG"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, such as of a failed download"
    return "it is damaged, or its format is not supported"
