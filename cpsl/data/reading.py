"""Reading image and label files; whatever is wrong with one is said with its name."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cpsl.data.labels import IGNORE_INDEX

Stored = npt.NDArray[np.integer]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_CLASS = -1  # in a lookup table: this stored value means nothing


def read_image(path: Path) -> Tensor:
    """Reads a picture of any kind as RGB.

    Grey and palette images are converted, transparency is dropped, 16-bit grey is scaled to 8 bits, and the
    picture is turned as its EXIF entry says.

    Args:
        path: PNG, JPEG or another format that Pillow reads.

    Returns:
        (3, H, W) uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or no picture.
    """
    picture = _open(path)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((grey >> 8 if grey.max() > 255 else grey).astype(np.uint8))
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def read_stored_label(path: Path) -> Stored:
    """Reads the numbers that a label file stores: grey values or palette indices.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or a colour picture.
    """
    picture = _open(path)
    if picture.mode not in ("L", "P", "1") and not picture.mode.startswith("I"):
        raise ValueError(
            f"{path}: a label must hold one number a pixel (grey or palette), "
            f"this picture has the colours {picture.mode}"
        )
    return np.array(picture)


def read_png16(path: Path, channel: int = 0) -> npt.NDArray[np.uint16]:
    """Reads one channel of a 16-bit PNG in full depth.

    Pillow has no mode for 16-bit colour: it keeps the upper byte of each number, which is zero for all small
    ones. torchvision's reader is deprecated. But a PNG filter predicts each byte from the same byte of the
    neighbouring pixels (W3C PNG, third edition, section 9): so the upper and the lower bytes of a channel
    are each an 8-bit grey PNG with the same filters, and those Pillow reads.

    Args:
        path: PNG of 16 bits a channel, not interlaced.
        channel: Which channel.

    Returns:
        (H, W).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another kind.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError(f"{path} is no PNG file")
    try:
        header, compressed = _chunks(data)
        width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
        channels = {0: 1, 2: 3, 4: 2, 6: 4}.get(color, 0)
        if depth != 16 or channels <= channel or interlace:
            raise ValueError(
                f"{path} must be a 16-bit PNG with more than {channel} channels and not interlaced, "
                f"got {depth} bits, {channels} channels"
            )
        rows = np.frombuffer(zlib.decompress(compressed), np.uint8)
        step = 2 * channels
        rows = rows[: height * (1 + step * width)].reshape(height, 1 + step * width)
        upper, lower = (
            _decode_grey(rows[:, 0], rows[:, 1 + 2 * channel + byte :: step]) for byte in (0, 1)
        )
    except (struct.error, zlib.error, SyntaxError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path} is damaged: {error}") from error
    return upper.astype(np.uint16) * np.uint16(256) + lower


def id_table(ids: Mapping[int, int]) -> npt.NDArray[np.int16]:
    """Returns a table from stored values 0...65535 to class indices, for `to_classes`.

    Args:
        ids: Stored value to class index or 255.
    """
    table = np.full(65536, NO_CLASS, np.int16)
    for stored, index in ids.items():
        if 0 <= stored < len(table):
            table[stored] = index
    return table


def to_classes(stored: Stored, table: npt.NDArray[np.int16], path: Path) -> Tensor:
    """Turns stored values into class indices.

    Args:
        stored: (H, W) unsigned.
        table: Of `id_table`.
        path: File that they come from.

    Returns:
        (H, W) uint8, 255 where ignored.

    Raises:
        ValueError: Some values are not in the table.
    """
    classes = table[stored]
    if classes.min(initial=0) == NO_CLASS:
        unknown, counts = np.unique(stored[classes == NO_CLASS], return_counts=True)
        listed = ", ".join(f"{i} ({n} px)" for i, n in list(zip(unknown, counts, strict=True))[:8])
        raise ValueError(
            f"{path}: labels with unknown ids: {listed}. Known are "
            f"{np.flatnonzero(table != NO_CLASS).tolist()[:40]}; map others to {IGNORE_INDEX} to ignore them."
        )
    return torch.from_numpy(classes.astype(np.uint8))


def require_same_size(image: Tensor, label: Tensor, image_path: Path, label_path: Path) -> None:
    """Raises ValueError unless image and label have one size."""
    if image.shape[1:] != label.shape:
        raise ValueError(
            f"{image_path} is {image.shape[2]}x{image.shape[1]}, but its label {label_path} is "
            f"{label.shape[1]}x{label.shape[0]}"
        )


def find_files(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """Lists the files below a folder by their name: the relative path without suffix.

    Args:
        folder: Searched with all its subfolders; hidden files are left out.
        suffixes: Lower-case suffixes that count.
        what: What is looked for, for the message.

    Raises:
        FileNotFoundError: There is no such folder, or no such file in it.
        ValueError: Two files have one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of {what}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} have one name; remove one of them")
            found[name] = path
    if not found:
        raise FileNotFoundError(f"there are no {what} ({', '.join(suffixes)}) in {folder}")
    return found


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is damaged or no picture: {error}") from error


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """Returns the header and the compressed rows of a PNG."""
    header, compressed = b"", []
    place = len(PNG_SIGNATURE)
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        if len(content) < length:
            raise zlib.error("the file ends too early")
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            compressed.append(content)
        place += length + 12
    return header, b"".join(compressed)


def _decode_grey(
    filters: npt.NDArray[np.uint8], filtered: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Decodes filtered rows (H, W) of bytes by writing them as a grey PNG."""
    height, width = filtered.shape
    rows = np.concatenate([filters[:, None], filtered], axis=1).tobytes()
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, level=0)),
        (b"IEND", b""),
    )
    png = PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture)
