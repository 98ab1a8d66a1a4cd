"""The shifts of the quality benchmark are exact in their labels, deterministic, and shift what they say."""

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from quality import fields as fields_module
from quality import texture, weather
from quality.fields import CROP, LOOKS, SOIL, WEED, field, fields, write_fields
from quality.weather import camera, fog, night

SHIFTS = [night, fog, camera]
STYLES = list(LOOKS)
SEEDS = st.integers(0, 2**32 - 1)
SKY = 10


def street() -> tuple[np.ndarray, np.ndarray]:
    """A bright sky over a street with texture, and its label: the upper 40 rows are sky."""
    random = np.random.default_rng(0)
    image = np.full((96, 128, 3), (215, 228, 245), np.uint8)
    image[40:] = random.integers(40, 160, (56, 128, 1))
    label = np.zeros((96, 128), np.uint8)
    label[:40] = SKY
    return image, label


@pytest.mark.parametrize("module", [fields_module, weather])
def test_examples_of_the_docstrings(module) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_depends_on_the_generator_only_and_keeps_image_and_label(shift) -> None:
    image, label = street()
    before, labels_before = image.copy(), label.copy()
    first, kept = shift(image, label, np.random.default_rng(7))
    again, none = shift(image, None, np.random.default_rng(7))
    other, _ = shift(image, label, np.random.default_rng(8))
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert kept is label
    assert none is None
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(label, labels_before)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_night_is_dark_with_and_without_the_label_of_the_sky(seed: int) -> None:
    image, label = street()
    for given_sky in (SKY, None):
        shifted, _ = night(image, label, np.random.default_rng(seed), given_sky)
        median = np.median(shifted, (0, 1))
        assert median.max() < 110
        # The sky was the brightest part by far: at night it no longer is.
        assert shifted[:40].mean() - shifted[40:].mean() < 0.6 * (image[:40].mean() - image[40:].mean())


def test_the_label_decides_where_the_sky_is() -> None:
    # A white wall that reaches the upper border: only the label knows that it is none.
    image, label = street()
    label[:] = 0
    wall, _ = night(image, label, np.random.default_rng(3), SKY)
    guessed, _ = night(image, None, np.random.default_rng(3), SKY)
    assert np.abs(wall[:40].astype(int) - guessed[:40]).mean() > 5


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_fog_takes_contrast_with_depth(seed: int) -> None:
    image, label = street()
    shifted, _ = fog(image, label, np.random.default_rng(seed), SKY)

    def kept(rows: slice) -> float:
        # Slope of the new differences over the former ones: unlike their size, it does not count the noise.
        before, now = (np.diff(p[rows, 44:84].astype(float), axis=1) for p in (image, shifted))
        return float((before * now).sum() / (before * before).sum())

    near, far = kept(slice(86, 96)), kept(slice(46, 52))
    assert far < 0.6 * near < 0.6


@pytest.mark.parametrize("shift", SHIFTS)
def test_wrong_images_and_labels_are_named(shift) -> None:
    image, label = street()
    with pytest.raises(ValueError, match="float64"):
        shift(image / 255, label, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(96, 128\)"):
        shift(image[..., 0], None, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"label.*\(48, 64\)"):
        shift(image, label[::2, ::2], np.random.default_rng(0))


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from(STYLES), st.sampled_from([(64, 64), (96, 128), (120, 90)]))
def test_fields_have_all_classes_and_plants_on_5_to_20_percent(
    seed: int, style: str, size: tuple[int, int]
) -> None:
    # One small picture may have no weeds, or no crop.
    classes = set()
    for image, label in fields(style, 4, size, seed):
        assert image.shape == (*size, 3)
        assert label.shape == size
        assert image.dtype == label.dtype == np.uint8
        assert 0.05 < (label > 0).mean() < 0.2
        classes |= {*np.unique(label).tolist()}
    assert classes == {SOIL, CROP, WEED}


@pytest.mark.parametrize("style", STYLES)
def test_plants_stand_out_from_the_soil_where_the_label_has_them(style: str) -> None:
    # A label displaced by a tenth of the picture separates green from the rest far worse than the exact one.
    def separation(shift: int) -> float:
        found = []
        for image, label in fields(style, 4, (120, 160)):
            greenness = 2.0 * image[..., 1] - image[..., 0] - image[..., 2]
            plants = np.roll(label > 0, shift, (0, 1))
            found.append((greenness[plants].mean() - greenness[~plants].mean()) / greenness.std())
        return float(np.mean(found))

    assert separation(0) > 1.5
    assert separation(0) > 3 * separation(12)


def test_the_styles_are_far_apart_in_color_and_scale() -> None:
    def soil_color_and_plant_size(style: str) -> tuple[np.ndarray, float]:
        pictures = list(fields(style, 6, (120, 160)))
        soil = np.concatenate([image[label == SOIL] for image, label in pictures]).astype(float)
        edges = sum(int((np.diff(label > 0, axis=1)).sum()) for _, label in pictures)
        return soil.mean(0), sum(int((label > 0).sum()) for _, label in pictures) / edges

    robot, robot_size = soil_color_and_plant_size("robot")
    phone, phone_size = soil_color_and_plant_size("phone")
    assert robot[2] > robot[1]  # violet
    assert phone[2] < phone[1]  # brown
    assert robot_size > 1.3 * phone_size


def test_a_picture_depends_on_style_seed_and_index_only() -> None:
    size = (64, 80)
    two, three = list(fields("robot", 2, size, 5)), list(fields("robot", 3, size, 5))
    for (image, label), (same_image, same_label) in zip(two, three, strict=False):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(label, same_label)
    labels = [
        three[0][1],
        three[1][1],
        next(fields("robot", 1, size, 6))[1],
        next(fields("phone", 1, size, 5))[1],
    ]
    assert len({label.tobytes() for label in labels}) == 4


def test_written_files_hold_the_pictures(tmp_path: Path) -> None:
    write_fields(tmp_path / "phone", "phone", 2, (64, 80), seed=1)
    assert sorted(path.relative_to(tmp_path / "phone").as_posix() for path in tmp_path.rglob("*.png")) == [
        "images/0000.png", "images/0001.png", "labels/0000.png", "labels/0001.png"
    ]  # fmt: skip
    for index, (image, label) in enumerate(fields("phone", 2, (64, 80), seed=1)):
        for folder, array in (("images", image), ("labels", label)):
            stored = np.asarray(Image.open(tmp_path / "phone" / folder / f"{index:04}.png"))
            np.testing.assert_array_equal(stored, array)


def test_wrong_styles_and_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="drone"):
        field("drone", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(32, 64\)"):
        field("robot", np.random.default_rng(0), (32, 64))


def test_noise_is_normalized_and_blur_keeps_the_mean() -> None:
    noise = texture.octaves((60, 80), np.random.default_rng(0), 20)
    assert noise.shape == (60, 80)
    assert noise.dtype == np.float32
    assert abs(float(noise.mean())) < 1e-4
    assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    inner = np.zeros((41, 41), np.float32)
    inner[20, 20] = 1
    assert float(texture.blur(inner, 2).sum()) == pytest.approx(1, abs=1e-5)
    assert texture.blur(inner, 2)[20, 20] < 0.05
