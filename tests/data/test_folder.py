"""Folders as people have them: names, formats and values of images and labels."""

import re
import tomllib
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpsl.data.folder import SegmentationFolder
from cpsl.data.labels import LabelSpace
from cpsl.data.pictures import read_image
from cpsl.data.propose import is_suspicious_mask, propose_settings, propose_values
from cpsl.data.sample import Subset
from cpsl.data.values import ClassMap, count_stored_values

CLASSES = LabelSpace(("ground", "thing"), ((0, 0, 0), (255, 0, 0)))


def write(path: Path, pixels: object, dtype: type = np.uint8, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, dtype)).save(path, **options)
    return path


def write_pair(image: Path, label: Path, value: int = 1) -> None:
    write(image, np.full((2, 3, 3), 9))
    write(label, np.full((2, 3), value))


def labels_of(dataset: SegmentationFolder) -> dict[str, int]:
    """Returns the first pixel of each label."""
    return {name: int(label[0, 0]) for _, label, name in dataset if label is not None}


@pytest.mark.parametrize(
    ("images", "labels", "settings"),
    [
        (
            ["1_image.png", "2_image.png"],
            ["1_annotation.png", "2_annotation.png"],
            ("*_image", "*_annotation.png"),
        ),
        (["x.JPG", "y.jpeg"], ["x_mask.png", "y_mask.PNG"], ("*", "*_mask")),
        (
            ["a/a_1_leftImg8bit.png", "b/b_1_leftImg8bit.png"],
            ["a/a_1_gtFine_labelIds.png", "b/b_1_gtFine_labelIds.png"],
            ("*_leftImg8bit", "*_gtFine_labelIds"),
        ),
        (["day/a.tif", "night/b.bmp"], ["a.png", "b.png"], ("**/*", "*")),
    ],
)
def test_the_names_of_public_data_sets_need_no_script(
    tmp_path: Path, images: list[str], labels: list[str], settings: tuple[str, str]
) -> None:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_pair(tmp_path / "images" / image, tmp_path / "labels" / label, i)
    folders = tmp_path / "images", tmp_path / "labels", CLASSES
    dataset = SegmentationFolder(*folders, image_pattern=settings[0], label_pattern=settings[1])
    keys = [name.rpartition(".")[0] for name in images]
    assert labels_of(dataset) == {key: i for i, key in enumerate(keys)}
    assert dataset.files(1) == (tmp_path / "images" / images[1], tmp_path / "labels" / labels[1])
    # Without the settings, the error proposes some that match.
    with pytest.raises(FileNotFoundError, match=r"2 of 2 images have.*match 2 of 2 images: ") as error:
        SegmentationFolder(*folders)
    assert '_pattern = "' in str(error.value)
    assert '= "*"' not in str(error.value)


def test_patterns_that_are_no_better_than_those_set_are_not_proposed(tmp_path: Path) -> None:
    for i in range(4):
        write_pair(tmp_path / "i" / f"{i}.png", tmp_path / "l" / f"{i}_mask.png", i % 2)
    (tmp_path / "l" / "3_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 4 images have no label") as error:
        SegmentationFolder(tmp_path / "i", tmp_path / "l", CLASSES, label_pattern="*_mask")
    assert "These settings match" not in str(error.value)


def test_images_and_labels_may_lie_in_one_folder(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.jpg", tmp_path / "a_mask.png")
    write_pair(tmp_path / "b.jpg", tmp_path / "b_mask.png", 0)
    for patterns in (("*", "*_mask"), ("*.jpg", "*_mask.png")):
        dataset = SegmentationFolder(
            tmp_path, tmp_path, CLASSES, image_pattern=patterns[0], label_pattern=patterns[1]
        )
        assert labels_of(dataset) == {"a": 1, "b": 0}
    (tmp_path / "b_mask.png").rename(tmp_path / "b.png")
    (tmp_path / "a_mask.png").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"differ only in their extension.*pattern"):
        SegmentationFolder(tmp_path, tmp_path, CLASSES)
    dataset = SegmentationFolder(tmp_path, tmp_path, CLASSES, image_pattern="*.jpg", label_pattern="*.png")
    assert labels_of(dataset) == {"a": 1, "b": 0}


def test_a_folder_of_labels_in_the_folder_of_images_is_no_image(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.jpg", tmp_path / "labels" / "a.png")
    assert labels_of(SegmentationFolder(tmp_path, tmp_path / "labels", CLASSES)) == {"a": 1}
    write(tmp_path / "images" / "b.jpg", np.zeros((2, 3, 3)))
    write(tmp_path / "b.png", np.zeros((2, 3)))
    write(tmp_path / "a.png", np.zeros((2, 3)))
    (tmp_path / "labels" / "a.png").unlink()
    (tmp_path / "a.jpg").rename(tmp_path / "images" / "a.jpg")
    assert labels_of(SegmentationFolder(tmp_path / "images", tmp_path, CLASSES)) == {"a": 0, "b": 0}


def test_label_maps_among_the_images_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "images" / "a.jpg", tmp_path / "labels" / "a.png")
    with pytest.raises(ValueError, match=r"1 of 2 files .*labels/a\.png of images/a\.jpg.*image_pattern"):
        SegmentationFolder(tmp_path)
    assert SegmentationFolder(tmp_path, image_pattern="images/*").names == ["images/a"]
    assert SegmentationFolder(tmp_path, image_pattern="*.jpg").names == ["images/a"]


def test_composed_and_decomposed_names_match(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    write_pair(tmp_path / "i" / f"{decomposed}.jpg", tmp_path / "l" / f"{composed}.png")
    assert labels_of(SegmentationFolder(tmp_path / "i", tmp_path / "l", CLASSES)) == {composed: 1}
    write(tmp_path / "i" / f"{composed}.jpg", np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"look the same.*Unicode.*'\\xe9\.jpg'"):
        SegmentationFolder(tmp_path / "i")


def test_all_formats_are_images_and_the_rest_is_listed(tmp_path: Path) -> None:
    for suffix in ("png", "JPG", "tiff", "bmp", "webp", "gif", "ppm"):
        write(tmp_path / f"{suffix}.{suffix}", np.full((2, 3, 3), 255))
    for name in ("a.avif", "notes.txt", ".hidden.png", "b.npy"):
        (tmp_path / name).touch()
    dataset = SegmentationFolder(tmp_path)
    assert dataset.names == ["JPG", "bmp", "gif", "png", "ppm", "tiff", "webp"]
    assert all(image.min() > 250 for image, _, _ in dataset)
    assert {path.name for path in dataset.skipped} == {"a.avif", "notes.txt", "b.npy"}
    assert "convert" in dataset.skipped[tmp_path / "a.avif"]
    assert Subset(dataset, [0]).skipped == dataset.skipped
    dataset = SegmentationFolder(tmp_path, image_pattern="*.png")
    assert "*.png" in dataset.skipped[tmp_path / "bmp.bmp"]
    with pytest.raises(FileNotFoundError, match=r"1 \*\.avif \(.*convert"):
        SegmentationFolder(tmp_path, image_pattern="*_x")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x20ftypavif", "AVIF.*convert"),
        (b"\0\0\0\x20ftypheic", "HEIC.*convert"),
        (b"\xff\x0a__", "JPEG XL.*convert"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG.*convert"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "AccessDenied"),
        (b"hello", "hello"),
    ],
)
def test_files_of_other_formats_are_named(tmp_path: Path, start: bytes, words: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=rf"a\.jpg cannot be read: .*{words}"):
        read_image(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a.png", "a file.* its folder is .*here"),
        ("a.zip", "a file.* unpack"),
        ("*.png", "a pattern.* such as .*here, .*image_pattern"),
        ("**/x/*.png", "a pattern.* such as .*here, .*image_pattern"),
        ("gone", "no folder"),
    ],
)
@pytest.mark.parametrize("find", [SegmentationFolder, lambda path: propose_settings(path, path, CLASSES)])
def test_what_is_no_folder_is_named_as_what_it_is(
    tmp_path: Path, find: Callable[[Path], object], given: str, words: str
) -> None:
    folder = tmp_path / "here"
    write(folder / "a.png", [[0]])
    (folder / "a.zip").touch()
    with pytest.raises(FileNotFoundError, match=words) as refused:
        find(folder / given)
    assert str(folder / given) in str(refused.value)


def test_a_missing_folder_is_named_with_the_place_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(FileNotFoundError, match=re.escape(f"../gone ({tmp_path / 'gone'})")):
        SegmentationFolder("../gone")


def test_gray_images_of_more_than_8_bits_are_scaled_as_stated(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.png", [[0, 4095, 65535]], np.uint16)
    decimal = write(tmp_path / "decimal.tif", [[0, 0.5, 1]], np.float32)
    whole = write(tmp_path / "whole.tif", [[-1000, 0, 1000]], np.int32)
    shallow = write(tmp_path / "shallow.png", [[0, 7, 255]])

    def read(path: Path, *value_range: float) -> list[int]:
        levels: list[int] = read_image(path, value_range or None)[0, 0].tolist()  # type: ignore[arg-type]
        return levels

    assert read(deep) == [0, 15, 255]
    assert read(deep, 0, 4095) == [0, 255, 255]
    assert read(decimal, 0, 1) == [0, 128, 255]
    assert read(whole, -1000, 1000) == [0, 128, 255]
    assert read(shallow, 0, 1) == read(shallow) == [0, 7, 255]
    for path, words in ((decimal, "floating-point numbers, 0 to 1"), (whole, "32 bits.*-1000 to 1000")):
        with pytest.raises(ValueError, match=rf"{path.name} .*{words}.*value_range"):
            read(path)
    write(decimal, [[np.nan]], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        read(decimal, 0, 1)
    with pytest.raises(ValueError, match="value_range"):
        read(deep, 1, 1)


def test_settings_are_proposed_for_masks_offsets_and_colors(tmp_path: Path) -> None:
    def propose(*pixels: object) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        paths = [write(folder / f"{i}.png", each) for i, each in enumerate(pixels)]
        lines = propose_values(count_stored_values(paths), CLASSES).lines
        ids = [line for line in lines if line.startswith("ids") and "?" not in line]
        if ids or "first_id = 1" in lines:
            table = tomllib.loads("\n".join(lines))
            mapped = ClassMap(CLASSES, _with_numbers(table.pop("ids", {})), **table)
            assert all(mapped.read(path) for path in paths)
        return lines

    gray = write(tmp_path / "gray.jpg", np.kron([[0, 255], [255, 0]], np.ones((40, 40))), quality=70)
    lines = propose_values(count_stored_values([gray]), CLASSES).lines
    assert lines[0] == 'ids = { 0 = "ground", 255 = "thing" }'
    assert lines[1].startswith("tolerance")
    assert propose([[0, 1, 255]]) == propose([[0]]) == []
    assert propose([[0]], [[0, 255]]) == ['ids = { 0 = "ground", 255 = "thing" }']
    assert propose([[1, 2]]) == propose([[0, 1, 2, 255]]) == ["first_id = 1"]
    assert propose([[7, 9, 255]]) == ['ids = { 7 = "?", 9 = "?", 255 = 255 }']
    level = [[[value] * 3 for value in (0, 1, 255)]]
    assert propose(level) == ['ids = { "#000000" = "ground", "#010101" = "thing", "#ffffff" = "ignore" }']
    red, white = (255, 0, 0), (255, 255, 255)
    assert propose([[red, (0, 0, 0), red]]) == ['ids = { "#ff0000" = "thing", "#000000" = "ground" }']
    assert propose([[white, (0, 0, 0), white]]) == ['ids = { "#ffffff" = "thing", "#000000" = "ground" }']
    assert propose([[red, white, white]]) == ['ids = { "#ffffff" = "?", "#ff0000" = "thing" }']


def test_inexact_colors_are_proposed_with_a_tolerance(tmp_path: Path) -> None:
    pixels = np.zeros((64, 1024, 3), np.uint8)
    pixels[:, 510:] = 255, 0, 0
    path = write(tmp_path / "a.jpg", pixels, quality=60)
    proposal = propose_values(count_stored_values([path]), CLASSES)
    assert any("tolerance = " in line for line in proposal.lines)
    table = tomllib.loads("\n".join(proposal.lines))
    label, _ = ClassMap(CLASSES, table.pop("ids"), **table).read(path)
    assert label[:, :500].unique().tolist() == [0]
    assert label[:, 524:].unique().tolist() == [1]
    assert "% of the pixels have other" in " ".join(proposal.notes)


def test_patterns_and_values_are_proposed_from_folders(tmp_path: Path) -> None:
    for i in range(3):
        write_pair(tmp_path / "i" / f"{i}_image.jpg", tmp_path / "l" / f"{i}_mask.png", 255 * (i % 2))
    proposal = propose_settings(tmp_path / "i", tmp_path / "l", CLASSES)
    table = tomllib.loads("\n".join(proposal.lines))
    dataset = SegmentationFolder(
        tmp_path / "i", tmp_path / "l", CLASSES, **{**table, "ids": _with_numbers(table["ids"])}
    )
    assert labels_of(dataset) == {"0_image": 0, "1_image": 1, "2_image": 0}
    assert "3 of 3" in proposal.notes[0]
    assert propose_settings(tmp_path / "i", tmp_path / "i", CLASSES, ids_given=True).lines == []


def test_masks_of_0_and_255_are_refused_until_255_has_a_meaning(tmp_path: Path) -> None:
    for i in range(40):
        write_pair(tmp_path / "i" / f"{i}.jpg", tmp_path / "l" / f"{i}.png", 255 * (i % 2))
    folders = tmp_path / "i", tmp_path / "l", CLASSES
    with pytest.raises(ValueError, match=r"l/0\.png.* only 0 and 255.*0 = \"ground\", 255 = \"thing\""):
        SegmentationFolder(*folders)
    assert set(labels_of(SegmentationFolder(*folders, ids={0: 0, 255: 1})).values()) == {0, 1}
    assert set(labels_of(SegmentationFolder(*folders, ids={0: 0, 1: 1, 255: 255})).values()) == {0, 255}
    assert len(SegmentationFolder(tmp_path / "i", tmp_path / "l", ["a", "b", "c"])) == 40
    write(tmp_path / "l" / "0.png", [[0, 0, 1]] * 2)
    assert len(SegmentationFolder(*folders)) == 40


def test_suspicious_masks_are_recognized() -> None:
    assert is_suspicious_mask([0, 255], 2)
    assert is_suspicious_mask([255], 2)
    assert not any(is_suspicious_mask(numbers, 2) for numbers in ([0], [0, 1], [0, 1, 255], [0, 254]))
    assert not is_suspicious_mask([0, 255], 3)


def _with_numbers(ids: dict[str, str]) -> dict[int | str, int | str]:
    """Returns ids of a TOML table with numbers as keys, as the settings read them."""
    return {int(key) if key.isdigit() else key: value for key, value in ids.items()}
