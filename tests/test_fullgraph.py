"""Each core operation compiles to one graph: no control flow depends on the values of tensors."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import cpsl
from cpsl import (
    ClassBalancedPrototypeClustering,
    ConfusionMatrix,
    DistributionAligner,
    PixelMemoryBank,
    PseudoLabelRectifier,
    RunningClassMeans,
    agreeing_labels,
    class_counts,
    cutmix,
    marginal_error,
    pixel_contrast,
    prototype_contrast,
    prototype_similarity,
    sinkhorn,
)
from cpsl.authors.clustering import crop_labels
from cpsl.geometry import resize_labels
from cpsl.sampling import class_quotas, sample_class_proportional, sample_uniform

K, D = 5, 8
LABELS = torch.randint(K, (2, 6, 7), generator=torch.Generator().manual_seed(0))
SOFT = torch.rand(2, K, 6, 7).softmax(dim=1)
PIXELS, PROTOTYPES, DELTA = torch.randn(40, D), torch.randn(K, D), torch.rand(K)


def push(bank: PixelMemoryBank, pixels: torch.Tensor) -> torch.Tensor:
    bank.push(pixels)
    return bank.valid


def update_and_assign(aligner: DistributionAligner, labels: torch.Tensor) -> torch.Tensor:
    aligner.update(labels)
    return aligner(torch.ones(9, K))


def average(means: RunningClassMeans, features: torch.Tensor) -> torch.Tensor:
    means.update(features, LABELS)
    return torch.cat([means.prototypes, means.distribution[:, None]], dim=1)


def step(
    clustering: ClassBalancedPrototypeClustering, features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Initializes, assigns and updates."""
    clustering.initialize(PROTOTYPES, DELTA)
    output = clustering(features, labels)
    clustering.update(output, momentum=0.5)
    return output.assignments.sum() + clustering.ema_prototypes


def count(confusion: ConfusionMatrix, labels: torch.Tensor) -> torch.Tensor:
    confusion.reset()
    confusion.update(labels, labels)
    return confusion.matrix


OPERATIONS: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("sinkhorn", sinkhorn, (PIXELS[:, :K], DELTA)),
    ("marginal_error", marginal_error, (SOFT[0].flatten(1).t(), DELTA)),
    ("prototype_similarity", prototype_similarity, (PIXELS, PROTOTYPES)),
    ("class_counts", class_counts, (LABELS, K)),
    ("class_quotas", class_quotas, (DELTA > 0.1, DELTA, 33)),
    ("sample_class_proportional", sample_class_proportional, (LABELS.flatten(), DELTA, 33)),
    ("sample_uniform", sample_uniform, (2, 42, 20, LABELS)),
    ("crop_labels", crop_labels, (LABELS, (9, 11), 30)),
    ("PixelMemoryBank.push", push, (PixelMemoryBank(60, D), PIXELS)),
    ("DistributionAligner", update_and_assign, (DistributionAligner(K), LABELS)),
    ("RunningClassMeans", average, (RunningClassMeans(K, D), torch.randn(2, D, 3, 4))),
    ("resize_labels", resize_labels, (LABELS, (4, 9))),
    (
        "ClassBalancedPrototypeClustering",
        step,
        (
            ClassBalancedPrototypeClustering(K, D, bank_size=60, samples_per_image=20),
            torch.randn(2, D, 3, 4),
            LABELS,
        ),
    ),
    ("ConfusionMatrix.update", count, (ConfusionMatrix(K), LABELS)),
    ("PseudoLabelRectifier", PseudoLabelRectifier(), (SOFT, torch.randn(2, D, 3, 4), PROTOTYPES)),
    ("agreeing_labels", agreeing_labels, (LABELS, SOFT)),
    ("prototype_contrast", prototype_contrast, (torch.rand(2, K, 6, 7), LABELS)),
    ("pixel_contrast", pixel_contrast, (PIXELS, LABELS.flatten()[:40], PIXELS, LABELS.flatten()[:40])),
    (
        "cutmix",
        cutmix,
        (torch.rand(2, 3, 12, 14), LABELS, torch.rand(2, 3, 12, 14), torch.ones(2, 12, 14).long()),
    ),
]


@pytest.mark.parametrize(("operation", "inputs"), [pytest.param(o, i, id=name) for name, o, i in OPERATIONS])
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
        if operation not in (update_and_assign, step):  # which have changed their state
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("package", [cpsl, cpsl.models, cpsl.testing, cpsl.authors])
def test_all_exported_names_exist(package: ModuleType) -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
