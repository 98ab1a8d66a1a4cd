"""No pixel is invented in silence: incomplete files of any format are read exactly, or refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.data import SegmentationFolder, check_dataset
from cpsl.data.completeness import ADAM7, SMALL, find_cut_scan
from cpsl.data.pictures import read_image
from cpsl.data.reading import read_stored, read_stored_label

NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
BLOCKS = np.kron(np.random.default_rng(1).integers(0, 4, (5, 7), np.uint8), np.ones((8, 8), np.uint8))
JPEG_OPTIONS: list[dict[str, object]] = [
    {},
    {"progressive": True},
    {"optimize": True, "quality": 30},
    {"quality": 100, "subsampling": 0},
    {"restart_marker_blocks": 2},
    {"progressive": True, "restart_marker_rows": 1},
]


def jpeg(mode: str, option: int, flat: bool = False) -> bytes:
    picture = Image.fromarray(np.stack([60 * BLOCKS] * 3, -1) if flat else NOISE).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG", **JPEG_OPTIONS[option])
    return file.getvalue()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "a.png"  # the content decides
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("completeness")


@given(
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.integers(0, len(JPEG_OPTIONS) - 1),
    st.booleans(),
    st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_a_jpeg_cut_short_with_an_end_marker_is_read_exactly_or_refused(
    folder: Path, mode: str, option: int, flat: bool, share: float
) -> None:
    data = jpeg(mode, option, flat)
    scan = data.index(b"\xff\xda")
    whole = read_image(written(folder, data))
    assert find_cut_scan(data + b"more") == ""
    path = written(folder, data[: scan + int(share * (len(data) - scan))] + b"\xff\xd9")
    problems = check_dataset(SegmentationFolder(folder), threads=1).problems
    assert all("a.png" in problem for problem in problems)
    if not problems:
        assert np.array_equal(read_image(path), whole)
    try:
        read_stored(path, colors=True, lossy=True)
    except ValueError as error:
        assert "a.png" in str(error)  # noqa: PT017
    else:
        assert np.array_equal(read_image(path), whole)


@pytest.mark.parametrize("option", [0, 2, 3, 4])
def test_a_large_jpeg_is_decoded_twice_only_if_it_ends_gray(
    tmp_path: Path, option: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(
        "cpsl.data.completeness.find_cut_scan", lambda data: tried.append(1) or find_cut_scan(data)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (512, SMALL // 512 + 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", **JPEG_OPTIONS[option])
    read_image(tmp_path / "a.jpg")
    assert not tried
    data = (tmp_path / "a.jpg").read_bytes()
    for share in (0.3, 0.9):
        (tmp_path / "a.jpg").write_bytes(data[: int(share * len(data))] + b"\xff\xd9")
        with pytest.raises(ValueError, match=r"a\.jpg.*cut off"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(64, 48), (512, 256)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_complete_photo_may_end_gray(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    pixels[: size[1] // 2] = np.random.default_rng(0).integers(0, 256, (size[1] // 2, size[0], 3))
    for options in JPEG_OPTIONS:
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a.jpg", **options)
        assert bool((read_image(tmp_path / "a.jpg")[:, -1] == 128).all())
        assert check_dataset(SegmentationFolder(tmp_path), threads=1).problems == []


def test_a_large_progressive_jpeg_without_its_last_scans_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, SMALL // 512 + 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", progressive=True)
    read_image(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    for end in (last, data.rindex(b"\xff\xda", 0, last), last // 2):
        (tmp_path / "a.jpg").write_bytes(data[:end] + b"\xff\xd9")
        with pytest.raises(ValueError, match=r"a\.jpg.*cut off"):
            read_image(tmp_path / "a.jpg")


LOSSLESS = [
    *(("PNG", {"compress_level": level}) for level in (0, 6)),
    *(("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
    ("BMP", {}),
    ("PPM", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
]


@given(
    st.sampled_from(LOSSLESS),
    st.sampled_from(["L", "RGB"]),
    st.floats(0.05, 1),
    st.sampled_from(["cut", "end put back", "hole"]),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged TIFF
def test_an_incomplete_label_is_read_exactly_or_refused(
    folder: Path, kind: tuple[str, dict[str, object]], mode: str, share: float, damage: str
) -> None:
    file = io.BytesIO()
    Image.fromarray(BLOCKS).convert(mode).save(file, kind[0], **kind[1])
    data = file.getvalue()
    whole = read_stored(written(folder, data), colors=True)[0]
    end = int(share * len(data))
    ending = data[max(len(data) - 12, end) :] if len(data) - end > 24 else b""  # shorter than before
    rest = {"cut": b"", "end put back": ending, "hole": data[end + 16 :]}[damage]
    damaged = data[:end] + rest
    if kind[0] == "WEBP":  # a header that fits
        damaged = damaged[:4] + struct.pack("<I", max(len(damaged) - 8, 0)) + damaged[8:]
    path = written(folder, damaged)
    try:
        read = read_stored(path, colors=True)[0]
    except ValueError as error:
        assert "a.png" in str(error)  # noqa: PT017
    else:
        assert np.array_equal(read, whole)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 12), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_png_with_fewer_rows_than_it_says_is_refused(
    folder: Path, height: int, width: int, rows: int, interlaced: bool
) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"".join(b"\0" + bytes([1 + y]) * width for y in range(min(rows, height)))
    if interlaced:
        header = header[:-1] + b"\1"
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content))
    path = written(folder, data + chunk(b"IEND", b""))
    for read in (read_stored_label, read_image):
        try:
            read(path)
        except ValueError as error:
            assert "a.png" in str(error)  # noqa: PT017
        else:
            needed = sum(
                1 + -(-(width - x) // dx) for x, y, dx, dy in ADAM7 for _ in range(y, height, dy) if x < width
            )
            assert len(content) >= (needed if interlaced else height * (width + 1))


def tiff(tags: dict[int, int | list[int]], data: bytes) -> bytes:
    """Writes a TIFF of 8 bits with these tags."""
    entries = {258: 8, 259: 1, 262: 1, 277: 1, **tags}
    directory, more = struct.pack("<H", len(entries)), b""
    base = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        numbers = value if isinstance(value, list) else [value]
        inline = numbers[0] if len(numbers) == 1 else base + len(more)
        directory += struct.pack("<HHII", tag, 4, len(numbers), inline)
        more += struct.pack(f"<{len(numbers)}I", *numbers) if len(numbers) > 1 else b""
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + bytes(4) + more


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("damage", ["none", "fewer", "empty", "small"])
def test_a_tiff_without_some_of_its_strips_or_tiles_is_refused(
    tmp_path: Path, tiles: bool, damage: str
) -> None:
    values = np.repeat(np.arange(1, 5, dtype=np.uint8), 16 * 16).reshape(64, 16)
    starts, sizes = [8 + 256 * i for i in range(4)], [256] * 4
    if damage == "fewer":
        starts, sizes = starts[:2], sizes[:2]
    elif damage == "empty":
        starts[2], sizes[2] = 0, 0
    elif damage == "small":
        sizes[1] = 100
    tags: dict[int, int | list[int]] = {256: 16, 257: 64}
    tags |= {322: 16, 323: 16, 324: starts, 325: sizes} if tiles else {273: starts, 278: 16, 279: sizes}
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(tags, values.tobytes()))
    if damage == "none":
        assert np.array_equal(read_stored_label(path), values)
        return
    for read in (read_stored_label, read_image):
        with pytest.raises(ValueError, match=r"a\.tif"):
            read(path)
