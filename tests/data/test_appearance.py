"""What images show: the range of their values, and whether they are label maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.data.appearance import (
    Appearance,
    appearance_of,
    appearance_of_numbers,
    label_maps_among,
    value_range_of,
)
from cpsl.data.names import Pattern
from cpsl.data.pictures import Picture, read_picture

PHOTO, MAP, BLANK = (Appearance(8, False, 0, 255, is_label_like=like) for like in (False, True, None))


def gray(low: float, high: float, bits: int = 16) -> Appearance:
    return Appearance(bits, True, low, high, is_label_like=False)


@given(st.integers(9, 16), st.floats(0.6, 1), st.floats(0, 0.3))
def test_the_proposed_range_is_that_of_the_sensor_and_needs_no_other(
    bits: int, share: float, darkest: float
) -> None:
    low, high = darkest * share * 2**bits, share * (2**bits - 1)
    looks = [None, gray(low, high)]
    proposed = value_range_of(looks, None)
    assert proposed == (None if high - low >= 65535 / 4 else (0, 2**bits - 1))
    assert value_range_of(looks, (0, 2**bits - 1)) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_proposed_range_holds_all_values_and_is_accepted(low: float, extent: float) -> None:
    looks = [gray(low, low + extent, bits=32)]
    proposed = value_range_of(looks, None)
    assert proposed is not None
    assert proposed[0] <= low < low + extent <= proposed[1]
    assert value_range_of(looks, proposed) is None


@pytest.mark.parametrize("value_range", [(0, 255), (0, 65535), (5000, 9000)])
def test_a_range_that_clips_or_darkens_is_replaced(value_range: tuple[float, float]) -> None:
    assert value_range_of([gray(3, 4000)], value_range) == (0, 4095)


def test_pictures_of_8_bits_need_no_range() -> None:
    assert value_range_of([PHOTO, BLANK, None], None) is None
    assert value_range_of([], (0, 1)) is None


def test_defective_pixels_and_numbers_that_are_not_finite_are_outliers() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (200, 300)).astype(np.uint16)
    values[::64, 5] = 65535
    look = appearance_of(Picture(torch.zeros(3, 200, 300, dtype=torch.uint8), 1, 16, values))
    assert 4000 < look.high < 4096
    numbers = values.astype(np.float32)
    numbers[0] = np.nan
    look = appearance_of_numbers(numbers)
    assert 4000 < look.high < 4096
    assert value_range_of([appearance_of_numbers(np.full((4, 4), np.nan))], None) is None


def label_map(classes: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Returns blobs of classes."""
    rng = np.random.default_rng(classes)
    small = rng.integers(0, classes, (3, 4))
    return np.kron(small, np.ones((size[0] // 3, size[1] // 4), int))


@pytest.mark.parametrize("kind", ["gray", "16 bits", "colors", "palette", "JPEG"])
@pytest.mark.parametrize("classes", [2, 5, 19])
def test_label_maps_are_told_from_photos(tmp_path: Path, kind: str, classes: int) -> None:
    indices, path = label_map(classes), tmp_path / ("a.jpg" if kind == "JPEG" else "a.png")
    palette = np.random.default_rng(1).integers(0, 256, (classes, 3)).astype(np.uint8)
    picture = {
        "gray": Image.fromarray(indices.astype(np.uint8)),
        "16 bits": Image.fromarray((1000 * indices).astype(np.uint16)),
        "palette": Image.fromarray(indices.astype(np.uint8)).convert("P"),
    }.get(kind, Image.fromarray(palette[indices]))
    picture.save(path)
    assert appearance_of(read_picture(path)).is_label_like or (kind, classes) == ("JPEG", 19)
    noise = np.random.default_rng(2).integers(0, 12, (96, 128))
    photo = Image.fromarray((np.add.outer(np.arange(96), np.arange(128)) + noise).astype(np.uint8))
    photo.save(path)
    assert appearance_of(read_picture(path)).is_label_like is False
    Image.new("RGB", (64, 32), "red").save(path)
    assert appearance_of(read_picture(path)).is_label_like is None


def test_a_picture_that_was_filled_up_ends_flat(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert not appearance_of(read_picture(tmp_path / "a.png")).ends_flat
    pixels[128:] = 128  # as a cut JPEG that was stored again
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert appearance_of(read_picture(tmp_path / "a.png")).ends_flat


NAMES = st.lists(st.text("abc123", min_size=1, max_size=4), min_size=2, max_size=6, unique=True)


@given(
    NAMES,
    st.sampled_from(
        [
            ("{}.jpg", "{}_L.png"),
            ("images/{}.png", "targets/{}.png"),
            ("x/rgb/{}.png", "x/out/{}.png"),
            ("{}_rgb.png", "{}_color.png"),
            ("{}-photo.png", "{}-instanceIds.png"),
        ]
    ),
)
@settings(max_examples=60)
def test_the_pattern_matches_the_images_and_no_label_map(names: list[str], forms: tuple[str, str]) -> None:
    images, maps = ([form.format(name) for name in names] for form in forms)
    found = label_maps_among(images + maps, [PHOTO] * len(images) + [MAP] * len(maps))
    assert found is not None
    assert found.names == maps
    assert found.image_pattern is not None
    pattern = Pattern(found.image_pattern)
    assert all(pattern.key(name) for name in images)
    assert not any(pattern.key(name) for name in maps)
    # Files that an earlier pattern excludes stay excluded.
    found = label_maps_among(
        images + maps, [PHOTO] * len(images) + [MAP] * len(maps), [f"{images[0][:-4]}0.jpg"]
    )
    assert found is not None
    assert found.image_pattern is None or not Pattern(found.image_pattern).key(f"{images[0][:-4]}0.jpg")


def test_flat_pictures_among_others_are_no_label_maps_without_a_name() -> None:
    assert label_maps_among(["a.png", "b.png", "logo.png"], [PHOTO, PHOTO, MAP]) is None
    assert label_maps_among(["a.png", "b.png"], [PHOTO, BLANK]) is None
    assert label_maps_among(["a.png", "logo.png"], [PHOTO, MAP]) is None
    everything = label_maps_among(["a.png", "b.png"], [MAP, MAP])
    assert everything is not None
    assert everything.names == ["a.png", "b.png"]
    beside = label_maps_among(["1.png", "1_L.png", "2.png", "2_L.png"], [PHOTO, MAP] * 2)
    assert beside is not None
    assert beside.image_pattern is None


@given(st.integers(2, 9), st.integers(0, 3))
def test_as_many_label_maps_as_images_need_no_names(images: int, more: int) -> None:
    names = [f"{letter}.png" for letter in "abcdefghi"[:images]] + [
        f"{i}_x.png" for i in range(images + more)
    ]
    found = label_maps_among(names, [PHOTO] * images + [MAP] * (images + more), ["z.png"])
    assert found is not None
    assert found.names == names[images:]
