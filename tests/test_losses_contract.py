"""The losses of the method pass the checks of `cpsl.testing`, with documented exceptions."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import cpsl
from cpsl.testing import LOSS_CHECKS, Loss, LossCheck, SegmentationBatch, segmentation_batch
from cpsl.testing.checks import check_all_ignored_is_zero, check_gradient_matches_finite_differences

K, D = 5, 8
CLUSTERING = cpsl.ClassBalancedPrototypeClustering(K, D, bank_size=32, samples_per_image=16)


def cross_entropy(batch: SegmentationBatch) -> Tensor:
    return cpsl.cross_entropy(batch.logits, batch.labels, batch.ignore_index)


def symmetric_cross_entropy(batch: SegmentationBatch) -> Tensor:
    return cpsl.symmetric_cross_entropy(batch.logits, batch.labels, ignore_index=batch.ignore_index)


def distillation(batch: SegmentationBatch) -> Tensor:
    return cpsl.distillation(batch.logits, batch.teacher_logits, batch.valid)


def distillation_without_mask(batch: SegmentationBatch) -> Tensor:
    return cpsl.distillation(batch.logits, batch.teacher_logits)


def consistency(batch: SegmentationBatch) -> Tensor:
    return cpsl.prototype_consistency(batch.teacher_logits, batch.logits, batch.valid)


def consistency_of_features(batch: SegmentationBatch) -> Tensor:
    prototypes = batch.prototypes.detach()  # the moving average C'
    teacher = cpsl.prototype_similarity(batch.teacher_features, prototypes)
    student = cpsl.prototype_similarity(batch.features, prototypes)
    return cpsl.prototype_consistency(teacher, student, batch.valid)


def pixel_contrast(batch: SegmentationBatch) -> Tensor:
    return cpsl.pixel_contrast(
        batch.features.movedim(1, -1).flatten(0, 2),
        batch.labels.flatten(),
        batch.prototypes,
        torch.arange(K, device=batch.labels.device),
        ignore_index=batch.ignore_index,
    )


def prototype_contrast(batch: SegmentationBatch) -> Tensor:
    similarity = cpsl.prototype_similarity(batch.features, batch.prototypes.detach())
    return cpsl.prototype_contrast(similarity, batch.labels, ignore_index=batch.ignore_index)


def generator_loss(batch: SegmentationBatch) -> Tensor:
    return cpsl.generator_loss(batch.logits)


def discriminator_loss(batch: SegmentationBatch) -> Tensor:
    return cpsl.discriminator_loss(batch.logits, batch.features)


def clustering(batch: SegmentationBatch) -> Tensor:
    inputs = (batch.features, batch.labels)
    loss: Tensor = functional_call(CLUSTERING, {"prototypes": batch.prototypes}, inputs).loss
    return loss


LOSSES: list[Loss] = [
    cross_entropy,
    symmetric_cross_entropy,
    distillation,
    distillation_without_mask,
    consistency,
    consistency_of_features,
    pixel_contrast,
    prototype_contrast,
    generator_loss,
    discriminator_loss,
    clustering,
]

EXCEPTIONS: dict[Loss, dict[LossCheck, str]] = {
    clustering: {
        check_all_ignored_is_zero: "pixels without labels are clustered, too",
        check_gradient_matches_finite_differences: "the assignments are constants",
    }
}


@pytest.mark.parametrize(
    ("loss", "check"),
    [(loss, check) for loss in LOSSES for check in LOSS_CHECKS if check not in EXCEPTIONS.get(loss, {})],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_loss_keeps_the_contract(loss: Loss, check: LossCheck, seed: int) -> None:
    check(loss, segmentation_batch(seed=seed))


@pytest.mark.parametrize(
    ("loss", "check", "reason"),
    [(loss, check, reason) for loss, of in EXCEPTIONS.items() for check, reason in of.items()],
)
def test_each_exception_is_still_needed(loss: Loss, check: LossCheck, reason: str) -> None:
    with pytest.raises(AssertionError):
        check(loss, segmentation_batch())


@pytest.mark.parametrize("loss", LOSSES)
def test_only_losses_of_cosines_lower_float64(loss: Loss) -> None:
    value = loss(segmentation_batch(dtype=torch.float64))
    lowered = loss in (consistency_of_features, prototype_contrast, clustering)
    assert value.dtype == (torch.float32 if lowered else torch.float64)
