"""The check of a data set finds every problem once, whatever reads the files."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import cpsl
from cpsl.data import LabelSpace, SegmentationFolder, Subset, check_dataset
from cpsl.data.check import DatasetCheck
from cpsl.data.examples import EXAMPLES, ClassExamples
from cpsl.data.sample import Sample

CLASSES = ("ground", "car", "sky")
HEIGHT, WIDTH = 4, 6

Pair = tuple[bool, str, dict[int, int]]
"""Whether an image can be read, what its label is, and the unknown values of the label with their pixels."""

UNKNOWN = st.dictionaries(st.integers(3, 254), st.integers(1, 8), min_size=1, max_size=3)
PAIRS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["right", "empty", "colors", "values", "size"]), UNKNOWN),
    min_size=1,
    max_size=8,
)


def write(folder: Path, pairs: list[Pair]) -> SegmentationFolder:
    """Writes the files of pairs; the label of pair i has i pixels of class 1 and a row of ignored ones."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for index, (readable, label, unknown) in enumerate(pairs):
        image_file, label_file = folder / "images" / f"{index}.png", folder / "labels" / f"{index}.png"
        Image.new("RGB", (WIDTH, HEIGHT)).save(image_file)
        stored = np.zeros((HEIGHT, WIDTH), np.uint8)
        stored[0] = 255
        stored[1:].reshape(-1)[:index] = 1
        if label == "values":
            stored = np.zeros((HEIGHT, WIDTH), np.uint8)
            stored.reshape(-1)[: sum(unknown.values())] = np.repeat(list(unknown), list(unknown.values()))
        Image.fromarray(stored[: HEIGHT - (label == "size")]).save(label_file)
        if label == "colors":
            Image.new("RGB", (WIDTH, HEIGHT)).save(label_file)
        if label == "empty":
            label_file.write_bytes(b"")
        if not readable:
            image_file.write_bytes(image_file.read_bytes()[:40])
    return SegmentationFolder(folder / "images", folder / "labels", CLASSES)


def expected_findings(folder: Path, pairs: list[Pair]) -> Counter[tuple[str, str]]:
    found = Counter[tuple[str, str]]()
    for index, (readable, label, _) in enumerate(pairs):
        if not readable:
            found["image", str(folder / "images" / f"{index}.png")] += 1
        kind = {"right": "", "empty": "label", "colors": "label", "values": "values"}.get(label, "size")
        if kind and (readable or kind != "size"):  # the size of an unreadable image is unknown
            found[kind, str(folder / "labels" / f"{index}.png")] += 1
    return found


def assert_same(result: DatasetCheck, other: DatasetCheck) -> None:
    for name, value in result._asdict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, name)), name
        else:
            assert value == getattr(other, name), name


@given(pairs=PAIRS)
def test_every_problem_of_a_file_is_found_once(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]
) -> None:
    folder = tmp_path_factory.mktemp("check")
    result = check_dataset(write(folder, pairs))
    found = Counter((finding.kind, finding.file) for finding in result.findings)
    assert found == expected_findings(folder, pairs)
    assert result.problems == [finding.message for finding in result.findings]
    for finding in result.findings:
        assert finding.file in finding.message
        assert str(folder) not in finding.reason
    right = [index for index, (readable, label, _) in enumerate(pairs) if readable and label == "right"]
    assert result.labeled == len(pairs)
    assert sum(result.sizes.values()) == sum(readable for readable, _, _ in pairs)
    assert result.counts[1] == sum(right)
    shown = [index if index in right else 0 for index in range(len(pairs))]
    assert result.image_counts[:, 1].tolist() == shown
    assert result.ignored == WIDTH * len(right)
    assert set(result.examples) <= set(right)
    assert len(result.examples) == min(len(right), EXAMPLES)


@given(pairs=PAIRS)
def test_all_unknown_values_are_counted(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> None:
    dataset = write(tmp_path_factory.mktemp("check"), pairs)
    found, expected = Counter[int | str](), Counter[int]()
    for finding in check_dataset(dataset).findings:
        found.update(finding.values)
        assert finding.pixels == (HEIGHT * WIDTH if finding.kind == "values" else 0)
        assert all(
            f"{value} ({pixels} pixels)" in finding.message for value, pixels in finding.values.items()
        )
    for _, label, unknown in pairs:
        expected.update(unknown if label == "values" else {})
    assert found == expected


@settings(max_examples=6, deadline=None)
@given(pairs=PAIRS)
def test_threads_and_processes_give_the_same_result(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]
) -> None:
    dataset = write(tmp_path_factory.mktemp("check"), pairs)
    result = check_dataset(dataset, threads=1)
    assert_same(result, check_dataset(dataset, threads=3))
    state = torch.get_rng_state()
    assert_same(result, check_dataset(dataset, workers=2))
    assert torch.equal(state, torch.get_rng_state())


def test_the_problems_of_a_subset_are_those_of_its_images(tmp_path: Path) -> None:
    pairs: list[Pair] = [(True, "right", {}), (False, "values", {9: 2}), (True, "empty", {})]
    dataset = write(tmp_path, pairs)
    result = check_dataset(Subset(dataset, [1, 0]))
    expected = [finding for finding in check_dataset(dataset).findings if "1.png" in finding.file]
    assert result.findings == expected
    assert [finding.kind for finding in expected] == ["image", "values"]


class Own:
    """A data set of somebody's own, without files; some of its images cannot be read, others have a fault."""

    label_space = LabelSpace(("a", "b"), ((0, 0, 0), (9, 9, 9)))

    def __init__(self, unreadable: set[int] = frozenset(), wrong: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.names = [f"image {index}" for index in range(5)]
        self.unreadable, self.wrong = unreadable, wrong

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Tensor:
        if index in self.unreadable:
            raise OSError("no connection")
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    def __getitem__(self, index: int) -> Sample:
        image = self.image(index)
        label = torch.full((2, 2), 7 if index in self.wrong else 1, dtype=torch.uint8)
        return Sample(image, label, self.names[index])


def test_a_data_set_of_ones_own_needs_no_files() -> None:
    result = check_dataset(Own(unreadable={1}, wrong={3}))
    assert [(f.kind, f.file) for f in result.findings] == [("image", "image 1"), ("other", "image 3")]
    assert "no connection" in result.problems[0]
    assert result.counts.tolist() == [0, 12]


@given(
    counts=st.integers(1, 5).flatmap(
        lambda classes: st.lists(
            st.lists(st.sampled_from([0, 0, 1, 50, 1000]), min_size=classes, max_size=classes),
            min_size=1,
            max_size=20,
        )
    ),
    data=st.data(),
)
def test_examples_show_all_classes(counts: list[list[int]], data: st.DataObject) -> None:
    examples = ClassExamples(len(counts[0]))
    for index, of_image in enumerate(counts):
        examples.add(index, np.array(of_image))
    chosen = examples.choose(range(len(counts)))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(len(counts), EXAMPLES)
    total = np.array(counts).sum(axis=0)
    shown = np.array(counts)[chosen].sum(axis=0)
    assert ((shown > 0) == (total > 0)).all()
    few = examples.choose(range(len(counts)), count=data.draw(st.integers(0, 3)))
    assert set(few) <= set(range(len(counts)))


def test_examples_without_labels_are_spread_evenly() -> None:
    assert ClassExamples(3).choose(range(60)) == [0, 10, 20, 30, 40, 50]
    assert ClassExamples(3).choose([]) == []


STOPPED = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from data.test_check import Own
from cpsl.data import check_dataset
from cpsl.training.signals import exit_when_stopped

class Slow(Own):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        index = index % 5
        time.sleep(0.1)
        os.write(1, b"reads\\n")  # at once, as another process writes as well
        return super().__getitem__(index)

with exit_when_stopped():
    check_dataset(Slow(), workers=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_all_processes_without_a_traceback() -> None:
    root = Path(cpsl.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(root / "tests")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reads\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize("linked", [False, True])
def test_the_reason_of_a_missing_file_is_a_sentence(tmp_path: Path, part: str, linked: bool) -> None:
    dataset = write(tmp_path, [(True, "right", {})])
    file = tmp_path / f"{part}s" / "0.png"
    file.unlink()
    if linked:
        file.symlink_to("gone.png")
    (finding,) = check_dataset(dataset).findings
    assert finding.reason.startswith(f"the {part} is ")
    assert finding.reason.endswith("missing")
    assert ("gone.png" in finding.reason) == linked
