"""Unit tests for losses: small batches with known results, and checks that any loss should pass.

A loss under test is a function of a batch. No check needs pytest:

    >>> import torch.nn.functional as F
    >>> def loss(batch):
    ...     total = F.cross_entropy(
    ...         batch.logits.float(), batch.labels, ignore_index=batch.ignore_index, reduction="sum"
    ...     )
    ...     return total / batch.valid.sum().clamp_min(1)
    >>> for check in LOSS_CHECKS:
    ...     check(loss, segmentation_batch())

The single checks are in `cpsl.testing.checks`, the other edge cases in `cpsl.testing.batches`.
"""

from cpsl.testing.applicability import LossCheck
from cpsl.testing.batches import (
    EDGE_CASES,
    SegmentationBatch,
    all_ignored,
    perfect_prediction,
    segmentation_batch,
    uniform_prediction,
)
from cpsl.testing.checks import LOSS_CHECKS, applicable_checks
from cpsl.testing.outcome import Loss
from cpsl.testing.training import training_batches

__all__ = [
    "EDGE_CASES",
    "LOSS_CHECKS",
    "Loss",
    "LossCheck",
    "SegmentationBatch",
    "all_ignored",
    "applicable_checks",
    "perfect_prediction",
    "segmentation_batch",
    "training_batches",
    "uniform_prediction",
]
