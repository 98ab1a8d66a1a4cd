"""Reading of image and label files.

Errors name the file: FileNotFoundError if it is missing, ValueError if it is damaged or of another format.
"""

import io
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

Stored = npt.NDArray[np.integer]
IdTable = npt.NDArray[np.int16]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_CLASS = -1  # in an `IdTable`: this stored value is unknown
# Accepted formats, whatever the suffix. Pillow would run an external program for some others (EPS).
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
LONGEST_NAME = 200  # bytes; systems allow 255, and files written for an image have longer names


def read_image(path: Path) -> Tensor:
    """Reads an image file as RGB, (3, H, W) uint8.

    Gray and palette images are converted, transparency is dropped, the upper 8 of 16 bits are kept, the EXIF
    orientation is applied, and the first of several frames is read.
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
    """Reads the numbers (H, W) of a PNG without color channels: gray values, palette indices, or 0 and 1."""
    with _naming(path):
        picture = load_verified(path)
        if picture.mode not in ("L", "P", "1") and not picture.mode.startswith("I"):
            raise ValueError(
                "a label must hold one number per pixel (gray or palette), "
                f"but this image has the channels {picture.mode}"
            )
        stored = np.array(picture)
    return stored.astype(np.uint8) if picture.mode == "1" else stored


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


def id_table(ids: Mapping[int, int]) -> IdTable:
    """Returns the class index or 255 of each stored value 0...65535, for `to_classes`."""
    table = np.full(65536, NO_CLASS, np.int16)
    for stored, index in ids.items():
        if not 0 <= stored < len(table):
            raise ValueError(f"a label file holds numbers in 0...65535, not the id {stored}")
        table[stored] = index
    return table


def to_classes(stored: Stored, table: IdTable, path: Path) -> Tensor:
    """Converts stored values of a file, all in the table, to class indices uint8, 255 where ignored."""
    classes = table[stored]
    if classes.min(initial=0) == NO_CLASS:
        unknown, counts = np.unique(stored[classes == NO_CLASS], return_counts=True)
        listed = ", ".join(f"{i} ({n} pixels)" for i, n in zip(unknown[:8], counts[:8], strict=True))
        known = np.flatnonzero(table != NO_CLASS)
        raise ValueError(
            f"{path} has {len(unknown)} unknown id(s): {listed}. The {len(known)} known ids are "
            f"{', '.join(map(str, known[:40]))}{', ...' if len(known) > 40 else ''}"
        )
    return torch.from_numpy(classes.astype(np.uint8))


def require_same_size(image: Tensor, label: Tensor, image_path: Path, label_path: Path) -> None:
    """Raises ValueError unless image and label have the same size."""
    if image.shape[1:] != label.shape:
        raise ValueError(
            f"{image_path} is {image.shape[2]}x{image.shape[1]}, but its label {label_path} is "
            f"{label.shape[1]}x{label.shape[0]}"
        )


def png_size(path: Path) -> tuple[int, int] | None:
    """Returns (H, W) from the first bytes of a PNG, None for other files."""
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(PNG_SIGNATURE):
        return None
    width, height = struct.unpack(">II", start[16:])
    return height, width


def find_files(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """Finds the files below a folder, sorted by key: the relative path without suffix.

    Linked folders are searched too, hidden files and folders are not. Keys must differ, and must be valid in
    names of other files on all systems. `what` describes the files in errors.
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
                f"{found[name]} and {path} differ only in their suffix and would share one key; "
                "move one of them away"
            )
        found[name] = path
    if not found:
        raise FileNotFoundError(f"there are no {what} ({', '.join(suffixes)}) in {folder}")
    return dict(sorted(found.items()))


def _files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields the files below a folder; links count as their targets, broken links as files."""
    here = folder.resolve()
    if here in above:
        raise ValueError(f"{folder} is a link to {here}, which contains it; remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            # Only links need another system call; for all files they would take minutes on a network drive.
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from _files_below(path, (*above, here))
            elif entry.is_symlink() or entry.is_file():
                yield path


def _require_plain(name: str, path: Path) -> None:
    """Raises ValueError if a key cannot be part of other files' names."""
    try:
        longest = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError:
        raise ValueError(f"{str(path)!r}: the name is not UTF-8; rename the file") from None
    if "\\" in name or any(ord(character) < 32 for character in name):
        raise ValueError(f"{str(path)!r}: the name has a backslash or a control character; rename the file")
    if longest > LONGEST_NAME:
        raise ValueError(f"{path}: the name has {longest} bytes, more than {LONGEST_NAME}; rename the file")


def find_labels(
    images: Collection[str], folder: Path, what: str, *, image_folder: Path | None = None
) -> list[Path]:
    """Finds the label file of each image: the PNG with the same key, see `find_files`.

    Labels without an image, such as other tools' converted copies, are refused if `image_folder` is given.
    """
    labels = find_files(folder, (".png",), what)
    without = [name for name in images if name not in labels]
    if without:
        raise FileNotFoundError(
            f"{len(without)} of {len(images)} images have no label of their name in {folder}, "
            f"such as {', '.join(without[:3])}"
        )
    orphans = [name for name in labels if name not in images]
    if image_folder and orphans:
        raise FileNotFoundError(
            f"{len(orphans)} of {len(labels)} labels in {folder} have no image of their name in "
            f"{image_folder}, such as {', '.join(orphans[:3])}"
        )
    return [labels[name] for name in images]


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
        reason = "it is damaged, or its format is not supported" if path.stat().st_size else "it is empty"
        raise ValueError(f"{path} cannot be read: {reason}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        raise ValueError(f"{path} cannot be read: {error}") from error
