"""Label spaces and the stored ids of the public data sets."""

from pathlib import Path

import pytest
from PIL import Image

from cpsl import Segmenter
from cpsl.data import SegmentationFolder
from cpsl.data.labels import (
    CITYSCAPES_13,
    CITYSCAPES_16,
    CITYSCAPES_19,
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    IGNORE_INDEX,
    SYNTHIA_IDS,
    LabelSpace,
)
from cpsl.data.palette import class_colors

RED = (255, 0, 0)


def test_the_published_subsets_are_ordered_parts_of_the_19_classes() -> None:
    assert (len(CITYSCAPES_19), len(CITYSCAPES_16), len(CITYSCAPES_13)) == (19, 16, 13)
    for part in (CITYSCAPES_16, CITYSCAPES_13):
        indices = [CITYSCAPES_19.names.index(name) for name in part.names]
        assert indices == sorted(indices)
        assert part.palette == tuple(CITYSCAPES_19.palette[i] for i in indices)
    assert set(CITYSCAPES_19.names) - set(CITYSCAPES_16.names) == {"terrain", "truck", "train"}
    assert set(CITYSCAPES_16.names) - set(CITYSCAPES_13.names) == {"wall", "fence", "pole"}


def test_cityscapes_ids_become_train_ids() -> None:
    expected = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    index_of = CITYSCAPES_19.index_of_ids(CITYSCAPES_IDS)
    assert [index_of[i] for i in expected] == list(range(19))
    assert {index_of[i] for i in index_of if i not in expected} == {IGNORE_INDEX}
    train_ids = CITYSCAPES_19.index_of_ids(CITYSCAPES_TRAIN_IDS)
    assert train_ids == {i: i for i in [*range(19), 255]}


def test_synthia_has_each_of_its_16_classes_once() -> None:
    index_of = CITYSCAPES_16.index_of_ids(SYNTHIA_IDS)
    classes = {i: index for i, index in index_of.items() if index != IGNORE_INDEX}
    assert sorted(classes.values()) == list(range(16))
    assert CITYSCAPES_16.names[classes[10]] == "person"
    assert set(index_of) - set(classes) == {0, 13, 14, 16, 18, 20, 22}


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        ((), (), "1 to 255 classes"),
        (("car", "bus", "car"), (RED,) * 3, "repeat: car"),
        (("car", "bus"), (RED,), "as many colors"),
        (("car",), ((256, 0, 0),), "0...255"),
    ],
)
def test_a_contradictory_label_space_is_refused(
    names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSpace(names, palette)


def test_one_text_is_no_list_of_classes(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for make in (
        lambda: LabelSpace("ab", ((0, 0, 0), (1, 1, 1))),  # type: ignore[arg-type]
        lambda: SegmentationFolder(tmp_path, classes="ab"),
        lambda: Segmenter.load(tmp_path / "model.pt", "ab"),
    ):
        with pytest.raises(TypeError, match=r"classes.*\['ab'\]"):
            make()


def test_a_subset_of_unknown_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="'tram'"):
        CITYSCAPES_19.subset(("car", "tram"))


@pytest.mark.parametrize(
    "names", [("caf\u00e9", "cafe\u0301"), ("", "road"), ("road ", "car"), ("\tcar", "road")]
)
def test_names_that_look_the_same_or_are_empty_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="class name"):
        LabelSpace(names, class_colors(names))


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\udcff"])
def test_names_with_control_characters_are_refused(character: str) -> None:
    with pytest.raises(ValueError, match="class name"):
        LabelSpace(("road", f"s{character}ky"), class_colors(("road", "sky")))


def test_names_of_any_language_are_accepted() -> None:
    names = ("Straße", "道路 1", "می\u200cشود", "traffic\u00a0light", "🚗", "<b>")
    assert LabelSpace(names, class_colors(names)).names == names
