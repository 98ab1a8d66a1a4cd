"""Pictures that EXIF rotates, and labels of the displayed or the stored pixels."""

from collections.abc import Callable
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cpsl.data.folder import SegmentationFolder
from cpsl.data.orientation import fit_label, resize_label, rotated_images
from cpsl.data.pictures import read_image
from cpsl.data.reading import read_header, read_stored, rotate
from cpsl.data.sample import Subset

INVERSE = {6: 8, 8: 6}
PATHS = Path("a.jpg"), Path("a.png")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def halves(height: int, width: int) -> np.ndarray:
    """Returns a picture without any symmetry."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[: height // 2, : width // 4] = 1
    pixels[-1] = 2
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_pictures_are_displayed_like_pillow_does(tmp_path: Path, suffix: str, orientation: int) -> None:
    pixels = halves(8, 16)
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(pixels * 100).convert("RGB").save(path, exif=exif(orientation), **options)
    with Image.open(path) as file:
        expected = np.array(ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0), expected)
    assert read_header(path) == (expected.shape[:2], orientation)
    if suffix != "jpg":
        stored, found = read_stored(path, colors=True)
        assert found == orientation
        np.testing.assert_array_equal(stored >> 24, pixels * 100)
        np.testing.assert_array_equal(rotate(stored, orientation) >> 24, expected[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("convention", ["rotated", "stored"])
@pytest.mark.parametrize("size", [(8, 16), (8, 8)])
def test_labels_of_both_conventions_fit_their_pictures(
    tmp_path: Path, size: tuple[int, int], convention: str, orientation: int
) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "l").mkdir()
    stored = halves(*size)
    Image.fromarray(stored * 100).save(tmp_path / "i" / "a.png", exif=exif(orientation))
    displayed = rotate(stored, orientation)
    drawn = stored if convention == "stored" else displayed
    Image.fromarray(np.ascontiguousarray(drawn)).save(tmp_path / "l" / "a.png")

    def read(label_orientation: str = "auto") -> tuple[torch.Tensor, torch.Tensor | None]:
        dataset = SegmentationFolder(
            tmp_path / "i",
            tmp_path / "l",
            ["a", "b", "c"],
            label_orientation=label_orientation,  # type: ignore[arg-type]
        )
        return dataset[0].image[0] // 100, dataset.label(0)

    image, label = read(convention)
    assert torch.equal(image, torch.from_numpy(displayed.copy()))
    assert label is not None
    assert torch.equal(label, image)
    recognized = orientation == 1 or (orientation >= 5 and size[0] != size[1])
    if recognized:
        image, label = read()
        assert label is not None
        assert torch.equal(label, image)
    else:
        with pytest.raises(ValueError, match=r"i/a\.png is rotated by EXIF.*label_orientation"):
            read()


def test_the_label_of_the_other_convention_is_refused_by_its_size(tmp_path: Path) -> None:
    label, rotated = torch.zeros(4, 8, dtype=torch.uint8), (8, 4)
    with pytest.raises(ValueError, match=r'a\.jpg is 4x8 after.*6, .*a\.png is 8x4; .*"stored"'):
        fit_label(label, 1, rotated, 6, PATHS, convention="rotated")
    with pytest.raises(ValueError, match=r'"rotated" is for'):
        fit_label(label, 1, (4, 8), 6, PATHS, convention="stored")
    with pytest.raises(ValueError, match="is 8x4; resize_labels"):
        fit_label(label, 1, (16, 8), 6, PATHS)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_copied_orientation_of_a_label_drawn_over_the_displayed_picture_is_not_applied(
    orientation: int,
) -> None:
    label = torch.from_numpy(halves(4, 8))

    def fit(own: int = orientation, **options: object) -> torch.Tensor:
        return fit_label(label, own, (4, 8), orientation, PATHS, **options)  # type: ignore[arg-type]

    assert torch.equal(fit(), label)
    assert torch.equal(fit(resize=True), label)
    refused = rf"a\.png is 4x8 after its own EXIF orientation {orientation}; (?!resize_labels).*EXIF"
    with pytest.raises(ValueError, match=refused):
        fit(convention="rotated", resize=True)
    with pytest.raises(ValueError, match="EXIF orientation of labels"):
        fit(own=13 - orientation)  # not a copy
    assert torch.equal(
        fit_label(label, 3, (4, 8), 3, PATHS), torch.from_numpy(rotate(label.numpy(), 3).copy())
    )
    square = torch.from_numpy(halves(4, 4))
    turned = torch.from_numpy(rotate(square.numpy(), orientation).copy())
    assert torch.equal(fit_label(square, orientation, (4, 4), orientation, PATHS), turned)


@given(own=st.integers(1, 8), orientation=st.integers(1, 8), seed=st.integers(0, 99))
def test_nothing_is_guessed(own: int, orientation: int, seed: int) -> None:
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (2, 3)))
    size = (3, 2) if orientation >= 5 else (2, 3)
    results = []
    for convention in ("rotated", "stored", "auto"):
        try:
            results.append(fit_label(label, own, size, orientation, PATHS, convention=convention).tolist())  # type: ignore[arg-type]
        except ValueError:
            results.append(None)
    rotated, stored, recognized = results
    assert stored is not None
    assert recognized in ((None,) if rotated not in (None, stored) else (stored,))


def test_turned_pictures_are_listed(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (4, 2)).save(tmp_path / f"{i}.jpg", exif=exif(i + 1))
    (tmp_path / "9.png").touch()
    dataset = SegmentationFolder(tmp_path)
    assert rotated_images(dataset) == {"1": 2, "2": 3, "3": 4}
    assert rotated_images(Subset(dataset, [0, 2])) == {"2": 3}


def test_exif_after_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 2)).save(path, exif=exif(6))
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert read_header(path) == ((4, 2), 6)
    assert read_image(path).shape == (3, 4, 2)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_labels_are_resized_to_the_nearest_pixel(height: int, width: int, factor: int) -> None:
    label = torch.arange(height * width).reshape(height, width)
    large = resize_label(label, (height * factor, width * factor))
    assert torch.equal(large, label.repeat_interleave(factor, 0).repeat_interleave(factor, 1))
    assert torch.equal(resize_label(large, (height, width)), label)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.05, 4), st.sampled_from([floor, ceil, round]))
def test_labels_of_another_scale_are_resized_whatever_the_rounding(
    height: int, width: int, scale: float, to_whole: Callable[[float], int]
) -> None:
    small = max(to_whole(height * scale), 1), max(to_whole(width * scale), 1)
    for of_label, of_image in ((small, (height, width)), ((height, width), small)):
        label = torch.zeros(1, 1, dtype=torch.uint8).expand(of_label)
        assert fit_label(label, 1, of_image, 1, PATHS, resize=True).shape == of_image


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize(
    ("size", "advice"),
    [
        ((128, 96), "sides are swapped"),
        ((64, 48), "sides are swapped"),
        ((96, 96), "ratio"),
        ((90, 128), "ratio"),
    ],
)
def test_labels_of_another_shape_are_refused(resize: bool, size: tuple[int, int], advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as error:
        fit_label(torch.zeros(size, dtype=torch.uint8), 1, (96, 128), 1, PATHS, resize=resize)
    assert "resize_labels" not in str(error.value)


def test_the_shape_tells_whether_a_smaller_label_is_rotated() -> None:
    label, turned = torch.from_numpy(halves(48, 64)), torch.from_numpy(rotate(halves(48, 64), 6).copy())
    assert torch.equal(
        fit_label(label, 1, (128, 96), 6, PATHS, resize=True),
        fit_label(turned, 1, (128, 96), 6, PATHS, resize=True),
    )


def test_labels_of_another_size_are_read_if_this_is_stated(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "l").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "i" / "a.png")
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "l" / "a.png")
    folders = tmp_path / "i", tmp_path / "l", ["a", "b"]
    with pytest.raises(ValueError, match=r"a\.png is 8x4, .*a\.png is 2x1.*resize_labels"):
        SegmentationFolder(*folders)[0]
    dataset = SegmentationFolder(*folders, resize_labels=True)
    for label in (dataset[0].label, dataset.label(0)):
        assert label is not None
        assert label.tolist() == [[0] * 4 + [1] * 4] * 4
