"""The label of ignored pixels is never a class, and labels of any integer type mean the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cpsl
from cpsl.sampling import sample_class_proportional

SHAPE = (1, 4, 4)


def scores(classes: int, seed: int = 0) -> Tensor:
    return torch.randn(1, classes, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


def clustering(classes: int, ignore_index: int) -> cpsl.ClassBalancedPrototypeClustering:
    return cpsl.ClassBalancedPrototypeClustering(classes, 4, bank_size=8, ignore_index=ignore_index)


def rectified(classes: int, ignore_index: int) -> Tensor:
    soft = scores(classes).softmax(dim=1)
    return cpsl.PseudoLabelRectifier(ignore_index=ignore_index).rectify(soft, soft).labels


def limited(classes: int, ignore_index: int) -> None:
    limits = cpsl.ShareLimits(torch.ones(classes))
    limits.update(scores(classes).softmax(dim=1), torch.ones(SHAPE, dtype=torch.int64), ignore_index)


USERS: dict[str, Callable[[int, int], Any]] = {
    "clustering": clustering,
    "rectifier": rectified,
    "agreeing_labels": lambda k, i: cpsl.agreeing_labels(torch.zeros(SHAPE).long(), scores(k), i),
    "limits": limited,
    "aligner": lambda k, i: cpsl.DistributionAligner(k, ignore_index=i),
    "running means": lambda k, i: cpsl.RunningClassMeans(k, 4, ignore_index=i),
    "confusion": lambda k, i: cpsl.ConfusionMatrix(k, ignore_index=i),
    "class counts": lambda k, i: cpsl.class_counts(torch.zeros(3, dtype=torch.int64), k, i),
    "cross-entropy": lambda k, i: cpsl.cross_entropy(scores(k), torch.zeros(SHAPE).long(), i),
    "symmetric cross-entropy": lambda k, i: cpsl.symmetric_cross_entropy(
        scores(k), torch.zeros(SHAPE).long(), ignore_index=i
    ),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("classes", "ignore_index"), [(256, 255), (3, 0), (3, 2)])
def test_a_class_is_never_ignored(user: str, classes: int, ignore_index: int) -> None:
    with pytest.raises(ValueError, match=f"ignore_index.*{classes - 1}.*{ignore_index}"):
        USERS[user](classes, ignore_index)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("classes", "ignore_index"), [(255, 255), (256, -1), (256, 256), (3, 3)])
def test_any_other_label_may_be_ignored(user: str, classes: int, ignore_index: int) -> None:
    USERS[user](classes, ignore_index)


@given(
    values=st.lists(st.integers(0, 255), min_size=16, max_size=16),
    ignore_index=st.sampled_from([-1, 256, 511]),
)
def test_unsigned_labels_mean_the_same(values: list[int], ignore_index: int) -> None:
    """In uint8, -1 and 511 would wrap to 255."""
    wide = torch.tensor(values).reshape(SHAPE)
    narrow = wide.to(torch.uint8)
    logits, features, delta = scores(256), scores(4), torch.ones(256) / 256

    def results(labels: Tensor) -> list[Tensor]:
        confusion = cpsl.ConfusionMatrix(256, ignore_index)
        confusion.update(labels, labels)
        means = cpsl.RunningClassMeans(256, 4, ignore_index=ignore_index)
        means.update(features, labels)
        torch.manual_seed(0)
        positions = sample_class_proportional(labels.flatten(), delta, total=20)
        pixels, flat = features[0].flatten(1).t(), labels.flatten()
        return [
            cpsl.cross_entropy(logits, labels, ignore_index),
            cpsl.cross_entropy(logits, labels, ignore_index, weights=torch.ones(SHAPE)),
            cpsl.symmetric_cross_entropy(logits, labels, ignore_index=ignore_index),
            cpsl.prototype_contrast(logits, labels, ignore_index=ignore_index),
            cpsl.pixel_contrast(pixels, flat, pixels, flat, ignore_index=ignore_index),
            cpsl.class_counts(labels, 256, ignore_index),
            cpsl.agreeing_labels(labels, logits, ignore_index),
            confusion.matrix,
            means.counts,
            positions,
        ]

    for got, wanted in zip(results(narrow), results(wide), strict=True):
        assert torch.equal(got, wanted)
