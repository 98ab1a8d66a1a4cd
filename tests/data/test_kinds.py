"""Several kinds of images and labels, in the layouts of public data sets, and their proposals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl.data import SegmentationFolder
from cpsl.data.kinds import Kinds, propose_kinds
from cpsl.data.matching import propose_all_patterns, propose_for_one_folder
from cpsl.data.names import Pattern, match_labels

NOISE = np.random.default_rng(0)
CLASSES = ["ground", "vessel"]


def write(folder: Path, form: str, pixels: Callable[[], np.ndarray], count: int = 3) -> None:
    for number in range(21, 21 + count):
        path = folder / form.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels()).save(path)


def photo() -> np.ndarray:
    return NOISE.integers(0, 255, (8, 10, 3)).astype(np.uint8)


def gray() -> np.ndarray:
    return photo()[..., 0]


def label() -> np.ndarray:
    values = np.zeros((8, 10), np.uint8)
    values[2:5, 3:7] = 255
    return values


def full() -> np.ndarray:
    return np.full((8, 10), 255, np.uint8)


def kinds_of(images: Path, labels: Path) -> Kinds:
    def names(folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))

    return propose_kinds(images, labels, names(images), names(labels))


@pytest.mark.parametrize(
    ("image", "kinds"),
    [
        ("images/{}_training.tif", ["1st_manual/{}_manual1.gif", "mask/{}_training_mask.gif"]),
        ("images/{}_h.jpg", ["manual1/{}_h.tif", "mask/{}_h_mask.tif"]),
        ("images/{}.jpg", ["masks/{}.jpg"]),
        ("{}.png", ["{}_L.png"]),
        ("{}L.jpg", ["{}L_1stHO.png", "{}L_2ndHO.png"]),
        ("{}_sat.jpg", ["{}_mask.png"]),
        ("images/a/{}.png", ["labels/ids/{}.png", "labels/color/{}.png"]),
        ("img/a/{}_img.png", ["gt/a/{}_gt_labelIds.png", "gt/a/{}_gt_color.png", "gt/a/{}_gt_instance.png"]),
    ],
)
def test_one_folder_of_images_and_several_kinds_of_labels(image: str, kinds: list[str]) -> None:
    numbers = range(21, 33)
    names = [form.format(number) for number in numbers for form in (image, *kinds)]
    found = propose_for_one_folder(names)
    assert len(found) == len(kinds)
    for proposal, kind in zip(found, kinds, strict=True):
        first, second = Pattern(proposal.image_pattern), Pattern(proposal.label_pattern)
        labels = {name: Path(name) for name in names if second.key(name)}
        images = {name: Path(name) for name in names if first.key(name)}
        if first.text == "*":
            images = {name: path for name, path in images.items() if name not in labels}
        assert images.keys().isdisjoint(labels)
        matched, _ = match_labels(images, labels, first, second)
        assert {matched[image.format(number)] for number in numbers} == {kind.format(n) for n in numbers}


@given(
    st.lists(st.sampled_from(["rgb", "nir", "left"]), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from(["manual1", "manual2", "mask", "color", "iMap"]), min_size=1, unique=True),
    st.sampled_from(
        [("{}/{}.png", "{}/{}.png"), ("a/{}/f{}.png", "b/dlp/{}/f{}.png"), ("{}_{}.png", "{}_{}.png")]
    ),
    st.booleans(),
)
def test_each_kind_of_labels_has_a_pattern_of_its_own(
    channels: list[str], kinds: list[str], forms: tuple[str, str], swapped: bool
) -> None:
    images = [forms[0].format(channel, number) for channel in channels for number in range(5, 12)]
    labels = [forms[1].format(kind, number) for kind in kinds for number in range(5, 12)]
    found = propose_all_patterns(images[:: -1 if swapped else 1], labels)
    chosen = [[name for name in labels if Pattern(kind.label_pattern).key(name)] for kind in found]
    assert sum(map(len, chosen)) == len({name for names in chosen for name in names})
    if len(found) == len(kinds):
        order = sorted(kinds, key=lambda kind: next(i for i, names in enumerate(chosen) if kind in names[0]))
        likely = [kind for kind in ("manual1", "manual2") if kind in kinds]
        assert [kind for kind in order if kind in likely] == likely
        assert "mask" not in order or set(order[order.index("mask") :]) <= {"mask", "color"}


@pytest.mark.parametrize("nested", [False, True])
def test_annotations_of_vessels_are_proposed_not_the_field_of_view(tmp_path: Path, nested: bool) -> None:
    write(tmp_path, "images/{}_training.tif", photo)
    write(tmp_path, "mask/{}_training_mask.gif", full)
    write(tmp_path, "1st_manual/{}_manual1.gif", label)
    images = tmp_path / "images" if nested else tmp_path
    with pytest.raises((FileNotFoundError, ValueError), match=r"_training\.tif.*_manual1\.gif") as error:
        SegmentationFolder(images, tmp_path, CLASSES)
    with pytest.raises(FileNotFoundError) as missing:
        SegmentationFolder(images, tmp_path, CLASSES, image_pattern="*_training", label_pattern="**/*_mask")
    assert f"{tmp_path}/**/" not in str(error.value) + str(missing.value)


@pytest.mark.parametrize(("first", "second"), [("nir", "rgb"), ("a", "b"), ("b", "a")])
@pytest.mark.parametrize(("one", "two"), [("one", "two"), ("two", "one")])
def test_images_in_color_and_labels_of_several_values_come_first(
    tmp_path: Path, first: str, second: str, one: str, two: str
) -> None:
    write(tmp_path, f"images/{first}/f{{}}.png", gray)
    write(tmp_path, f"images/{second}/f{{}}.png", photo)
    write(tmp_path, f"labels/{one}/f{{}}.png", full)
    write(tmp_path, f"labels/{two}/f{{}}.png", label)
    best, other_labels, other_images = kinds_of(tmp_path / "images", tmp_path / "labels")
    assert best is not None
    assert best[:2] == (f"{second}/*.png", f"{two}/*.png")
    assert [kind[:2] for kind in other_labels] == [(f"{second}/*.png", f"{one}/*.png")]
    assert [kind[:2] for kind in other_images] == [(f"{first}/*.png", f"{two}/*.png")]
