"""Reading of label files, and of the headers of pictures.

Errors name the file: FileNotFoundError if it is missing, ValueError if it is damaged or of another format.
"""

import io
import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from cpsl.data.class_tables import Stored
from cpsl.data.completeness import find_invented
from cpsl.data.formats import PICTURES, PNG_SIGNATURE, find_flaw, naming

LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP")
ORIENTATION = 0x0112  # tag of EXIF: 1 to 8, how stored pixels are rotated to be displayed
EXIF_OF_PNG = {"exif", "Raw profile type exif", "Raw profile type APP1", "XML:com.adobe.xmp", "xmp"}
"""Texts of a PNG that may hold an orientation; without them its pixels need not be decoded to know it."""
# Tags of TIFF.
PHOTOMETRIC, BITS, SAMPLE_FORMAT, PLANES = 262, 258, 339, 284


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Reads (H, W) of a displayed picture and its EXIF orientation, without decoding it."""
    with naming(path), Image.open(path, formats=PICTURES) as file:
        orientation = orientation_of_tiff(file)
        width, height = file.size
        if orientation:
            width, height = file.tag_v2[256], file.tag_v2[257]  # type: ignore[attr-defined]
        elif file.format != "PNG" or not EXIF_OF_PNG.isdisjoint(file.info) or _has_late_text(path):
            orientation = valid_orientation(file.getexif().get(ORIENTATION))
        return (width, height) if orientation >= 5 else (height, width), orientation or 1


def rotate(stored: Stored, orientation: int) -> Stored:
    """Rotates stored pixels (H, W) as an EXIF orientation of 1 to 8 demands.

    Example:
        >>> rotate(np.array([[1, 2]]), 6).tolist(), rotate(np.array([[1, 2]]), 3).tolist()
        ([[1], [2]], [[2, 1]])
    """
    rotated = stored.T if orientation >= 5 else stored
    if orientation in (2, 3, 6, 7):
        rotated = rotated[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rotated = rotated[::-1]
    return rotated


def orientation_of_tiff(file: Image.Image) -> int:
    """Returns the orientation of a TIFF before Pillow loads it, which rotates it; 0 for other files."""
    return valid_orientation(file.getexif().get(ORIENTATION)) if file.format == "TIFF" else 0


def valid_orientation(orientation: object) -> int:
    """Returns the EXIF orientation that a file states, 1 to 8; 1 if it states none."""
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
    """Reads what a label file stores for each pixel, before any rotation, and its own EXIF orientation.

    Args:
        path: PNG (with verified checksums), BMP, GIF, TIFF, WebP or PPM.
        colors: Whether to read the colors as numbers 0xRRGGBBAA, also of gray and palette files; opaque
            pixels end in 0xFF.
        lossy: Whether to read also JPEG and other lossy files, whose values are inexact.
    """
    with naming(path):
        data = path.read_bytes()
        file = Image.open(io.BytesIO(data), formats=PICTURES)
        refuse_misread(file, data)
        lossless = _is_lossless(file, data)
        if not (lossy or lossless):
            raise ValueError(
                f"{file.format} changes the stored values, so this format is not supported without a "
                "`tolerance`; class numbers such as 0 and 1 are lost even with it: store them as PNG"
            )
        if flaw := find_flaw(data, file.format):
            raise ValueError(flaw)
        if getattr(file, "n_frames", 1) > 1:
            raise ValueError(f"a label must be one picture, but this file has {file.n_frames}")  # type: ignore[attr-defined]
        codec, orientation = codec_of(file), orientation_of_tiff(file)
        file.load()
        if flaw := find_invented(file, data, thorough=True):
            raise ValueError(flaw)
        rotated = orientation
        orientation = orientation or valid_orientation(file.getexif().get(ORIENTATION))
        values = _colors(file, codec) if colors else _numbers(file, codec)
        if rotated:  # by Pillow
            values = rotate(values, {6: 8, 8: 6}.get(rotated, rotated))
    return values, orientation


def label_kind(path: Path) -> tuple[str, bool]:
    """Returns Pillow's mode of a label, such as "L", "P" or "RGB", and whether its format is lossless.

    A GIF with a palette counts as "RGB", since its numbers are not reliable. Nothing is decoded.
    """
    with naming(path), Image.open(path, formats=PICTURES) as file:
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
    if (white := white_of_ppm(codec)) not in (0, 255, 65535):
        raise ValueError(f"its numbers are scaled to {white}: store it as PNG")
    values = unsigned_numbers(picture)
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


def refuse_misread(file: Image.Image, data: bytes) -> None:
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


def unsigned_numbers(picture: Image.Image) -> Stored:
    """Returns the numbers of a picture; Pillow reads 32 bits without a sign as if they had one."""
    values = np.array(picture)
    if picture.mode == "I" and picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        if _tuple(tags.get(BITS, 1)) == (32,) and _tuple(tags.get(SAMPLE_FORMAT, 1)) == (1,):
            values = values.view(np.uint32)
    return values


def codec_of(file: Image.Image) -> str:
    """Returns how the pixels of a file that is not loaded yet are stored, such as "L;4" or "ppm L 15"."""
    tile = getattr(file, "tile", None)
    if not tile:
        return ""
    name, arguments = tile[0][0], tile[0][3]
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    return " ".join(map(str, (name, *parts))) if name.startswith("ppm") else str(parts[0])


def white_of_ppm(codec: str) -> int:
    """Returns the number that a PPM states as white, which Pillow scales to all ones; 0 for other files.

    Example:
        >>> white_of_ppm("ppm L 4095"), white_of_ppm("L;4")
        (4095, 0)
    """
    stated = re.search(r"^ppm.* (\d+)$", codec)
    return int(stated[1]) if stated else 0


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
    with naming(path):
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
