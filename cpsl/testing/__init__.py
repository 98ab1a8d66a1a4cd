"""Unit tests for losses of segmentation and domain adaptation: batches with known answers, and a contract.

Neither needs pytest. A loss is handed in as a function of a batch:

    >>> import torch.nn.functional as F
    >>> def loss(batch):
    ...     total = F.cross_entropy(
    ...         batch.logits.float(), batch.labels, ignore_index=batch.ignore_index, reduction="sum"
    ...     )
    ...     return total / batch.valid.sum().clamp_min(1)
    >>> for check in LOSS_CHECKS:
    ...     check(loss, segmentation_batch())
"""

from cpsl.testing.batches import (
    EDGE_CASES,
    SegmentationBatch,
    absent_class,
    all_ignored,
    one_image,
    one_pixel,
    perfect_prediction,
    segmentation_batch,
    uniform_prediction,
)
from cpsl.testing.checks import (
    LOSS_CHECKS,
    LossCheck,
    check_all_ignored_is_zero,
    check_autocast_changes_little,
    check_edge_cases_are_finite,
    check_equal_shares_average_to_the_whole,
    check_extreme_inputs_are_finite,
    check_gradient_matches_finite_differences,
    check_ignored_pixels_are_not_counted,
    check_ignored_pixels_have_no_influence,
    check_inputs_stay_as_they_are,
    check_nothing_waits_for_the_device,
    check_order_of_images_does_not_matter,
    check_order_of_pixels_does_not_matter,
    check_scalar_with_gradient,
    check_teacher_gets_no_gradient,
)
from cpsl.testing.outcome import Loss

__all__ = [
    "EDGE_CASES",
    "LOSS_CHECKS",
    "Loss",
    "LossCheck",
    "SegmentationBatch",
    "absent_class",
    "all_ignored",
    "check_all_ignored_is_zero",
    "check_autocast_changes_little",
    "check_edge_cases_are_finite",
    "check_equal_shares_average_to_the_whole",
    "check_extreme_inputs_are_finite",
    "check_gradient_matches_finite_differences",
    "check_ignored_pixels_are_not_counted",
    "check_ignored_pixels_have_no_influence",
    "check_inputs_stay_as_they_are",
    "check_nothing_waits_for_the_device",
    "check_order_of_images_does_not_matter",
    "check_order_of_pixels_does_not_matter",
    "check_scalar_with_gradient",
    "check_teacher_gets_no_gradient",
    "one_image",
    "one_pixel",
    "perfect_prediction",
    "segmentation_batch",
    "uniform_prediction",
]
