import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.authors import probability_distillation
from cpsl.testing import LOSS_CHECKS, LossCheck, SegmentationBatch, segmentation_batch
from cpsl.testing.checks import (
    check_all_ignored_is_zero,
    check_ignored_pixels_are_not_counted,
    check_ignored_pixels_have_no_influence,
)

# The loss has no labels: all pixels count.
NEEDS_LABELS = (
    check_all_ignored_is_zero,
    check_ignored_pixels_are_not_counted,
    check_ignored_pixels_have_no_influence,
)


def loss(batch: SegmentationBatch) -> Tensor:
    return probability_distillation(batch.logits, batch.teacher_logits)


@pytest.mark.parametrize("check", [check for check in LOSS_CHECKS if check not in NEEDS_LABELS])
def test_probability_distillation_keeps_the_contract_of_losses(check: LossCheck) -> None:
    check(loss, segmentation_batch())


@given(seed=st.integers(0, 10_000))
def test_probabilities_replace_the_log_probabilities_of_the_student(seed: int) -> None:
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    got = probability_distillation(student, teacher)
    each = F.kl_div(student.softmax(dim=1), teacher.softmax(dim=1), reduction="none")
    torch.testing.assert_close(got, each.mean())
    assert got < 0


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 5\)"):
        probability_distillation(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
