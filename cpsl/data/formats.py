"""Formats of pictures: which are read, what other files are, and which files are incomplete."""

import errno
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import UnidentifiedImageError

from cpsl._internal.file_kinds import describe_text
from cpsl._internal.files import is_passing

# Accepted formats, whatever the extension. Pillow would run an external program for some others (EPS).
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
OTHER_FORMATS = {
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei|hev|mif|msf)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a NumPy array": rb"\x93NUMPY",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS",
    "Photoshop": rb"8BPS",
    "SVG": rb"\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg|<svg)",
}
"""Names and first bytes of formats that are not read."""
JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of JPEG; MPO is the one of cameras that append further pictures."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ZEROS = bytes(64)
"""Zero bytes at the end of a file that show an interrupted download; compressed pictures end in fewer."""
SAMPLES = {1: "whole numbers", 2: "whole numbers with a sign", 3: "floating-point numbers"}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to errors of its decoding.

    Raises:
        FileNotFoundError: The file is missing.
        MemoryError, OSError: It may be intact, but could not be read now, as if too many files are open.
        ValueError: All other errors.
    """
    try:
        yield
    except FileNotFoundError:
        if path.is_symlink():
            text = f"{path} is a link to {path.readlink()}, which is missing"
            raise FileNotFoundError(text) from None
        raise FileNotFoundError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read: {describe_unread(path)}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        if is_passing(error):
            error.add_note(f"This happened while reading {path}.")
            raise
        reason = str(error)
        if isinstance(error, OSError):
            # The text of other errors is "[Errno 40] Too many levels of symbolic links: ...".
            reason = error.strerror or reason
            if error.errno == errno.ELOOP:
                reason = "it is a link that leads to itself"
        raise ValueError(f"{path} cannot be read: {reason}") from error


def describe_unread(path: Path) -> str:
    """Returns what a file is that Pillow does not recognize as a picture."""
    data = path.read_bytes()
    if not data:
        return "it is empty"
    if data.startswith(PNG_SIGNATURE) and (flaw := _flaw_of_png(data)):
        return flaw
    if re.match(rb"II[*+]\0|MM\0[*+]", data):
        return _describe_tiff(data)
    for name, signature in OTHER_FORMATS.items():
        if re.match(signature, data, re.DOTALL):
            return f"it is {name}, and this format is not supported: convert it to PNG or JPEG"
    return describe_text(data[:512]) or "it is damaged, or its format is not supported"


def _describe_tiff(data: bytes) -> str:
    """Describes the numbers of a TIFF or BigTIFF that is not read, or that the file is incomplete."""
    order, is_big = "<" if data.startswith(b"II") else ">", b"+" in data[:4]
    name, word = ("BigTIFF", struct.Struct(f"{order}Q")) if is_big else ("TIFF", struct.Struct(f"{order}I"))
    counter = word if is_big else struct.Struct(f"{order}H")
    try:
        (start,) = word.unpack_from(data, word.size)
        (count,) = counter.unpack_from(data, start)
        tags = {}
        for i in range(count):
            entry = start + counter.size + (4 + 2 * word.size) * i
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            (number,), (value,) = (word.unpack_from(data, entry + 4 + k * word.size) for k in (0, 1))
            if kind == 3:  # numbers of 16 bits: a few of them are in place of the offset
                place = entry + 4 + word.size if 2 * number <= word.size else value
                (value,) = struct.unpack_from(f"{order}H", data, place)
            tags[tag] = value
    except (struct.error, IndexError, OverflowError):
        return f"it is an incomplete {name} ({len(data):,} bytes): copy or download it again"
    if not tags:
        return f"it is a damaged {name} without a picture: copy or download it again"
    if is_big and order == ">":  # Pillow reads the others
        return "it is a BigTIFF of big-endian numbers, which is not supported: convert it to PNG or TIFF"
    bits, sample, channels = tags.get(258, 1), tags.get(339, 1), tags.get(277, 1)
    numbers = SAMPLES.get(sample, "numbers of an unusual kind")
    advice = "three channels to PNG"
    if channels == 1:
        advice = "labels to PNG, and images to PNG or to 32-bit floating-point numbers"
    return (
        f"it is a {name} of {channels} channel(s) with {numbers} of {bits} bits, and this kind is not "
        f"supported: convert {advice}"
    )


def find_flaw(data: bytes, file_format: str | None) -> str:
    """Returns why the bytes of a picture are damaged even if it can be decoded, "" if nothing says so.

    JPEG and WebP have no checksums: only missing ends are recognized. Those of PNG are verified.

    Example:
        >>> find_flaw(PNG_SIGNATURE, "PNG")
        'it is cut off: its last part is missing'
    """
    if file_format in JPEG_FORMATS:
        complete = data.find(b"\xff\xd9", _scan_of_jpeg(data)) >= 0
        return "" if complete else "it is cut off: its end marker is missing"
    if file_format == "WEBP":
        if 8 + int.from_bytes(data[4:8], "little") > len(data):
            return "it is cut off: it is shorter than its header says"
        return "it is cut off: it ends in zeros" if data.endswith(ZEROS) else ""
    return _flaw_of_png(data) if file_format == "PNG" else ""


def _scan_of_jpeg(data: bytes) -> int:
    """Returns where the pixels of a JPEG begin, after a thumbnail, which has an end marker too."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place


def _flaw_of_png(data: bytes) -> str:
    view, place = memoryview(data), len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return f"it is damaged: the checksum of its part {kind.decode('latin-1')} is wrong"
        if kind == b"IEND":
            return ""
        place = end + 4
    return "it is cut off: its last part is missing"
