"""What the check says of data: nothing is lost in the groups, lines can be copied, warnings have a reason."""

import re
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.app.checking.words import (
    SHOWN_KINDS,
    SHOWN_VALUES,
    WIDTH,
    class_shares,
    describe_kinds,
    find_warnings,
    kinds_of,
    summary,
)
from cpsl.app.domain import Domain
from cpsl.data import ClassMap, DatasetCheck, Finding, LabelSpace, class_colors

SPACE = LabelSpace(("ground", "car", "sky"), class_colors(("ground", "car", "sky")))
FOLDER = Domain()

VALUES = st.dictionaries(st.integers(3, 254), st.integers(1, 24), min_size=1, max_size=5)
REASONS = {
    "image": ["it is empty", "image file is truncated ({} bytes not processed)"],
    "label": ["this image has the channels RGB", "broken PNG file (chunk b'{}')"],
    "size": ["the image is {}x4, but its label is 3x{}"],
    "unlabeled": ["no label, though other images have one"],
    "other": ["a fault"],
}


@st.composite
def findings(draw: st.DrawFn) -> list[Finding]:
    """Problems of images 0, 1, ...; the reasons of one kind differ in their numbers."""
    found = list[Finding]()
    for index in range(draw(st.integers(0, 12))):
        file = f"{draw(st.sampled_from(['a b', 'c']))}/{index}.png"
        if draw(st.booleans()):
            values = draw(VALUES)
            found.append(Finding("values", file, f"{file} has unknown values", "", {**values}, 24))
            continue
        kind = draw(st.sampled_from(sorted(REASONS)))
        reason = draw(st.sampled_from(REASONS[kind])).format(index, index)
        found.append(Finding(kind, file, f"{file}: {reason}", reason))  # type: ignore[arg-type]
    return found


def checked(
    counts: list[int], ignored: int = 0, found: list[Finding] | None = None, images: int = 20
) -> DatasetCheck:
    found = found or []
    problems = [finding.message for finding in found]
    return DatasetCheck(images, images, {(4, 6): images}, torch.tensor(counts), problems, found, ignored, [])


def test_sizes_that_need_another_remedy_are_another_kind() -> None:
    reasons = [
        "its label is 3x4; resize_labels",
        "its label is 5x4; resize_labels",
        "its label is 3x4; swapped",
    ]
    found = [Finding("size", f"{index}.png", reason, reason) for index, reason in enumerate(reasons)]
    assert [len(of_kind) for of_kind in kinds_of(found).values()] == [2, 1]


@given(found=findings())
def test_groups_hold_every_problem_once(found: list[Finding]) -> None:
    kinds = kinds_of(found)
    grouped = [finding for of_kind in kinds.values() for finding in of_kind]
    assert Counter(finding.file for finding in grouped) == Counter(finding.file for finding in found)
    assert len(kinds) <= len(REASONS) + 3  # numbers in a reason do not make another kind
    texts = describe_kinds("source", FOLDER, checked([9, 9, 9], found=found), SPACE)
    assert len(texts) == len(kinds)
    numbers = [int(re.match(r"source: (\d+) of 20 ", text)[1]) for text in texts]  # type: ignore[index]
    assert numbers == [len(of_kind) for of_kind in kinds.values()]
    for text, of_kind in zip(texts, kinds.values(), strict=True):
        assert all(f"\n  {finding.file}" in text for finding in of_kind[:2])
        assert "Fix: " in text


@given(st.lists(st.floats(width=32), min_size=2, max_size=9))
def test_numbers_of_any_form_are_one_kind(numbers: list[float]) -> None:
    reasons = [f"it holds numbers, {low:.6g} to {high}: set" for low, high in pairwise(numbers)]
    found = [Finding("image", f"{i}.tif", "", reason) for i, reason in enumerate(reasons)]
    assert len(kinds_of(found)) == 1
    assert len(kinds_of([Finding("image", "a", "", text) for text in ("nan information", "inform")])) == 2


@given(found=findings())
def test_lines_fit_into_a_terminal_except_those_to_copy(found: list[Finding]) -> None:
    for text in describe_kinds("source 2", FOLDER, checked([9, 9, 9], found=found), SPACE):
        for line in text.splitlines():
            assert len(line) <= WIDTH or line.startswith("    ids = ")


@given(found=findings(), ids=st.dictionaries(st.integers(0, 2), st.sampled_from([0, 1, 2, 255])))
def test_the_fix_of_unknown_values_is_a_line_of_settings(found: list[Finding], ids: dict[int, int]) -> None:
    texts = describe_kinds("source", Domain(ids=ids), checked([9, 9, 9], found=found), SPACE)
    unknown, pixels = Counter[Any](), 27
    for finding in found:
        unknown.update(finding.values)
        pixels += finding.pixels
    lines = [line for text in texts for line in text.splitlines() if "ids = " in line]
    assert len(lines) == bool(unknown)
    for line in lines:
        entries = {int(value): index for value, index in tomllib.loads(line)["ids"].items()}
        assert entries == {**(ids or {0: 0, 1: 1, 2: 2, 255: 255}), **dict.fromkeys(unknown, 255)}
    text = " ".join(" ".join(texts).split())
    for value, count in unknown.items():
        share = 100 * count / pixels
        (shown,) = re.findall(rf"\b{value} \(([\d.]+) %\)", text)
        assert float(shown) == pytest.approx(share, abs=0.051 if share >= 10 else 0.0051)


@given(
    values=st.sets(st.integers(-5, 5) | st.integers(65530, 70_000), min_size=1, max_size=9),
    ids=st.dictionaries(st.integers(0, 9), st.just(1), max_size=3),
)
def test_the_fix_of_any_numbers_is_accepted(values: set[int], ids: dict[int, int]) -> None:
    found = [Finding("values", "a.tif", "a.tif", "", dict.fromkeys(values, 1), 24)]
    (text,) = describe_kinds("source", Domain(ids=ids), checked([1, 1, 1], found=found), SPACE)
    lines = [line for line in text.splitlines() if line.startswith(("    ids", "    ignore"))]
    advised = {"ids": ids, **tomllib.loads("\n".join(lines))}
    advised["ids"] = {int(value): index for value, index in advised["ids"].items()}
    stored = np.array([sorted(values)], np.int32)
    assert ClassMap(SPACE, **advised).convert(stored, Path("a.tif")).shape == stored.shape


def test_colors_are_quoted_in_the_fix() -> None:
    found = [Finding("values", "a.png", "a.png", "", {"#ff0000": 3, 7: 1}, 24)]
    (text,) = describe_kinds("source", FOLDER, checked([1, 1, 1], found=found), SPACE)
    assert tomllib.loads(text.splitlines()[-1])["ids"]["#ff0000"] == 255


@pytest.mark.parametrize("kind", ["label", "values", "orientation"])
def test_the_fix_does_not_contradict_what_is_proposed(kind: str) -> None:
    found = [Finding(kind, "a.png", "a.png", "a reason", {7: 1}, 24)]
    (text,) = describe_kinds("source", FOLDER, checked([1, 1, 1], found=found), SPACE, proposed=True)
    assert "ids" not in text
    assert "correct these files" not in text
    assert text.splitlines()[-1] == "  Fix: copy the lines proposed above"


def test_a_reason_that_names_the_setting_needs_no_other_fix() -> None:
    found = [Finding("image", "a.tif", "a.tif", "it holds numbers: set value_range to two values")]
    (text,) = describe_kinds("source", FOLDER, checked([1, 1, 1], found=found), SPACE)
    assert "Fix" not in text


@given(first=st.integers(0, 5))
def test_the_fix_keeps_the_classes_of_an_offset(first: int) -> None:
    found = [Finding("values", "a.png", "a.png", "", {99: 3}, 24)]
    (text,) = describe_kinds("source", Domain(first_id=first), checked([1, 1, 1], found=found), SPACE)
    entries = {int(value): index for value, index in tomllib.loads(text.splitlines()[-1])["ids"].items()}
    before, after = ClassMap(SPACE, None, first_id=first), ClassMap(SPACE, entries)
    known = np.array([[*range(first + 3), 255]], np.uint8)
    assert torch.equal(before.convert(known, Path("a")), after.convert(known, Path("a")))
    assert ("in place of first_id" in " ".join(text.split())) == (first > 0)


def test_many_values_are_no_label_map() -> None:
    values = {value: 1 + value for value in range(3, 253)}
    found = [Finding("values", "a.png", "a.png", "", {**values}, 10**6)]
    (text,) = describe_kinds("source", FOLDER, checked([1, 1, 1], found=found), SPACE)
    assert text.count("%)") == SHOWN_VALUES
    assert f"and {250 - SHOWN_VALUES} others" in " ".join(text.split())
    assert "252 (" in text
    assert "no label maps" in text
    assert "ids = " not in text


def test_other_layouts_have_no_ids_to_set() -> None:
    found = [Finding("values", "a.png", "a.png", "", {7: 1}, 24)]
    (text,) = describe_kinds("target", Domain(dataset="gta5"), checked([1, 1, 1], found=found), SPACE)
    assert "ids = " not in text


def test_very_many_kinds_are_counted() -> None:
    found = [Finding("other", f"{i}.png", "", "fault " + "x" * i) for i in range(SHOWN_KINDS + 3)]
    texts = describe_kinds("source", FOLDER, checked([1, 1, 1], found=found), SPACE)
    assert len(texts) == SHOWN_KINDS + 1
    assert texts[-1] == "source: 3 problems of 3 other kinds"


def test_the_summary_names_sizes_and_labels() -> None:
    result = checked([30, 10, 0], ignored=40)._replace(
        sizes={(4, 6): 15, (6, 4): 1, (1, 1): 1, (2, 2): 1, (3, 3): 1, (5, 5): 1}
    )
    text = " ".join(summary("source", result).split())
    assert "20 images (15 of 6x4" in text
    assert "2 of 2 other sizes" in text
    assert "20 with labels" in text


@pytest.mark.parametrize(("count", "words"), [(1, "1 problem"), (2, "2 problems")])
def test_the_summary_counts_problems(count: int, words: str) -> None:
    found = [Finding("other", f"{i}.png", "", "a fault") for i in range(count)]
    assert summary("source", checked([1, 1, 1], found=found)).split(", ")[-1] == words


@given(
    counts=st.lists(st.lists(st.integers(0, 900), min_size=3, max_size=3), min_size=1, max_size=4),
    ignored=st.integers(0, 900),
)
def test_class_shares_stand_in_one_column_for_each_domain_with_labels(
    counts: list[list[int]], ignored: int
) -> None:
    names = ["source", "evaluation", "source of a long name", "x"]
    results = {name: checked(each, ignored=ignored) for name, each in zip(names, counts, strict=False)}
    lines = class_shares(results, SPACE).splitlines()
    shown = [name for name, each in results.items() if int(each.counts.sum()) + ignored]
    assert len(lines) == (5 if shown else 0)
    if not shown:
        return
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == " ".join(["% of labeled pixels", *shown]).split()
    shares = [[float(value) for value in line.split()[-len(shown) :]] for line in lines[1:]]
    for column, name in enumerate(shown):
        pixels, total = results[name].counts.tolist(), int(results[name].counts.sum())
        expected = [100 * each / max(total, 1) for each in pixels] + [100 * ignored / (total + ignored)]
        assert [row[column] for row in shares] == pytest.approx(expected, abs=0.0006)


COUNTS = st.lists(st.sampled_from([0, 0, 5, 900]), min_size=3, max_size=3)


@given(sources=st.lists(COUNTS, min_size=1, max_size=3), evaluation=COUNTS, ignored=st.integers(0, 3000))
def test_warnings_name_exactly_the_classes_that_no_source_shows(
    sources: list[list[int]], evaluation: list[int], ignored: int
) -> None:
    results = {f"source {i}": checked(counts, ignored) for i, counts in enumerate(sources, start=1)}
    results["evaluation"] = checked(evaluation)
    texts = find_warnings(results, dict.fromkeys(results, FOLDER), SPACE)
    shown = torch.tensor(sources).sum(dim=0).tolist()
    missing = {name for name, count in zip(SPACE.names, shown, strict=True) if not count}
    about = [" ".join(text.split()) for text in texts if "No source shows" in text]
    assert bool(about) == (0 < len(missing) < 3)
    for text in about:
        listed = {name for name in SPACE.names if re.search(rf"\b{name}\b", text.split(". ")[0])}
        assert listed == missing
        lost = [n for n, c in zip(SPACE.names, evaluation, strict=True) if c and n in missing]
        assert all(re.search(rf"{name} \([\d.]+ % of the evaluation\)", text) for name in lost)
        assert ("IoU" in text) == bool(lost)
    for name, result in results.items():
        own = [text for text in texts if text.startswith(f"Warning: {name}: ") and "first_id" not in text]
        single = sum(count > 0 for count in result.counts.tolist()) == 1
        mostly = 0 < int(result.counts.sum()) < result.ignored
        assert len(own) == single + mostly


@pytest.mark.parametrize("name", ["source", "evaluation"])
def test_masks_of_0_and_255_are_recognized(name: str) -> None:
    space = LabelSpace(("background", "disc"), class_colors(("background", "disc")))
    results = {name: checked([80, 0], ignored=20)}
    (text,) = find_warnings(results, {name: FOLDER}, space)
    words = " ".join(text.split())
    assert "80.0 %" in words
    assert "20.0 %" in words
    assert "disc never occurs" in words
    assert tomllib.loads(text.splitlines()[-1])["ids"] == {"0": 0, "255": 1}
    # Whoever gives ids has decided what 255 means.
    (text,) = find_warnings(results, {name: Domain(ids={0: 0, 255: 255})}, space)[:1]
    assert "background" in text
    assert "ids = " not in text


@given(
    shown=st.lists(st.booleans(), min_size=3, max_size=3).filter(any),
    ids=st.permutations([0, 1, 2]).map(lambda order: dict(zip(range(3), order, strict=True))),
    known=st.integers(1, 3),
    named=st.booleans(),
    of_source=st.booleans(),
)
def test_indices_that_mean_other_classes_by_the_ids_of_another_domain_are_named(
    shown: list[bool], ids: dict[int, int], known: int, named: bool, of_source: bool
) -> None:
    with_ids, without = ("source", "evaluation") if of_source else ("evaluation", "source")
    ids = {stored: index for stored, index in ids.items() if stored < known}
    domain = Domain(ids={stored: SPACE.names[index] if named else index for stored, index in ids.items()})
    results = {with_ids: checked([1, 1, 1]), without: checked([int(each) for each in shown])}
    texts = find_warnings(results, {with_ids: domain, without: FOLDER}, SPACE)
    about = [" ".join(text.split()) for text in texts if "copy ids" in text]
    stored = {index for index, each in enumerate(shown) if each}
    assert len(about) == (stored <= ids.keys() and any(ids[index] != index for index in stored))
    assert all(f"from the table [{with_ids}] to [{without}]" in text for text in about)


def test_complete_labels_give_no_warning() -> None:
    results = {"source": checked([1, 1, 1], ignored=2), "target": checked([0, 0, 0])}
    assert find_warnings(results, dict.fromkeys(results, FOLDER), SPACE) == []


@given(COUNTS, st.sampled_from(["source", "source 2", "evaluation"]), st.booleans())
def test_labels_that_may_begin_with_1_are_warned_of_with_the_fix(
    counts: list[int], name: str, stated: bool
) -> None:
    domain = Domain(ids={0: 0, 1: 1, 2: 2}) if stated else FOLDER
    texts = [
        text for text in find_warnings({name: checked(counts)}, {name: domain}, SPACE) if "first_id" in text
    ]
    without_last = bool(counts[0]) and not counts[2] and name != "evaluation"
    suspicious = counts[1] > 0 and (not counts[0] or without_last)
    assert len(texts) == (suspicious and not stated)
    for text in texts:
        *words, line = text.splitlines()
        assert ("[[source]] number 2" if name == "source 2" else f"[{name}]") in " ".join(
            " ".join(words).split()
        )
        assert tomllib.loads(line) == {"first_id": 1}


def test_some_labels_cannot_tell_that_a_class_is_missing() -> None:
    results = {"source": checked([4, 4, 0])}
    assert any("sky" in text for text in find_warnings(results, {"source": FOLDER}, SPACE))
    assert not find_warnings(results, {"source": FOLDER}, SPACE, complete=False)
