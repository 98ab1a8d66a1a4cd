"""Empty and degenerate inputs have defined results without NaN."""

import pytest
import torch

from cpsl import (
    ClassBalancedPrototypeClustering,
    ClassMeanPrototypes,
    ConfusionMatrix,
    DistributionAligner,
    PixelMemoryBank,
    PseudoLabelRectifier,
    View,
    class_counts,
    cross_entropy,
    cutmix,
    distillation,
    prototype_consistency,
    prototype_similarity,
    sinkhorn,
    symmetric_cross_entropy,
    warp,
)
from cpsl.losses import discriminator_loss, generator_loss
from cpsl.models import DeepLabV2, ExponentialMovingAverage

K, D = 5, 8
IGNORED = torch.full((2, 4, 6), 255)


def clustering(**options: int) -> ClassBalancedPrototypeClustering:
    return ClassBalancedPrototypeClustering(K, D, bank_size=64, samples_per_image=16, **options)


def check(module: ClassBalancedPrototypeClustering, features: torch.Tensor, labels) -> None:
    """Runs some steps; all results are finite, and assignments are distributions."""
    for _ in range(3):
        output = module(features, labels)
        output.loss.backward()
        module.update(output)
        assert output.loss.isfinite()
        torch.testing.assert_close(output.assignments.sum(dim=1), torch.ones(len(output.scores)))
    assert module.prototypes.grad is not None
    assert module.prototypes.grad.isfinite().all()
    assert module.aligner.distribution.isfinite().all()
    torch.testing.assert_close(module.aligner.distribution.sum().float(), torch.tensor(1.0))


@pytest.mark.parametrize("loss", [cross_entropy, symmetric_cross_entropy])
def test_losses_without_valid_pixels_are_zero(loss) -> None:
    logits = torch.randn(2, K, 4, 6, requires_grad=True)
    value = loss(logits, IGNORED)
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_consistency_without_valid_pixels_is_zero() -> None:
    student = torch.rand(2, K, 4, 6, requires_grad=True)
    loss = prototype_consistency(torch.rand(2, K, 4, 6), student, torch.zeros(2, 4, 6) > 0)
    loss.backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    assert distillation(torch.randn(1, K, 1, 1), torch.randn(1, K, 1, 1)).isfinite()


def test_batches_of_ignored_pixels_do_not_change_the_distribution() -> None:
    module = clustering()
    before = module.aligner.distribution.clone()
    check(module, torch.randn(2, D, 4, 6), IGNORED)
    torch.testing.assert_close(module.aligner.distribution, before)


def test_absent_classes_keep_their_prototypes() -> None:
    means = ClassMeanPrototypes(K, D, min_pixels=1)
    means.update(torch.randn(2, D, 4, 6), torch.randn(2, K, 4, 6).index_fill(1, torch.tensor(3), -99))
    known = means.compute().prototypes
    assert known[3].abs().sum() == 0
    module = clustering()
    start = module.prototypes[3].clone()
    # Nothing is assigned to a class with frequency zero, with an empty bank and with a filled one.
    module.initialize(known, torch.tensor([1.0, 1, 1, 0, 1]))
    assert torch.equal(module.prototypes[3], start)
    output = module(torch.randn(2, D, 4, 6), torch.randint(3, (2, 4, 6)))
    assert output.assignments[:, 3].abs().max() == 0
    check(module, torch.randn(2, D, 4, 6), torch.randint(3, (2, 4, 6)))


def test_maps_of_one_pixel() -> None:
    check(clustering(), torch.randn(2, D, 1, 1), torch.randint(K, (2, 1, 1)))
    rectified = PseudoLabelRectifier()(
        torch.rand(1, K, 8, 8).softmax(dim=1), torch.randn(1, D, 1, 1), torch.randn(K, D)
    )
    assert rectified.confidence.isfinite().all()
    view = View.whole((8, 8))
    values, valid = warp(torch.ones(1, 2, 1, 1), view, view, (4, 4), align_corners=True)
    assert valid.all()
    assert torch.equal(values, torch.ones_like(values))


def test_features_of_length_zero() -> None:
    assert prototype_similarity(torch.zeros(1, D, 2, 2), torch.randn(K, D)).abs().max() == 0
    check(clustering(), torch.zeros(2, D, 4, 6), torch.randint(K, (2, 4, 6)))


def test_an_empty_bank_has_no_influence() -> None:
    module = clustering()
    features, labels = torch.randn(2, D, 4, 6), torch.randint(K, (2, 4, 6))
    alone = module(features, labels)
    wanted = sinkhorn(alone.scores.detach(), module.aligner.distribution)
    torch.testing.assert_close(alone.assignments, wanted)
    bank = PixelMemoryBank(4, D)
    bank.push(torch.empty(0, D))
    assert not bank.valid.any()
    check(module, features, labels)


def test_empty_batches() -> None:
    assert sinkhorn(torch.empty(0, K)).shape == (0, K)
    assert class_counts(torch.empty(0, dtype=torch.int64), K).sum() == 0
    aligner = DistributionAligner(K)
    before = aligner.distribution.clone()
    aligner.update(IGNORED)
    torch.testing.assert_close(aligner.distribution, before)


def test_adversarial_losses_of_an_empty_batch_are_zero() -> None:
    decision = torch.zeros(0, 1, 2, 3, requires_grad=True)
    for loss in (generator_loss(decision), discriminator_loss(decision, decision)):
        loss.backward()
        assert loss == 0


def test_an_empty_confusion_matrix_has_no_iou() -> None:
    confusion = ConfusionMatrix(K)
    assert confusion.iou.isnan().all()
    assert confusion.miou.isnan()
    confusion.update(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255))
    assert confusion.miou.isnan()


def test_batches_of_one_image_with_batch_norm() -> None:
    model = DeepLabV2(K, "resnet_tiny", D).train()
    output = model(torch.rand(1, 3, 16, 32))
    (output.logits.mean() + output.features.mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    teacher = ExponentialMovingAverage(model)
    teacher.update(model)
    # One pixel of one image has no deviation: torch raises an error.
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.rand(1, 3, 1, 1))
    assert teacher.module(torch.rand(1, 3, 8, 8)).logits.isfinite().all()


def test_cutmix_of_one_pixel() -> None:
    one = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    label = torch.zeros(1, 1, 1, dtype=torch.int64)
    mixed, labels, _ = cutmix(one, label, one + 1, label + 1, probability=1.0)
    assert mixed.shape == one.shape
    assert mixed.max() == labels.max()
