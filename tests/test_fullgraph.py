"""Each core operation is one graph: nothing in it depends on a tensor's values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cpsl
from cpsl import (
    ConfusionMatrix,
    DistributionAligner,
    PixelMemoryBank,
    PseudoLabelRectifier,
    RunningClassMeans,
    View,
    carry_enlarged,
    class_counts,
    class_quotas,
    cutmix,
    draw_class_proportional,
    draw_uniform,
    labels_of_crop,
    marginal_error,
    pixel_contrast,
    prototype_similarity,
    sinkhorn,
)

K, D = 5, 8
LABELS = torch.randint(K, (2, 6, 7), generator=torch.Generator().manual_seed(0))
SOFT = torch.rand(2, K, 6, 7).softmax(dim=1)
PIXELS, PROTOTYPES, DELTA = torch.randn(40, D), torch.randn(K, D), torch.rand(K)
WHOLE = View.whole((16, 24), 2)
WEAK = WHOLE.resized((20, 30)).cropped(1, 2, (12, 16)).flipped()


def remember(bank: PixelMemoryBank, pixels: torch.Tensor) -> torch.Tensor:
    bank.push(pixels)
    return bank.valid


def follow(aligner: DistributionAligner, labels: torch.Tensor) -> torch.Tensor:
    aligner.update(labels)
    return aligner(torch.ones(9, K))


def average(means: RunningClassMeans, features: torch.Tensor) -> torch.Tensor:
    means.update(features, LABELS)
    return torch.cat([means.prototypes, means.distribution[:, None]], dim=1)


def count(confusion: ConfusionMatrix, labels: torch.Tensor) -> torch.Tensor:
    confusion.matrix.zero_()
    confusion.update(labels, labels)
    return confusion.matrix


OPERATIONS: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("sinkhorn", sinkhorn, (PIXELS[:, :K], DELTA)),
    ("marginal_error", marginal_error, (SOFT[0].flatten(1).t(), DELTA)),
    ("prototype_similarity", prototype_similarity, (PIXELS, PROTOTYPES)),
    ("class_counts", class_counts, (LABELS, K)),
    ("class_quotas", class_quotas, (DELTA > 0.1, DELTA, 33)),
    ("draw_class_proportional", draw_class_proportional, (LABELS.flatten(), DELTA, 33)),
    ("draw_uniform", draw_uniform, (2, 42, 20, LABELS)),
    ("labels_of_crop", labels_of_crop, (LABELS, (9, 11), 30)),
    ("PixelMemoryBank.push", remember, (PixelMemoryBank(60, D), PIXELS)),
    ("DistributionAligner", follow, (DistributionAligner(K), LABELS)),
    ("RunningClassMeans", average, (RunningClassMeans(K, D), torch.randn(2, D, 3, 4))),
    ("ConfusionMatrix.update", count, (ConfusionMatrix(K), LABELS)),
    ("PseudoLabelRectifier", PseudoLabelRectifier(), (SOFT, torch.randn(2, D, 3, 4), PROTOTYPES)),
    ("carry_enlarged", carry_enlarged, (SOFT, WHOLE, WEAK, (5, 6), (10, 12))),
    (
        "pixel_contrast",
        pixel_contrast,
        (PIXELS, LABELS.flatten()[:40], PIXELS, LABELS.flatten()[:40]),
    ),
    (
        "cutmix",
        cutmix,
        (torch.rand(2, 3, 12, 14), LABELS, torch.rand(2, 3, 12, 14), torch.ones(2, 12, 14).long()),
    ),
]


@pytest.mark.parametrize(
    ("operation", "inputs"), [pytest.param(o, i, id=name) for name, o, i in OPERATIONS]
)
def test_each_core_operation_is_one_graph(operation, inputs) -> None:
    torch.manual_seed(0)
    expected = operation(*inputs)
    torch.compiler.reset()
    torch.manual_seed(0)
    got = torch.compile(operation, fullgraph=True, backend="eager")(*inputs)
    if isinstance(expected, tuple):
        assert [part.shape for part in got] == [part.shape for part in expected]
    else:
        assert got.shape == expected.shape
        if "draw" not in getattr(operation, "__name__", "") and operation is not follow:
            torch.testing.assert_close(got, expected)


def test_all_that_is_public_is_there() -> None:
    assert all(hasattr(cpsl, name) for name in cpsl.__all__)
    assert len(set(cpsl.__all__)) == len(cpsl.__all__)
