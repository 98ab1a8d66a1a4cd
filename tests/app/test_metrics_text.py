"""What the labels of an evaluation leave out is named, and nothing else."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.app.metrics_text import describe_gaps
from cpsl.metrics import ConfusionMatrix

CLASSES = ("road", "car", "sky")


@given(st.data())
def test_the_gaps_of_an_evaluation_are_those_of_its_labels(data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 255, 255]), min_size=1, max_size=12))
    predicted = data.draw(st.lists(st.integers(0, 2), min_size=len(labels), max_size=len(labels)))
    confusion = ConfusionMatrix(len(CLASSES))
    confusion.update(torch.tensor(predicted), torch.tensor(labels))
    ious = dict(zip(CLASSES, confusion.iou.mul(100).tolist(), strict=True))
    metrics = {
        "iou": {name: None if iou != iou else iou for name, iou in ious.items()},
        "label_pixels": [*confusion.matrix.sum(dim=1).tolist(), labels.count(255)],
    }
    found = describe_gaps(metrics, CLASSES)
    mostly = 2 * labels.count(255) > len(labels)
    assert [text for text in found if "ignored" in text] == found[:mostly]
    pairs = [(p, t) for p, t in zip(predicted, labels, strict=True) if t != 255]
    absent = [name for k, name in enumerate(CLASSES) if k not in labels and k in dict(pairs)]
    assert len(found) == mostly + bool(absent)
    for text in found[mostly:]:
        assert re.findall("|".join(CLASSES), text) == absent
        others = [ious[name] for k, name in enumerate(CLASSES) if k in labels]
        assert float(text.rpartition(" ")[2]) == pytest.approx(sum(others) / len(others), abs=0.06)


@pytest.mark.parametrize("metrics", [{}, {"label_pixels": [0, 0, 0, 0]}])
def test_without_labels_or_in_an_older_run_nothing_is_named(metrics: dict[str, list[int]]) -> None:
    assert not describe_gaps({"iou": dict.fromkeys(CLASSES), **metrics}, CLASSES)
