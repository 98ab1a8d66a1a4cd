"""Pixels that decoders invent in place of missing bytes, without an error."""

import io
import math
import re
import struct
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpsl.data.formats import JPEG_FORMATS, PICTURES, PNG_SIGNATURE, find_flaw, naming

SMALL = 1 << 16
"""Pixels up to which the check decodes every JPEG again; larger ones are decoded again if they end gray."""

ARBITRARY = bytes(1 + (37 * i + 11) % 250 for i in range(256))
PADDINGS = ARBITRARY, bytes(255 - byte for byte in ARBITRARY)
"""Bytes without 0xFF, which a decoder of JPEG ignores unless it lacks data, and others in all bits."""

MARKER = re.compile(rb"\xff+[^\x00\xff]")
"""A marker of JPEG, with filling bytes before it; 0xFF of the data is followed by 0."""

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and the steps of both, of the passes of an interlaced PNG."""

# Tags of TIFF.
WIDTH, HEIGHT, BITS, COMPRESSION, SAMPLES, PLANES = 256, 257, 258, 259, 277, 284
STRIPS, ROWS_PER_STRIP, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325


def find_invented(file: Image.Image, data: bytes, *, thorough: bool = False) -> str:
    r"""Returns why a part of the pixels of a decoded picture is not from its file, "" if nothing shows it.

    Args:
        file: The picture, loaded but not rotated.
        data: The bytes of its file.
        thorough: Whether each JPEG is decoded again, see `find_cut_scan`. Otherwise this is done if the last
            pixels are gray: decoders fill missing blocks of a baseline JPEG with gray.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
        >>> cut = buffer.getvalue()[:-400] + b"\xff\xd9"
        >>> picture = Image.open(io.BytesIO(cut))
        >>> _ = picture.load()
        >>> find_invented(picture, cut)
        'it is cut off: its pixels end before its end marker'
    """
    if file.format in JPEG_FORMATS:
        if thorough or _ends_gray(file):
            return find_cut_scan(data)
        return _find_missing_scans(_parse_scans(data)) if file.info.get("progressive") else ""
    if file.format == "PNG":
        interlaced = bool(file.info.get("interlace"))
        # The decoder leaves missing rows at zero.
        return _find_missing_rows(data) if interlaced or _ends_in_zeros(file) else ""
    if file.format == "TIFF":
        return _find_missing_strips(file.tag_v2)  # type: ignore[attr-defined]
    return find_flaw(data, "WEBP") if file.format == "WEBP" else ""


def find_cut_end(path: Path) -> str:
    """Returns why a small JPEG is cut off within its last block; "" for others, which hardly change by it."""
    with naming(path), Image.open(path, formats=PICTURES) as file:
        small = file.format in JPEG_FORMATS and file.width * file.height <= SMALL
        return find_cut_scan(path.read_bytes()) if small else ""


def find_cut_scan(data: bytes) -> str:
    """Returns why the pixels of a JPEG end before its end marker, "" if they do not.

    Bytes that are inserted before each marker change nothing in a complete JPEG; if data are missing there,
    the decoder takes them for pixels.
    """
    scans = _parse_scans(data)
    if missing := _find_missing_scans(scans):
        return missing
    try:
        read, *others = (
            _decode(padding.join(scans.parts), small=not scans.components) for padding in (b"", *PADDINGS)
        )
    except (OSError, ValueError):
        same = False
    else:
        same = all(np.array_equal(read, other) for other in others)
    return "" if same else "it is cut off: its pixels end before its end marker"


class _Scans:
    """The scans of the first picture of a JPEG.

    Attributes:
        parts: The bytes of the file, divided before each marker that ends coded data.
        headers: Components, first and last coefficient and remaining bits of each progressive scan.
        components: Components of a progressive JPEG, none for others.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.headers: list[tuple[list[int], int, int, int]] = []
        self.components: list[int] = []


def _parse_scans(data: bytes) -> _Scans:
    scans, place, start = _Scans(), 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a filling byte
            place += 1
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place + 4 : place + 2 + length]
        place += 2 + length
        if marker == 0xC2:
            scans.components = [segment[6 + 3 * i] for i in range(segment[5])]
        if marker != 0xDA:
            continue
        count = segment[0]
        chosen = [segment[1 + 2 * i] for i in range(count)]
        first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
        scans.headers.append((chosen, first, last, bits & 15))
        restart = 0xD0
        for found in MARKER.finditer(data, place):
            end, marker = found.start(), found[0][-1]
            scans.parts.append(data[start:end])
            start = end
            if not 0xD0 <= marker <= 0xD7:  # a restart is followed by more of the scan
                # Where a scan ends before a restart, its next one must come before the padding is decoded.
                scans.parts.append(bytes([0xFF, restart]))  # ignored after a complete scan
                place = end
                break
            restart = 0xD0 + (marker + 1) % 8
        else:
            place = len(data)
    scans.parts.append(data[start:])
    return scans


def _find_missing_scans(scans: _Scans) -> str:
    """Returns whether a progressive JPEG ends before each coefficient has all its bits."""
    exact = {component: set[int]() for component in scans.components}
    for chosen, first, last, bits in scans.headers:
        if not bits:
            for component in chosen:
                exact.setdefault(component, set()).update(range(first, last + 1))
    missing = any(len(exact[component]) < 64 for component in scans.components)
    return "it is cut off: its last scans are missing" if missing else ""


def _decode(data: bytes, *, small: bool) -> npt.NDArray[np.uint8]:
    """Decodes a JPEG; a large one to an eighth of its size if `small`, which needs all of its data too."""
    file = Image.open(io.BytesIO(data), formats=["JPEG"])
    if small and file.width * file.height > SMALL:
        file.draft(None, (1, 1))
    return np.array(file)


def _ends_gray(file: Image.Image) -> bool:
    """Returns whether the last pixels have the color of coefficients that are all zero."""
    width, height = file.size
    extrema = file.crop((max(width - 4, 0), max(height - 4, 0), width, height)).getextrema()
    ranges = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low in (127, 128) and high in (127, 128) for low, high in ranges)


def _ends_in_zeros(file: Image.Image) -> bool:
    return not np.asarray(file.crop((0, file.height - 1, file.width, file.height))).any()


def _find_missing_rows(data: bytes) -> str:
    """Returns whether the compressed data of a PNG hold fewer bytes than its rows need."""
    inflate, found, wanted, place = zlib.decompressobj(), 0, 0, len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            wanted = _png_bytes(content)
        elif kind == b"IDAT":
            found += len(inflate.decompress(content))
        place += 12 + length
    return "" if found >= wanted else "it is cut off: it holds fewer rows than its header says"


def _png_bytes(header: bytes) -> int:
    """Returns the number of bytes of the rows of a PNG, each with its filter."""
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits *= {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    total = 0
    for x, y, columns, rows in ADAM7 if interlaced else ((0, 0, 1, 1),):
        across, down = -(-(width - x) // columns), -(-(height - y) // rows)
        if across > 0 and down > 0:
            total += down * (1 + -(-across * bits // 8))
    return total


def _find_missing_strips(tags: Mapping[int, object]) -> str:
    """Returns whether a TIFF lacks some of its strips or tiles, or holds less than their pixels need."""
    width, height = _first(tags, WIDTH, 0), _first(tags, HEIGHT, 0)
    samples = _first(tags, SAMPLES, 1)
    planes = samples if _first(tags, PLANES, 1) == 2 else 1
    if TILES in tags:
        offsets, sizes, what = _numbers(tags[TILES]), _numbers(tags.get(TILE_BYTES, ())), "tiles"
        columns, rows = _first(tags, TILE_WIDTH, width), _first(tags, TILE_HEIGHT, height)
        if not (columns and rows):
            return ""  # refused by the decoder
        wanted, heights = math.ceil(width / columns) * math.ceil(height / rows) * planes, [rows]
    else:
        offsets, sizes, what = _numbers(tags.get(STRIPS, ())), _numbers(tags.get(STRIP_BYTES, ())), "strips"
        columns, rows = width, min(_first(tags, ROWS_PER_STRIP, height) or height, height) or 1
        edges = [*range(0, height, rows), height]
        heights = [end - start for start, end in pairwise(edges)] * planes
        wanted = len(heights)
    if len(offsets) < wanted or not all(offsets) or (sizes and not all(sizes)):
        present = sum(
            1 for i, offset in enumerate(offsets) if offset and (not sizes or sizes[i : i + 1] != [0])
        )
        return f"it is incomplete: it holds {present} of {wanted} {what} of its pixels"
    if _first(tags, COMPRESSION, 1) != 1 or not sizes:
        return ""
    of_row = -(-columns * _first(tags, BITS, 1) * (1 if planes > 1 else samples) // 8)
    needed = heights * wanted if what == "tiles" else heights
    if any(count < rows * of_row for count, rows in zip(sizes, needed, strict=False)):
        return f"it is incomplete: its {what} are smaller than their pixels need"
    return ""


def _numbers(value: object) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [int(value)]  # type: ignore[call-overload]


def _first(tags: Mapping[int, object], tag: int, default: int) -> int:
    return _numbers(tags[tag])[0] if tag in tags else default
