"""Decoding of image and label files of all formats, and of damaged ones."""

import io
import struct
import zlib
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.data.class_tables import id_table, to_classes
from cpsl.data.files import find_files
from cpsl.data.formats import PNG_SIGNATURE
from cpsl.data.names import Pattern
from cpsl.data.pictures import read_image
from cpsl.data.reading import png_size, read_png16, read_stored_label


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _filter_row(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """Applies one of PNG's five filters, as its specification defines them byte by byte."""
    filtered = bytearray([kind])
    for i, value in enumerate(row):
        a = row[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        nearest = min((a, b, c), key=lambda v: abs(a + b - c - v))
        filtered.append((value - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
    return bytes(filtered)


WHOLE = ((0, 0, 1, 1),)  # first column and row, steps
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def png16(values: npt.NDArray[np.uint16], filters: list[int], interlaced: bool = False) -> bytes:
    """Writes (H, W, C) as a 16-bit PNG; the rows take the filters in turn."""
    height, width, channels = values.shape
    data, kinds = b"", cycle(filters)
    for x, y, dx, dy in ADAM7 if interlaced else WHOLE:
        rows = [row.astype(">u2").tobytes() for row in values[y::dy, x::dx] if row.size]
        for row, above in zip(rows, [bytes(2 * channels * width), *rows], strict=False):
            data += _filter_row(next(kinds), row, above, 2 * channels)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, interlaced)
    half = len(zlib.compress(data)) // 2  # data may be split anywhere
    parts = zlib.compress(data)[:half], zlib.compress(data)[half:]
    chunks = [(b"IHDR", header), *((b"IDAT", part) for part in parts), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks)


@given(
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3, 4]),
    interlaced=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_16_bit_png_is_read_in_full_depth(
    tmp_path_factory: pytest.TempPathFactory,
    filters: list[int],
    width: int,
    channels: int,
    interlaced: bool,
    seed: int,
) -> None:
    shape = (len(filters), width, channels)
    values = np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(png16(values, filters, interlaced))
    read = read_png16(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, values[..., 0])


def test_16_bit_reader_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(ValueError, match=r"a\.png.*16 bits.*RGB"):
        read_png16(path)
    path.write_bytes(png16(np.zeros((2, 3, 2), np.uint16), [0, 0]))
    with pytest.raises(ValueError, match=r"a\.png.*LA;16B"):
        read_png16(path)
    whole = png16(np.zeros((2, 3, 3), np.uint16), [0, 0])
    for end in range(len(whole) - 16):  # up to the checksum of the last data
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"a\.png cannot be read"):
            read_png16(path)
    with pytest.raises(FileNotFoundError, match=r"no file .*b\.png"):
        read_png16(tmp_path / "b.png")


def test_every_mode_is_converted_to_rgb(tmp_path: Path) -> None:
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    pictures = {
        "L": Image.fromarray(gray),
        "16": Image.fromarray(gray.astype(np.uint16) * 256 + 77),
        "RGB": Image.fromarray(gray).convert("RGB"),
        "RGBA": Image.fromarray(np.dstack([gray] * 3 + [np.full_like(gray, 9)])),
        "LA": Image.fromarray(np.dstack([gray, np.full_like(gray, 9)])),
        "P": Image.fromarray(gray).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
    }
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.png"
        picture.save(path)
        image = read_image(path)
        assert image.dtype == torch.uint8
        assert image.shape == (3, 2, 2)
        np.testing.assert_array_equal(image, np.stack([gray] * 3), err_msg=name)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated camera: the stored left column is the top row
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    image = read_image(path)
    assert image.shape == (3, 32, 16)
    assert image[:, :12].min() > 240
    assert image[:, 20:].max() < 15


def test_labels_are_the_stored_numbers(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [7, 3]], np.uint8)
    palette = Image.fromarray(stored)
    palette.putpalette([200, 100, 50] * 8)
    palette.save(tmp_path / "palette.png")  # of 8 colors: 4 bits a pixel
    Image.fromarray(stored).save(tmp_path / "gray.png")
    Image.fromarray(stored.astype(np.uint16) + 1000).save(tmp_path / "deep.png")
    Image.fromarray(stored > 0).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_stored_label(tmp_path / "palette.png"), stored)
    np.testing.assert_array_equal(read_stored_label(tmp_path / "gray.png"), stored)
    np.testing.assert_array_equal(read_stored_label(tmp_path / "deep.png"), stored.astype(int) + 1000)
    bits = read_stored_label(tmp_path / "bit.png")
    assert to_classes(bits, id_table({0: 5, 1: 6}), tmp_path).tolist() == [[5, 6], [6, 6]]


def test_a_flipped_bit_in_a_label_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for place in range(whole.index(b"IDAT"), len(whole) - 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.png cannot be read"):
            read_stored_label(path)


def test_a_color_image_is_refused_as_label(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png.*RGB"):
        read_stored_label(tmp_path / "a.png")


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_image_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (20, 12), (1, 2, 3)).save(buffer, data.draw(st.sampled_from(["PNG", "JPEG"])), exif=exif)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.picture"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        message, image = "", read_image(path)
    except ValueError as error:
        message, image = str(error), torch.zeros(3, 1, 1, dtype=torch.uint8)
    assert not message or "a.picture cannot be read" in message
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


def test_malformed_exif_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    # Two entries: the orientation (tag 0x112, short), and the width (0x100), which is a text.
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x0100, 2, 1, 0x31)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    Image.new("RGB", (4, 2)).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read"):
        read_image(path)


@given(
    ids=st.dictionaries(st.integers(0, 255), st.integers(0, 255), min_size=1),
    stored=st.lists(st.integers(0, 255), min_size=1, max_size=30),
)
def test_known_ids_are_converted_and_unknown_ones_named(ids: dict[int, int], stored: list[int]) -> None:
    array = np.array([stored], np.uint8)
    unknown = set(stored) - set(ids)
    if unknown:
        with pytest.raises(ValueError, match=rf"label\.png has {len(unknown)} unknown id") as error:
            to_classes(array, id_table(ids), Path("label.png"))
        value = min(unknown)
        assert f" {value} ({stored.count(value)} pixels)" in str(error.value)
    else:
        label = to_classes(array, id_table(ids), Path("label.png"))
        assert label.dtype == torch.uint8
        assert label.tolist() == [[ids[value] for value in stored]]


@pytest.mark.parametrize("stored", [-1, 65536])
def test_ids_outside_of_16_bits_are_refused(stored: int) -> None:
    with pytest.raises(ValueError, match=f"id {stored}"):
        id_table({stored: 0})


def test_files_are_found_in_sorted_order_with_unique_names(tmp_path: Path) -> None:
    files = ("b.PNG", "a/z.png", "a.x/c.v1.jpg", ".cutout.png", ".cache/d.png", "notes.txt")
    for name in files:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "images" / "folder.png").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.png").touch()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    found = find_files(tmp_path / "images", (".png", ".jpg"), "images")
    assert list(found) == ["a.x/c.v1", "a/z", "b", "link/e"]
    assert found["b"] == tmp_path / "images" / "b.PNG"

    (tmp_path / "images" / "b.jpg").touch()
    with pytest.raises(ValueError, match=r"b\.(jpg|PNG).*b\.(jpg|PNG)"):
        find_files(tmp_path / "images", (".png", ".jpg"), "images")
    with pytest.raises(ValueError, match=r'pattern such as "\*\.(jpg|PNG)"'):
        find_files(tmp_path / "images", (".png", ".jpg"), "images", pattern=Pattern("*"))
    found = find_files(tmp_path / "images", (".png", ".jpg"), "images", containers=(".png",))
    assert list(found) == ["a.x/c.v1", "a/z/", "b", "b/", "link/e/"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_files(tmp_path / "missing", (".png",), "images")
    with pytest.raises(FileNotFoundError, match="there are no images"):
        find_files(tmp_path / "images" / "folder.png", (".png",), "images")


def test_size_is_read_from_the_first_bytes(tmp_path: Path) -> None:
    Image.new("L", (5, 3)).save(tmp_path / "a.png")
    Image.new("L", (5, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").touch()
    assert png_size(tmp_path / "a.png") == (3, 5)
    assert png_size(tmp_path / "a.jpg") is None
    assert png_size(tmp_path / "b.png") is None


def test_cyclic_links_are_named_and_others_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    assert list(find_files(tmp_path / "a", (".png",), "images")) == ["a", "other/b"]
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")  # a circle of two
    with pytest.raises(ValueError, match=r"other/back is a link to .*a,"):
        find_files(tmp_path / "a", (".png",), "images")


@pytest.mark.parametrize(
    "name", ["a\\b", "a\nb", "a\tb", "x" * 201, b"\xff".decode(errors="surrogateescape")]
)
def test_names_that_other_systems_refuse_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.png").touch()
    with pytest.raises(ValueError, match="rename the file"):
        find_files(tmp_path, (".png",), "images")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (8, 8), 3).save(path, "JPEG")
    assert read_image(path).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="format is not supported"):
        read_stored_label(path)
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(ValueError, match="format is not supported"):
        read_image(path)
