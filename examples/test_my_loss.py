"""Unit tests for a custom loss with `cpsl.testing`: copy the file and replace the loss by yours.

pytest examples/test_my_loss.py
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl.testing import (
    LossCheck,
    SegmentationBatch,
    all_ignored,
    applicable_checks,
    perfect_prediction,
    segmentation_batch,
    uniform_prediction,
)


def confident_cross_entropy(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, ignore_index: int = 255
) -> Tensor:
    """Weighs the cross-entropy of each pixel by the confidence of a teacher; in your project, an import."""
    confidence = teacher_logits.detach().float().softmax(dim=1).amax(dim=1)
    loss = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="none")
    valid = labels != ignore_index
    return (confidence * loss).sum() / (confidence * valid).sum().clamp_min(1e-6)


def loss_of(batch: SegmentationBatch) -> Tensor:
    """Calls the loss with its inputs from a batch; the checks take such a function."""
    return confident_cross_entropy(batch.logits, batch.labels, batch.teacher_logits, batch.ignore_index)


@pytest.mark.parametrize("check", applicable_checks(loss_of, segmentation_batch(num_classes=5)))
@pytest.mark.parametrize("seed", range(3))
def test_loss_keeps_the_contract(check: LossCheck, seed: int) -> None:
    """Ignored pixels, empty crops, autocast, gradients and more, on random batches."""
    check(loss_of, segmentation_batch(num_classes=5, seed=seed))


@pytest.mark.parametrize(
    ("case", "expected"), [(perfect_prediction, 0.0), (uniform_prediction, math.log(5)), (all_ignored, 0.0)]
)
def test_loss_has_known_values(
    case: Callable[[SegmentationBatch], SegmentationBatch], expected: float
) -> None:
    """A perfect prediction costs nothing, a uniform one log K."""
    loss = loss_of(case(segmentation_batch(num_classes=5)))
    torch.testing.assert_close(loss, torch.tensor(expected))
