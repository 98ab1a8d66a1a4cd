"""Kinds of files that Pillow decodes to other numbers than they hold: read exactly, or refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cpsl.data import SegmentationFolder, rotated_images
from cpsl.data.pictures import read_image
from cpsl.data.reading import read_stored_label, rotate

NUMBERS = np.random.default_rng(0).integers(0, 250, (6, 10)).astype(np.uint8)
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_as_a_whole(
    tmp_path: Path, orientation: int, dtype: type, compression: str | None
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    factor = 257 if dtype is np.uint16 else 1
    picture = Image.fromarray(NUMBERS.astype(dtype) * dtype(factor))
    picture.save(tmp_path / "a.tif", exif=exif, compression=compression)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], rotate(NUMBERS, orientation))
    assert np.array_equal(read_stored_label(tmp_path / "a.tif"), NUMBERS.astype(dtype) * dtype(factor))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_an_orientation_in_xmp_applies_to_image_and_label(
    tmp_path: Path, orientation: int, extension: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    xmp = XMP.format(orientation)
    if extension == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        Image.fromarray(NUMBERS).save(tmp_path / "images" / "a.png", pnginfo=info)
    else:
        Image.fromarray(NUMBERS).save(tmp_path / "images" / "a.tif", tiffinfo={700: xmp.encode()})
    Image.fromarray(NUMBERS % 3).save(tmp_path / "labels" / "a.png")
    folder = SegmentationFolder(
        tmp_path / "images", tmp_path / "labels", ["a", "b", "c"], label_orientation="stored"
    )
    assert np.array_equal(folder[0].image[0], rotate(NUMBERS, orientation))
    for label in (folder[0].label, folder.label(0)):
        assert label is not None
        assert np.array_equal(label, rotate(NUMBERS % 3, orientation))
    assert rotated_images(folder) == {"a": orientation}


def save_tiff(path: Path, values: np.ndarray, **tags: int) -> None:
    """Writes an uncompressed TIFF of one strip with these tags, whatever they mean for the values."""
    height, width = values.shape
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 277: 1, 278: height}
    entries |= {273: 8, 279: values.nbytes, 339: 1} | {int(tag[1:]): value for tag, value in tags.items()}
    directory = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, 4, 1, value)
    start = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    path.write_bytes(start + values.tobytes() + directory + struct.pack("<I", 0))


def test_large_numbers_of_32_bits_keep_their_sign(tmp_path: Path) -> None:
    values = NUMBERS.astype(np.uint32) << 24
    save_tiff(tmp_path / "a.tif", values)
    read = read_image(tmp_path / "a.tif", (0, 255 * 2**24))
    assert np.array_equal(read[0], NUMBERS)
    assert np.array_equal(read_stored_label(tmp_path / "a.tif"), values)


@pytest.mark.parametrize(
    ("values", "tags", "word"),
    [
        (NUMBERS.astype(np.uint16), {"t262": 0}, "white"),
        (NUMBERS.astype(np.float32), {"t262": 0, "t339": 3}, "white"),
        (NUMBERS.view(np.int8), {"t339": 2}, "sign"),
    ],
)
def test_other_meanings_of_numbers_are_refused(
    tmp_path: Path, values: np.ndarray, tags: dict[str, int], word: str
) -> None:
    save_tiff(tmp_path / "a.tif", values, **tags)
    for read in (read_image, read_stored_label):
        with pytest.raises(ValueError, match=word) as raised:
            read(tmp_path / "a.tif")
        assert "a.tif" in str(raised.value)


def test_a_bmp_of_two_colors_is_refused(tmp_path: Path) -> None:
    picture = Image.fromarray(NUMBERS % 2).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a.bmp")
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    struct.pack_into("<I", data, 46, 2)  # colors that are used
    (tmp_path / "a.bmp").write_bytes(data)
    for read in (read_image, read_stored_label):
        with pytest.raises(ValueError, match="palette"):
            read(tmp_path / "a.bmp")


def test_colors_of_16_bits_are_no_label(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", *row) for row in ([0, 0, 0, 1, 0, 0], [2, 0, 0, 0, 0, 0]))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").write_bytes(data)
    ids = {"#000000": 0, "#010000": 1, "#020000": 2}
    folder = SegmentationFolder(tmp_path / "images", tmp_path / "labels", ["a", "b", "c"], ids=ids)
    with pytest.raises(ValueError, match="16 bits"):
        folder[0]
