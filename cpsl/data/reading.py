"""Reading image and label files; whatever is wrong with one is said with its name."""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Stored = npt.NDArray[np.integer]
IdTable = npt.NDArray[np.int16]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_CLASS = -1  # in a lookup table: this stored value means nothing
# What a file may be, whatever its suffix says. Pillow would run another program for some others (EPS).
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
LONGEST_NAME = 200  # bytes; systems allow 255, and what is written for an image adds to its name


def read_image(path: Path) -> Tensor:
    """Reads a picture of any kind as RGB.

    Grey and palette images are converted, transparency is dropped, of 16 bits the upper 8 are kept, and the
    picture is turned as its EXIF orientation says. Of several frames the first is read.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.

    Returns:
        (3, H, W) uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or no picture.
    """
    with _naming(path), Image.open(path, formats=PICTURES) as file:
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
        picture: Image.Image = file
        if picture.mode.startswith("I"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def read_stored_label(path: Path) -> Stored:
    """Reads the numbers that a label file stores: grey values or palette indices.

    A picture of one bit holds 0 and 1.

    Args:
        path: PNG of up to 16 bits.

    Returns:
        (H, W).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or a colour picture.
    """
    with _naming(path):
        picture = load_verified(path)
        if picture.mode not in ("L", "P", "1") and not picture.mode.startswith("I"):
            raise ValueError(
                "a label must hold one number a pixel (grey or palette), "
                f"this picture has the channels {picture.mode}"
            )
        stored = np.array(picture)
    return stored.astype(np.uint8) if picture.mode == "1" else stored


def load_verified(path: Path) -> Image.Image:
    """Loads a PNG that must be right to the last pixel; raises whatever Pillow does.

    Other formats may have changed the numbers to save space.
    """
    data = io.BytesIO(path.read_bytes())
    Image.open(data, formats=["PNG"]).verify()  # decoding alone ignores a PNG's checksums
    data.seek(0)
    picture = Image.open(data, formats=["PNG"])
    picture.load()
    return picture


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
    with _naming(path):
        header, compressed = _chunks(path.read_bytes())
        width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
        channels = {0: 1, 2: 3, 4: 2, 6: 4}.get(color, 0)
        if depth != 16 or channels <= channel or interlace:
            raise ValueError(
                f"a PNG of 16 bits with more than {channel} channels and not interlaced is expected, got "
                f"{depth} bits, {channels} channels{', interlaced' if interlace else ''}"
            )
        step = 2 * channels
        if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):  # the limit of Pillow
            raise ValueError(f"{width}x{height} pixels are more than can be meant")
        # No more is unpacked than there should be: a small file can hold gigabytes of zeros.
        unpacking, wanted = zlib.decompressobj(), height * (1 + step * width)
        data = unpacking.decompress(compressed, wanted + 1)
        if len(data) != wanted or not unpacking.eof:
            raise ValueError(f"its data are not those of {width}x{height} pixels")
        rows = np.frombuffer(data, np.uint8).reshape(height, 1 + step * width)
        upper, lower = (
            _decode_grey(rows[:, 0], rows[:, 1 + 2 * channel + byte :: step]) for byte in (0, 1)
        )
    return upper.astype(np.uint16) << np.uint16(8) | lower


def id_table(ids: Mapping[int, int]) -> IdTable:
    """Returns a table from stored values 0...65535 to class indices, for `to_classes`.

    Args:
        ids: Stored value to class index or 255.

    Raises:
        ValueError: A stored value lies outside 0...65535.
    """
    table = np.full(65536, NO_CLASS, np.int16)
    for stored, index in ids.items():
        if not 0 <= stored < len(table):
            raise ValueError(f"a label file holds numbers in 0...65535, not the id {stored}")
        table[stored] = index
    return table


def to_classes(stored: Stored, table: IdTable, path: Path) -> Tensor:
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
        listed = ", ".join(
            f"{i} ({n} pixels)" for i, n in zip(unknown[:8], counts[:8], strict=True)
        )
        known = np.flatnonzero(table != NO_CLASS)
        raise ValueError(
            f"{path} has {len(unknown)} unknown id(s): {listed}. The {len(known)} known ids are "
            f"{', '.join(map(str, known[:40]))}{', ...' if len(known) > 40 else ''}"
        )
    return torch.from_numpy(classes.astype(np.uint8))


def require_same_size(image: Tensor, label: Tensor, image_path: Path, label_path: Path) -> None:
    """Raises ValueError unless image and label have one size."""
    if image.shape[1:] != label.shape:
        raise ValueError(
            f"{image_path} is {image.shape[2]}x{image.shape[1]}, but its label {label_path} is "
            f"{label.shape[1]}x{label.shape[0]}"
        )


def png_size(path: Path) -> tuple[int, int] | None:
    """Returns (H, W) from the first bytes of a PNG, None if the file is something else."""
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(PNG_SIGNATURE):
        return None
    width, height = struct.unpack(">II", start[16:])
    return height, width


def find_files(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """Lists the files below a folder, sorted by their name: the relative path without suffix.

    Args:
        folder: Searched with all its subfolders, also linked ones; hidden files and folders are left out.
            A name becomes part of the names of files that a run writes, on other systems too.
        suffixes: Lower-case suffixes that count.
        what: What is looked for, for the message.

    Raises:
        FileNotFoundError: There is no such folder, or no such file in it.
        PermissionError: A folder may not be read.
        ValueError: Two files have one name, a name is not fit to name other files by, or a linked folder
            holds the link.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of {what}")
    found: dict[str, Path] = {}
    for path in _files_below(folder):
        if path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        _require_plain(name, path)
        if name in found:
            raise ValueError(
                f"{found[name]} and {path} differ in their suffix only, so they would share one key; "
                "move one of them away"
            )
        found[name] = path
    if not found:
        raise FileNotFoundError(f"there are no {what} ({', '.join(suffixes)}) in {folder}")
    return dict(sorted(found.items()))


def _files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields the files below a folder; links count as what they lead to, a broken one as a file."""
    here = folder.resolve()
    if here in above:
        raise ValueError(f"{folder} is a link to {here}, which holds it; remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            # Only links cost a look at the disk, of which a network drive would make minutes.
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from _files_below(path, (*above, here))
            elif entry.is_symlink() or entry.is_file():
                yield path


def _require_plain(name: str, path: Path) -> None:
    """Raises ValueError unless files of other folders can have this name."""
    try:
        longest = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError:
        raise ValueError(f"{str(path)!r}: the name is not UTF-8; rename the file") from None
    if "\\" in name or any(ord(character) < 32 for character in name):
        raise ValueError(
            f"{str(path)!r}: a name with a backslash or a control character cannot be used; rename the file"
        )
    if longest > LONGEST_NAME:
        raise ValueError(
            f"{path}: the name has {longest} bytes, of at most {LONGEST_NAME}; rename the file"
        )


def labels_of(images: Sequence[str], labels: Mapping[str, Path], folder: Path) -> list[Path]:
    """Returns the label file of each image.

    Labels of no image are left alone: other tools keep converted copies in the same folder.

    Args:
        images: Key of each image.
        labels: Label file of each key.
        folder: Where the labels are, for the message.

    Raises:
        FileNotFoundError: Images have no label; some are named.
    """
    without = [name for name in images if name not in labels]
    if without:
        raise FileNotFoundError(
            f"{len(without)} of {len(images)} images have no label of their name in {folder}, "
            f"such as {', '.join(without[:3])}"
        )
    return [labels[name] for name in images]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the name of the file into whatever its decoding raises."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read: {_looks_like(path)}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        raise ValueError(f"{path} cannot be read: {error}") from error


def _looks_like(path: Path) -> str:
    """Says of a file that Pillow does not recognise what may be wrong."""
    if not path.stat().st_size:
        return "the file is empty"
    return "it is damaged, or of another kind than its name says"


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """Returns the header and the compressed rows of a PNG."""
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError("it is no PNG file")
    header, compressed = b"", []
    place = len(PNG_SIGNATURE)
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        if len(content) < length:
            raise ValueError("it ends too early")
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
