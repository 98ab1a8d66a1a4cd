"""Sizes of views: those of the person's own images, unless the settings give them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.settings import to_toml
from cpsl.app.sizes import LOOKED_AT, SAME_SHAPE, fit_crop, fit_size

EXTENTS = st.integers(1, 6000)
PAPER = Config().views


def images(folder: Path, shapes: list[tuple[int, int]], orientation: int = 1) -> Path:
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number, (height, width) in enumerate(shapes):
        Image.new("L", (width, height)).save(folder / f"{number:03d}.jpg", exif=exif)
    return folder


@given(EXTENTS, EXTENTS, st.integers(256, 10**6))
def test_whole_images_keep_their_shape_and_are_never_enlarged(height: int, width: int, pixels: int) -> None:
    fitted = fit_size((height, width), pixels)
    if height * width <= pixels:
        assert fitted == (max(height, 16), max(width, 16))
        return
    assert all(extent % 16 == 0 for extent in fitted)
    factor = (pixels / (height * width)) ** 0.5
    for extent, exact in zip(fitted, (height * factor, width * factor), strict=True):
        assert abs(extent - exact) <= 8 or extent == 16


@given(st.integers(16, 6000), st.integers(16, 6000))
def test_crops_are_inside_of_whole_images(height: int, width: int) -> None:
    for crop, extent in zip(fit_crop((height, width)), (height, width), strict=True):
        assert 16 <= crop <= extent
        step = 32 if extent >= 160 else 16
        assert crop % step == 0
        assert abs(crop - 0.8 * extent) < 0.6 * step


@given(st.sets(st.sampled_from(["full_size", "crop", "width", "source_size"])), st.booleans())
def test_given_sizes_are_kept_whether_a_file_or_an_option_gives_them(names: set[str], by_file: bool) -> None:
    """Even those that equal the defaults."""
    values = {"full_size": PAPER.full_size, "crop": PAPER.crop, "width": PAPER.width, "source_size": (17, 19)}
    with tempfile.TemporaryDirectory() as folder:
        target = images(Path(folder) / "target", [(60, 90)])
        source = images(Path(folder) / "source", [(60, 60)])
        words = ["--target.images", str(target), "--source.images", str(source)]
        if by_file:
            lines = [
                f"{name} = {[*v] if isinstance(v := values[name], tuple) else v}" for name in sorted(names)
            ]
            (Path(folder) / "own.toml").write_text("\n".join(["[views]", *lines]))
            words += ["--config", str(Path(folder) / "own.toml")]
        else:
            for name in names:
                value = values[name]
                words += [
                    f"--views.{name.replace('_', '-')}",
                    *map(str, value if isinstance(value, tuple) else [value]),
                ]
        views = parse(words).views
    full_size = PAPER.full_size if "full_size" in names else (60, 90)
    assert views.full_size == full_size
    assert views.crop == (PAPER.crop if "crop" in names else fit_crop(full_size))
    assert views.width == (PAPER.width if "width" in names else full_size[1])
    chosen = None if "full_size" in names else (90, 90)
    assert views.source_size == ((17, 19) if "source_size" in names else chosen)


def test_sizes_are_those_of_most_images_as_displayed(tmp_path: Path) -> None:
    shapes = [(40, 30)] * 3 + [(7, 9)]
    target = images(tmp_path / "target", shapes * LOOKED_AT, orientation=6)
    views = parse(["--target.images", str(target)]).views
    assert (views.full_size, views.crop, views.width) == ((30, 40), (16, 32), 40)


def test_images_of_the_whole_folder_are_looked_at(tmp_path: Path) -> None:
    shapes = [(20, 30)] * (LOOKED_AT - 5) + [(40, 60)] * (LOOKED_AT - 1)
    assert parse(["--target.images", str(images(tmp_path / "target", shapes))]).views.full_size == (40, 60)


@pytest.mark.parametrize("factor", [0.9, 1 / SAME_SHAPE + 0.01, 1.0, SAME_SHAPE - 0.01, 1.2])
def test_a_source_of_another_shape_keeps_it(tmp_path: Path, factor: float) -> None:
    target = images(tmp_path / "target", [(300, 400)])
    source = images(tmp_path / "source", [(round(600 * factor), 800)])
    views = parse(["--target.images", str(target), "--source.images", str(source)]).views
    same = 1 / SAME_SHAPE < factor < SAME_SHAPE
    assert views.source_size == (None if same else (round(300 * factor), 400))


def test_large_images_are_reduced_to_the_pixels_of_the_recipe(tmp_path: Path) -> None:
    target = images(tmp_path / "target", [(1500, 2000)])
    assert parse(["--config", "cpu", "--target.images", str(target)]).views.full_size == (288, 384)
    assert parse(["--target.images", str(target)]).views.full_size == fit_size((1500, 2000), PAPER.pixels)


def test_the_papers_data_sets_keep_the_papers_sizes(tmp_path: Path) -> None:
    words = ["--config", "gta5_to_cityscapes", "--target.root", str(tmp_path)]
    assert parse(words).views.full_size == PAPER.full_size


@pytest.mark.parametrize("content", [None, b"", b"<html>"])
def test_unreadable_images_are_left_to_the_check(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "1.png").write_bytes(content)
    views = parse(["--target.images", str(tmp_path / "target")]).views
    assert views == PAPER


def test_a_finished_run_is_read_with_the_sizes_it_had(tmp_path: Path) -> None:
    """Its settings name them all, so a report does not look at the images again."""
    target = images(tmp_path / "target", [(60, 90)])
    config = parse(["--target.images", str(target)])
    (tmp_path / "config.toml").write_text(to_toml(config))
    (target / "000.jpg").unlink()
    assert parse(["--config", str(tmp_path / "config.toml")]).views == config.views
