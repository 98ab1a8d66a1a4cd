"""Proposed settings are valid, and describe the labels."""

import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.data.labels import LabelSpace
from cpsl.data.palette import class_colors
from cpsl.data.propose import propose_values
from cpsl.data.values import ClassMap, StoredValues, count_stored_values


@given(
    st.dictionaries(st.integers(-3, 70_000), st.integers(1, 50), max_size=12),
    st.sampled_from(["L", "I;16", "I"]),
)
@example({-1: 1}, "I")  # a label that is ignored as a whole
def test_proposed_numbers_are_accepted_once_their_classes_are_known(
    numbers: dict[int, int], mode: str
) -> None:
    classes = LabelSpace(("a", "b", "c"), class_colors("abc"))
    proposal = propose_values(StoredValues(1, {mode: 1}, numbers, {}, []), classes)
    lines = tomllib.loads("\n".join(proposal.lines).replace('"?"', '"a"'))
    ids = {int(key): value for key, value in lines.get("ids", {}).items()}
    accepted = ClassMap(
        classes, ids, first_id=lines.get("first_id", 0), ignore_unknown=lines.get("ignore_unknown", False)
    )
    stored = np.array([list(numbers) or [0]], np.int64)
    assert accepted.convert(stored, Path("a.tif")).shape == stored.shape
    assert bool(lines.get("ignore_unknown")) == any(not 0 <= value <= 65535 for value in numbers)


@given(numbers=st.dictionaries(st.integers(-300, 70_000), st.integers(1, 50), min_size=1, max_size=9))
def test_gray_labels_among_colors_may_hold_any_number(numbers: dict[int, int]) -> None:
    stored = StoredValues(2, {"RGB": 1, "I": 1}, numbers, {"#010203": 7}, [])
    classes = LabelSpace(("a", "b"), class_colors("ab"))
    (line,) = propose_values(stored, classes).lines
    grays = {f"#{number:02x}{number:02x}{number:02x}" for number in numbers if 0 <= number < 256}
    assert tomllib.loads(line)["ids"].keys() == {"#010203", *grays}


def test_files_without_frequent_colors_get_no_ids() -> None:
    colors = {f"#{value:06x}": 1 for value in range(0, 2**24, 9999)}
    proposal = propose_values(StoredValues(1, {"RGB": 1}, {}, colors, []), LabelSpace(("a",), ((1, 2, 3),)))
    assert proposal.lines == []
    assert "too many" in proposal.notes[0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@given(classes=st.integers(1, 40), quality=st.integers(40, 95), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_class_numbers_in_jpeg_get_no_ids(mode: str, classes: int, quality: int, seed: int) -> None:
    space = LabelSpace(tuple(f"c{i}" for i in range(classes)), ((9, 9, 9),) * classes)
    blocks = np.random.default_rng(seed).integers(0, classes, (4, 4)).astype(np.uint8)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.jpg")
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).convert(mode).save(path, quality=quality)
        proposal = propose_values(count_stored_values([path]), space)
    assert proposal.lines == []
    assert "PNG" in proposal.notes[-1]


@given(st.sets(st.integers(6, 254), min_size=1, max_size=5), st.integers(3, 5))
def test_255_is_ignored_only_if_there_are_more_values_than_classes(numbers: set[int], classes: int) -> None:
    space = LabelSpace(tuple("abcde"[:classes]), ((9, 9, 9),) * classes)
    stored = dict.fromkeys([*sorted(numbers), 255], 9)
    (line,) = propose_values(StoredValues(1, {"L": 1}, stored, {}, []), space).lines
    assert tomllib.loads(line)["ids"]["255"] == (255 if len(stored) > classes else "?")
