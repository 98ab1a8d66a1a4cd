"""A run says of its labels what the check says of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl.app.checking import labels
from cpsl.app.checking.labels import warn_of_labels
from cpsl.app.checking.words import find_warnings
from cpsl.app.domain import Domain
from cpsl.data import LabelSpace, SegmentationFolder, check_dataset, class_colors

SPACE = LabelSpace(("background", "polyp", "tool"), class_colors(("background", "polyp", "tool")))
LABELS = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 255, 255]), min_size=4, max_size=4), min_size=1, max_size=4
)


def write(folder: Path, stored: list[list[int]]) -> SegmentationFolder:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index, values in enumerate(stored):
        Image.new("RGB", (4, 1)).save(folder / "images" / f"{index}.png")
        Image.fromarray(np.array([values], np.uint8)).save(folder / "labels" / f"{index}.png")
    return SegmentationFolder(folder / "images", folder / "labels", SPACE)


@given(source=LABELS, evaluation=LABELS)
def test_warnings_are_those_of_the_check(
    tmp_path_factory: pytest.TempPathFactory, source: list[list[int]], evaluation: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    datasets = {"source": write(folder / "s", source), "evaluation": write(folder / "e", evaluation)}
    domains = dict.fromkeys(datasets, Domain())
    checked = {name: check_dataset(dataset) for name, dataset in datasets.items()}
    assert warn_of_labels(datasets, domains, SPACE) == find_warnings(checked, domains, SPACE)


def test_masks_of_0_and_255_are_warned_of_whatever_the_number_of_classes(tmp_path: Path) -> None:
    datasets = {"source": write(tmp_path, [[0, 0, 255, 255], [0, 255, 255, 255]])}
    texts = " ".join(" ".join(warn_of_labels(datasets, {"source": Domain()}, SPACE)).split())
    assert "all labeled pixels have the class background" in texts
    assert "62.5 % of the label pixels are ignored" in texts


def test_some_of_many_labels_are_read_and_call_no_class_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "SOURCE_LABELS", 2)
    datasets = {"source": write(tmp_path, [[0, 1, 0, 1]] * 2 + [[9, 9, 9, 9]])}
    assert warn_of_labels(datasets, {"source": Domain()}, SPACE) == []


@pytest.mark.parametrize("evaluated", [False, True])
def test_labels_of_the_target_are_read_only_if_it_is_evaluated(tmp_path: Path, evaluated: bool) -> None:
    right, wrong = write(tmp_path / "right", [[0, 1, 2, 0]]), write(tmp_path / "wrong", [[0, 1, 2, 9]])
    datasets = {"source": right, "target": wrong} | ({} if evaluated else {"evaluation": right})
    domains = dict.fromkeys(datasets, Domain())
    if not evaluated:
        assert warn_of_labels(datasets, domains, SPACE) == []
        return
    with pytest.raises(ValueError, match=r"wrong.*0\.png.* 9 "):
        warn_of_labels(datasets, domains, SPACE)
