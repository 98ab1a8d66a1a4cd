"""Files that are damaged though they can be decoded, and files that are no pictures."""

import errno
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.data import SegmentationFolder, check_dataset
from cpsl.data.formats import find_flaw
from cpsl.data.pictures import read_image
from cpsl.data.reading import read_header, read_stored_label
from cpsl.data.values import count_stored_values

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [{}, {"progressive": True}, {"quality": 100}],
    "WEBP": [{}, {"lossless": True}],
    "PNG": [{}],
}


def encoded(file_format: str, option: int) -> bytes:
    options = OPTIONS[file_format]
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "with a thumbnail \xff\xd9"
    Image.fromarray(PIXELS).save(file, file_format, exif=exif, **options[option % len(options)])
    return file.getvalue()


@given(st.sampled_from(sorted(OPTIONS)), st.integers(0, 5), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_a_missing_end_is_noticed(file_format: str, option: int, missing: int) -> None:
    data = encoded(file_format, option)
    assert find_flaw(data, file_format) == ""
    assert find_flaw(data + b"more", file_format) == ""
    assert find_flaw(data[: -min(missing, len(data) // 2)], file_format)


@given(st.integers(100, 3000), st.integers(1, 255))
@settings(max_examples=40, deadline=None)
def test_changed_bytes_of_a_png_are_noticed(place: int, change: int) -> None:
    data = bytearray(encoded("PNG", 0))
    data[place] ^= change
    assert "checksum" in find_flaw(bytes(data), "PNG") or "cut" in find_flaw(bytes(data), "PNG")


def test_the_check_reports_pictures_that_can_be_decoded_in_part(tmp_path: Path) -> None:
    png, webp = encoded("PNG", 0), encoded("WEBP", 1)
    (tmp_path / "whole.png").write_bytes(png)
    (tmp_path / "zeros.png").write_bytes(png[: len(png) // 2] + bytes(len(png) - len(png) // 2))
    (tmp_path / "other.webp").write_bytes(webp[: len(webp) // 2] + bytes(len(webp) - len(webp) // 2))
    result = check_dataset(SegmentationFolder(tmp_path))
    assert sorted(Path(finding.file).name for finding in result.findings) == ["other.webp", "zeros.png"]
    assert all(finding.kind == "image" and finding.reason for finding in result.findings)


def tiff(bits: int, sample: int, big: bool = False, order: str = "<") -> bytes:
    tags = [(256, 4, 2), (257, 4, 2), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 300), (277, 3, 1)]
    tags += [(278, 4, 2), (279, 4, bits // 2), (339, 3, sample)]
    first, word, count = b"MM" if order == ">" else b"II", "Q" if big else "I", "Q" if big else "H"
    head = first + struct.pack(*((f"{order}HHHQ", 43, 8, 0, 16) if big else (f"{order}HI", 42, 8)))
    head += struct.pack(f"{order}{count}", len(tags))
    entries = b"".join(_entry(order, word, *tag) for tag in tags)
    return (head + entries + bytes(8 if big else 4)).ljust(300, b"\0") + bytes(bits // 2)


def _entry(order: str, word: str, tag: int, kind: int, value: int) -> bytes:
    stored = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", value).ljust(struct.calcsize(word), b"\0")
    return struct.pack(f"{order}HH{word}", tag, kind, 1) + stored


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_either_size_is_described(tmp_path: Path, order: str, big: bool) -> None:
    path, name = tmp_path / "a.tif", "BigTIFF" if big else "TIFF"
    of_kind = "floating-point numbers of 64 bits"
    path.write_bytes(tiff(8, 1, big, order))
    if big and order == ">":
        of_kind = "big-endian"
    else:
        assert read_image(path).shape == (3, 2, 2)
    path.write_bytes(tiff(64, 3, big, order))
    with pytest.raises(ValueError, match=f"a {name} of .*{of_kind}") as refused:
        read_image(path)
    assert str(path) in str(refused.value)
    path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(ValueError, match=f"an incomplete {name}"):
        read_image(path)


def test_a_tiff_that_is_not_read_is_described(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for content, named in [
        (tiff(64, 3), "floating-point numbers of 64 bits"),
        (tiff(64, 2), "labels to PNG"),
        (tiff(64, 3)[:60], "incomplete"),
        (b"II*\0\xff\xff\xff\xff" + bytes(9), "incomplete"),
        (b"II+\0" + bytes(99), "BigTIFF"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tif cannot be read") as refused:
            read_image(path)
        assert named in str(refused.value)


def test_links_are_named_without_numbers_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read: it is a link that leads to itself"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png.*gone\.png"):
        read_image(tmp_path / "b.png")
    (tmp_path / "c.png").touch()
    (tmp_path / "c.png").chmod(0)
    if not os.access(tmp_path / "c.png", os.R_OK):
        with pytest.raises(ValueError, match=r"c\.png cannot be read: Permission denied"):
            read_image(tmp_path / "c.png")


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", np.full((4, 4), np.nan, np.float32)
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"a\.tif.*no finite number"):
        read_image(path)
    values[0] = (0, 0.25, 0.5, 1)
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"0 to 1, and 12 numbers that are not finite.*value_range"):
        read_image(path)
    with pytest.raises(ValueError, match=r"a\.tif.*12 numbers that are not finite"):
        read_image(path, (0, 1))


PASSING = [
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("read", [read_image, read_header, read_stored_label], ids=lambda read: read.__name__)
def test_an_error_that_tells_nothing_about_the_file_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)) as raised:
        read(path)
    assert raised.value is error
    assert str(path) in "".join(error.__notes__)


@pytest.mark.parametrize("error", PASSING[:3], ids=repr)
def test_the_check_stops_where_files_cannot_be_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    dataset = SegmentationFolder(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        check_dataset(dataset)
    with pytest.raises(type(error)):
        count_stored_values([tmp_path / "a.png"])


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has other limits")
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open("rb") as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno(), limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                read_image(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
