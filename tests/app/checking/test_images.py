"""Warnings about images that can be read: their lines can be copied, and help."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpsl.app.checking.images import SAMPLED, warn_of_images, warn_of_label_maps
from cpsl.app.domain import Domain
from cpsl.app.settings import override
from cpsl.data import SegmentationFolder, check_dataset
from cpsl.data.pictures import read_image

NOISE = np.random.default_rng(0)


def photos(folder: Path, high: int, dtype: type = np.uint16, name: str = "{}.png") -> Domain:
    """Writes four images of noise below a value."""
    folder.mkdir(exist_ok=True)
    for index in range(4):
        values = NOISE.uniform(0, 1, (32, 40)) * high
        Image.fromarray(values.astype(dtype)).save(folder / name.format(index))
    return Domain(images=folder)


def warnings_of(**domains: Domain) -> list[str]:
    datasets = {
        name: SegmentationFolder(
            str(domain.images), image_pattern=domain.image_pattern, value_range=domain.value_range
        )
        for name, domain in domains.items()
    }
    results = {name: check_dataset(dataset, threads=1) for name, dataset in datasets.items()}
    return [" ".join(line.split()) for line in warn_of_images(datasets, results, domains)]


def lines_of(warning: str) -> dict[str, object]:
    """Returns the settings that a warning proposes."""
    start = min(
        place for place in (warning.find("value_range ="), warning.find("image_pattern =")) if place >= 0
    )
    return tomllib.loads(warning[start:])


@pytest.mark.parametrize(("high", "dtype"), [(1023, np.uint16), (4095, np.uint16), (0.98, np.float32)])
def test_dark_values_are_warned_of_with_the_range_that_helps(
    tmp_path: Path, high: float, dtype: type
) -> None:
    name = "{}.tif" if dtype is np.float32 else "{}.png"
    domain = photos(tmp_path / "target", high, dtype, name)  # type: ignore[arg-type]
    (warning,) = warnings_of(target=domain)
    assert "target: 4 of 4 images" in warning
    assert "[target]" in warning
    corrected = override(domain, lines_of(warning), "proposal")
    assert corrected.value_range == (0, high if high > 1 else 1)
    assert warnings_of(target=corrected) == []


def test_full_ranges_and_8_bits_need_no_warning(tmp_path: Path) -> None:
    assert (
        warnings_of(source=photos(tmp_path / "a", 65535), target=photos(tmp_path / "b", 40, np.uint8)) == []
    )


def test_a_range_that_one_domain_alone_has_is_named(tmp_path: Path) -> None:
    source, target = photos(tmp_path / "a", 65535), photos(tmp_path / "b", 65535)
    (warning,) = warnings_of(source=replace(source, value_range=(0, 60000)), target=target)
    assert "0 and 60000 in [source], 0 and 65535 (no value_range) in [target]" in warning
    eight = photos(tmp_path / "c", 255, np.uint8)
    assert warnings_of(source=replace(source, value_range=(0, 60000)), target=eight) == []
    # The proposed range is said once, not again as a difference.
    dark = photos(tmp_path / "d", 4000)
    (warning,) = warnings_of(source=replace(source, value_range=(0, 60000)), target=dark)
    assert lines_of(warning) == {"value_range": [0, 4095]}


def maps(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    for index in range(4):
        Image.fromarray(np.kron(NOISE.integers(0, 4, (4, 4)), np.ones((8, 10))).astype(np.uint8)).save(
            folder / name.format(index)
        )


@pytest.mark.parametrize(
    ("photo", "label", "image_pattern"),
    [
        ("{}.jpg", "{}_L.png", "*"),
        ("im_{}_rgb.png", "im_{}_color.png", "*"),
        ("{}_a.png", "{}_b.png", "*.png"),
    ],
)
def test_label_maps_of_any_name_are_warned_of_with_the_pattern(
    tmp_path: Path, photo: str, label: str, image_pattern: str
) -> None:
    domain = replace(photos(tmp_path, 255, np.uint8, photo), image_pattern=image_pattern)
    maps(tmp_path, label)
    (warning,) = warnings_of(target=domain)
    assert "4 of 8 images that were read look like label maps" in warning
    corrected = override(domain, lines_of(warning), "proposal")
    assert warnings_of(target=corrected) == []
    assert len(SegmentationFolder(tmp_path, image_pattern=corrected.image_pattern)) == 4


def test_label_maps_that_no_pattern_excludes(tmp_path: Path) -> None:
    domain = photos(tmp_path, 255, np.uint8)
    maps(tmp_path, "{}_L.png")
    (warning,) = warnings_of(target=domain)
    assert "another folder" in warning
    maps(tmp_path / "alone", "{}.png")
    (warning,) = warnings_of(target=Domain(images=tmp_path / "alone"))
    assert "`images`" in warning


@pytest.mark.parametrize(
    ("image", "label", "pattern"),
    [
        ("{:03d}.jpg", "{:03d}_L.png", '"*.jpg"'),
        ("photo/{:03d}.png", "coded/{:03d}.png", '"photo/*"'),
        ("{:03d}.png", "{:03d}x.png", None),
    ],
)
def test_a_sample_shows_label_maps_among_many_images(
    tmp_path: Path, image: str, label: str, pattern: str | None
) -> None:
    for index in range(2 * SAMPLED):
        noise = NOISE.uniform(0, 255, (32, 40, 3)).astype(np.uint8)
        flat = np.repeat(np.uint8([[10, 90, 200, 30]]), 32, axis=0).repeat(10, axis=1)
        for name, values in ((image, noise), (label, flat)):
            path = tmp_path / name.format(index)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(values).save(path)
    domain = Domain(images=tmp_path)
    dataset = SegmentationFolder(tmp_path)
    read = []
    original = dataset.picture
    dataset.picture = lambda index: read.append(index) or original(index)  # type: ignore[method-assign]
    (text,) = warn_of_label_maps({"target": dataset}, {"target": domain})
    assert len(read) <= SAMPLED
    assert "label maps" in text
    assert (f"image_pattern = {pattern}" if pattern else "Move them") in " ".join(text.split())
    photos_alone = SegmentationFolder(tmp_path, image_pattern=pattern.strip('"')) if pattern else None
    if photos_alone is not None:
        assert warn_of_label_maps({"target": photos_alone}, {"target": domain}) == []


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_a_channel_that_is_dropped_is_counted_if_its_values_differ(
    tmp_path: Path, mode: str, extension: str
) -> None:
    domain = photos(tmp_path, 255, np.uint8)
    for index in range(3):
        picture = Image.open(tmp_path / f"{index}.png").convert(mode)
        if index < 2:
            picture.putalpha(Image.fromarray(NOISE.integers(20 + index, 90, (32, 40)).astype(np.uint8)))
        (tmp_path / f"{index}.png").unlink()
        picture.save(tmp_path / f"{index}.{extension}")
    (warning,) = warnings_of(target=domain)
    assert "target: 2 of 4 images" in warning
    assert "from 20 to 89" in warning
    assert f"0.{extension}" in warning
    assert "dropped" in warning


def test_a_tiff_with_a_fourth_channel_of_unknown_meaning_is_counted(tmp_path: Path) -> None:
    domain = photos(tmp_path, 255, np.uint8)
    pixels = NOISE.integers(0, 255, (32, 40, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "0.tif", tiffinfo={338: 0})
    (tmp_path / "0.png").unlink()
    (warning,) = [text for text in warnings_of(target=domain) if "channel" in text]
    assert "target: 1 of 4 images" in warning
    assert "0.tif" in warning
    assert "nan" not in warning


def in_color(folder: Path, name: str, count: int = 4) -> None:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.fromarray(NOISE.integers(0, 255, (32, 40, 3)).astype(np.uint8)).save(
            folder / name.format(index)
        )


@pytest.mark.parametrize(
    ("name", "options", "several"),
    [
        ("a.tif", {"save_all": True}, True),
        ("a.gif", {"save_all": True}, True),
        ("a.webp", {"save_all": True, "lossless": True}, True),
        ("a.png", {"save_all": True}, True),
        ("a.jpg", {"save_all": True, "format": "MPO"}, False),  # a photo of a camera, with a small copy
        ("a.tif", {}, False),
    ],
)
def test_images_of_several_pages_are_counted(
    tmp_path: Path, name: str, options: dict[str, Any], several: bool
) -> None:
    domain = photos(tmp_path / "target", 255, np.uint8)
    first, second = (Image.fromarray(NOISE.integers(0, 256, (32, 40), np.uint8)) for _ in range(2))
    pages = {"append_images": [second]} if options else {}
    first.save(tmp_path / "target" / name, **options, **pages)
    if name != "a.jpg":
        read = read_image(tmp_path / "target" / name)
        assert np.array_equal(read[0].numpy(), first)
    (domain.images / "0.png").rename(domain.images / "b.png")  # keys differ
    warnings = warnings_of(target=domain)
    assert len(warnings) == several
    for warning in warnings:
        assert "target: 1 of 5 images" in warning
        assert str(tmp_path / "target" / name) in warning


def test_a_range_of_images_of_8_bits_has_no_effect(tmp_path: Path) -> None:
    (warning,) = warnings_of(target=replace(photos(tmp_path / "a", 255, np.uint8), value_range=(0, 1)))
    assert "value_range has no effect" in warning
    assert "[target]" in warning


def test_gray_images_among_those_in_color_are_counted_with_the_pattern(tmp_path: Path) -> None:
    domain = photos(tmp_path, 255, np.uint8, "{}_nir.jpg")
    assert warnings_of(target=domain) == []
    in_color(tmp_path, "{}_rgb.jpg")
    (warning,) = warnings_of(target=domain)
    assert "target: 4 of 8 images are gray and 4 in color" in warning
    corrected = override(domain, lines_of(warning), "proposal")
    assert warnings_of(target=corrected) == []
    assert len(SegmentationFolder(tmp_path, image_pattern=corrected.image_pattern)) == 4


def test_gray_domains_beside_domains_in_color_are_warned_of(tmp_path: Path) -> None:
    source, target = photos(tmp_path / "nir", 255, np.uint8), Domain(images=tmp_path / "rgb")
    in_color(tmp_path / "rgb", "{}.png")
    (warning,) = warnings_of(source=source, target=target)
    assert "source are gray" in warning
    assert "target in color" in warning
    in_color(tmp_path / "nir", "in_color.png", 1)
    assert not any("all images" in warning for warning in warnings_of(source=source, target=target))


def test_a_few_gray_images_are_no_mixture(tmp_path: Path) -> None:
    domain = photos(tmp_path, 255, np.uint8)
    for index in range(1, 4):
        (tmp_path / f"{index}.png").unlink()
    in_color(tmp_path, "rgb{}.png", 25)
    assert warnings_of(target=domain) == []
