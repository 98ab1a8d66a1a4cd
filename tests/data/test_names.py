"""Patterns of names, the pairs of images and labels, and the patterns that are proposed."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from cpsl.data import SegmentationFolder
from cpsl.data.files import describe_skipped
from cpsl.data.matching import find_label_maps, pattern_of_some, propose_all_patterns, propose_patterns
from cpsl.data.names import IMAGE_SUFFIXES, Pattern, find_near_names, match_labels

words = st.text("abxyé", min_size=1, max_size=4)
literals = st.sampled_from(["", "_image", "img-", "/rgb/", "_", "/", ".v1", "[", "(?", "+"])


@given(
    literals,
    st.lists(literals.filter(bool), max_size=2),
    literals,
    st.sampled_from(["", ".png", ".JPG"]),
    st.data(),
)
def test_what_a_pattern_fills_it_matches(
    start: str, between: list[str], end: str, suffix: str, data: st.DataObject
) -> None:
    pattern = Pattern(start + "".join(f"*{text}" for text in [*between, end + suffix]))
    key = data.draw(st.tuples(*[words] * (len(between) + 1)))
    extension = suffix or data.draw(st.sampled_from(IMAGE_SUFFIXES))
    name = pattern.fill(key) + ("" if suffix else extension)
    matched = pattern.key(name)
    assert matched is not None
    assert pattern.fill(matched) + ("" if suffix else extension) == name
    assert len(matched) == pattern.stars
    # A text that contains a literal of the pattern can be divided in several ways.
    assert matched == key or any(set(text) & set("/_.-[(?+img") for text in [*between, end, start])
    assert pattern.key(name[: -len(extension)] + extension.upper()) == matched
    assert pattern.key(unicodedata.normalize("NFD", name)) == matched
    assert pattern.key(name[: -len(extension)] + ".txt") is None
    if start:
        assert pattern.key("#" + name) is None


def test_any_folders_are_not_filled_in() -> None:
    assert Pattern("**/*_mask.gif").fill(("a/b",)) == "a/b_mask.gif"
    assert Pattern("x/**/*/y/**/*").fill(("a", "b")) == "x/a/y/b"


PAIRS = [
    ("*_image.png", "*_annotation.png", "001_image.png", "001_annotation.png"),
    ("*", "*_mask.png", "monday/x.JPG", "monday/x_mask.PNG"),
    ("*_leftImg8bit", "*_gtFine_labelIds", "a/a_1_leftImg8bit.png", "a/a_1_gtFine_labelIds.png"),
    ("*/rgb/*", "*/semantic/*", "scene/rgb/7.jpg", "scene/semantic/7.png"),
    ("*/*", "*_*", "scene/7.jpg", "scene_7.png"),
    ("**/*", "**/*", "camera/day/7.jpg", "7.png"),
    ("**/*.jpg", "all/*", "7.jpg", "all/7.tif"),
    ("*", "*", "e\N{COMBINING ACUTE ACCENT}.jpg", "é.png"),
]


@pytest.mark.parametrize(("first", "second", "image", "label"), PAIRS)
def test_labels_are_found_by_patterns(first: str, second: str, image: str, label: str) -> None:
    images = {image: Path(image), "nothing.txt": Path("nothing.txt")}
    labels = {label: Path(label), "zz_other_zz.xml": Path("x")}
    assert match_labels(images, labels, Pattern(first), Pattern(second)) == ({image: label}, [])


def test_images_without_labels_and_labels_without_images_are_returned() -> None:
    images = {name: Path(name) for name in ("a.png", "b.png")}
    labels = {name: Path(name) for name in ("b_mask.png", "c_mask.png")}
    matched = match_labels(images, labels, Pattern("*"), Pattern("*_mask"))
    assert matched == ({"a.png": None, "b.png": "b_mask.png"}, ["c_mask.png"])


def test_patterns_that_do_not_fit_are_named() -> None:
    images = {name: Path(name) for name in ("x/1.png", "y/1.png")}
    with pytest.raises(ValueError, match=r'image_pattern "\*/\*" has 2 .*label_pattern "\*" has 1'):
        match_labels(images, images, Pattern("*/*"), Pattern("*"))
    with pytest.raises(
        ValueError, match=r'x/1\.png and y/1\.png are the same name, 1, in image_pattern "\*\*/\*"'
    ):
        match_labels(images, images, Pattern("**/*"), Pattern("*"))
    with pytest.raises(ValueError, match=r'"image\.png" has no star'):
        Pattern("image.png")


@given(
    st.sampled_from(["*_image", "*", "*_leftImg8bit", "images/*", "img*", "*_rgb_left", "a/b/*", "*/rgb/*"]),
    st.sampled_from(["*_mask", "*_gtFine_labelIds", "labels/*", "*.annotation", "lbl*", "*", "*/labels/*"]),
    st.lists(st.integers(0, 999), min_size=2, max_size=30, unique=True),
    st.sampled_from(["{:03d}", "frame_{:04d}", "town/town_{:06d}_000019", "IMG{}"]),
)
def test_the_proposed_patterns_match_all_images(
    first: str, second: str, numbers: list[int], name: str
) -> None:
    assume(first.count("*") == second.count("*"))
    keys = [("scene1", name.format(n)) if first.count("*") == 2 else (name.format(n),) for n in numbers]
    images = [f"{Pattern(first).fill(key)}.jpg" for key in keys]
    labels = [f"{Pattern(second).fill(key)}.png" for key in keys]
    proposal = propose_patterns(images, labels)
    assert proposal is not None
    assert proposal.matched == len(numbers)
    patterns = Pattern(proposal.image_pattern), Pattern(proposal.label_pattern)
    matched, orphans = match_labels(*({n: Path(n) for n in names} for names in (images, labels)), *patterns)
    assert matched == dict(zip(images, labels, strict=True))
    assert orphans == []


def test_names_that_share_nothing_have_no_proposal() -> None:
    assert propose_patterns(["a.jpg", "b.jpg"], ["7.png", "8.png"]) is None
    assert propose_patterns([], []) is None


def test_label_maps_among_images_are_found_by_their_names() -> None:
    nested = ["images/a.jpg", "images/b.jpg", "labels/a.png", "labels/b.png"]
    assert find_label_maps(nested) == {"labels/a.png": "images/a.jpg", "labels/b.png": "images/b.jpg"}
    beside = ["a.jpg", "b.jpg", "a_mask.png", "b_mask.png"]
    assert find_label_maps(beside) == {"a_mask.png": "a.jpg", "b_mask.png": "b.jpg"}
    for harmless in (["left/a.png", "right/a.png"], ["mask_ball.jpg", "street.jpg"], ["labels/a.png"], []):
        assert find_label_maps(harmless) == {}


NUMBERS = ("labelTrainIds", "labelIds", "labels", "gt")
OTHERS = ("color", "labelColor", "instanceIds", "invIds", "panoptic", "depth")


@given(
    st.lists(st.sampled_from(NUMBERS), min_size=1, unique=True),
    st.lists(st.sampled_from(OTHERS), unique=True),
    st.integers(2, 8),
)
def test_of_several_kinds_of_labels_class_numbers_come_first(
    numbers: list[str], others: list[str], count: int
) -> None:
    images = [f"town_{i:04d}_image.jpg" for i in range(count)]
    labels = [f"town_{i:04d}_{kind}.png" for i in range(count) for kind in (*others, *numbers)]
    found = propose_all_patterns(images, labels)
    assert {kind.label_pattern for kind in found} <= {f"*_{kind}.png" for kind in (*numbers, *others)}
    assert len(found) == min(len(numbers) + len(others), 6)
    assert all(kind.matched == count for kind in found)
    first = found[0].label_pattern
    if "labelTrainIds" in numbers and len(found) == len(numbers) + len(others):
        assert first == "*_labelTrainIds.png"
    elif len(found) == len(numbers) + len(others):
        assert first in {f"*_{kind}.png" for kind in numbers}


@given(
    st.sampled_from([("images/{}.png", "masks/{}.png"), ("{}.jpg", "{}.png"), ("{}_rgb.png", "{}_mask.png")]),
    st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
)
def test_a_pattern_of_some_matches_no_others(names: tuple[str, str], numbers: list[int]) -> None:
    images, maps = ([name.format(n) for n in numbers] for name in names)
    text = pattern_of_some(images, maps)
    assert text is not None
    assert [name for name in images + maps if Pattern(text).key(name)] == images
    assert pattern_of_some(images, [*maps, images[0]]) is None


@given(
    st.text("abc", min_size=1, max_size=4),
    st.integers(1, 999),
    st.sampled_from(
        ["{0}_{1}", "{0}_{1:06d}", " {0}_{1} ", "{0}\u200b_{1}", "\u202e{0}_{1}", "{0}\u00a0_{1}"]
    ),
    st.booleans(),
)
def test_names_that_differ_in_what_is_overlooked_are_found(
    text: str, number: int, form: str, upper: bool
) -> None:
    label = form.format(text.upper() if upper else text, number) + ".png"
    image = f"{text}_{number}.jpg"
    assert find_near_names(["x.jpg", image], ["y.png", label]) == (image, label)
    assert find_near_names([image], [f"{text}_{number}0.png", f"{text}{text}_{number}.png"]) is None


def test_the_error_of_missing_labels_shows_invisible_characters(tmp_path: Path) -> None:
    for name in ("images/a.png", "labels/a\u200b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.raises(FileNotFoundError) as raised:
        SegmentationFolder(tmp_path / "images", tmp_path / "labels", ["a"])
    assert "u200b" in str(raised.value)


SYSTEM = (
    "@eaDir",
    "__MACOSX",
    "#recycle",
    "@Recycle",
    "#snapshot",
    "@tmp",
    "@Recently-Snapshot",
    "$Recycle.Bin",
)


@pytest.mark.parametrize("system", [*SYSTEM, "RECYCLER", "Lost+Found", "system volume information"])
def test_folders_of_devices_and_archives_are_counted_but_not_searched(tmp_path: Path, system: str) -> None:
    for name in ("a.png", f"{system}/a.png/thumbnail.jpg", f"empty/{system}/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name, "PNG")
    dataset = SegmentationFolder(tmp_path)
    assert dataset.names == ["a"]
    assert dataset.skipped.keys() == {tmp_path / system}
    assert f"1 {system}/ (" in describe_skipped(dataset.skipped)


def test_the_error_of_a_folder_without_images_counts_hidden_ones(tmp_path: Path) -> None:
    for name in (".a.png", ".b.png", ".hidden/c.png", "@tmp/d.png", ".notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name, "PNG")
    with pytest.raises(FileNotFoundError) as raised:
        SegmentationFolder(tmp_path)
    assert "2 *.png (hidden" in str(raised.value)
    assert "1 @tmp/" in str(raised.value)
    Image.new("L", (4, 4)).save(tmp_path / "e.png")
    assert SegmentationFolder(tmp_path).skipped.keys() == {tmp_path / "@tmp"}
