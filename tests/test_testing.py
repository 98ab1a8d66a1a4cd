import copy
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cpsl
from cpsl.testing import (
    EDGE_CASES,
    LOSS_CHECKS,
    Loss,
    LossCheck,
    SegmentationBatch,
    all_ignored,
    applicable_checks,
    batches,
    checks,
    perfect_prediction,
    segmentation_batch,
    uniform_prediction,
)
from cpsl.testing.batches import absent_class, one_image, one_pixel
from cpsl.testing.checks import (
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

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"

random_batches = st.builds(
    segmentation_batch,
    images=st.integers(2, 4),
    num_classes=st.integers(2, 6),
    feature_dim=st.integers(6, 9),
    size=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    ignored=st.floats(0.2, 0.6),
    ignore_index=st.sampled_from([255, -1, -100, 6]),
    seed=st.integers(0, 10_000),
)


def masked_mean(each: Tensor, batch: SegmentationBatch) -> Tensor:
    return each.masked_fill(~batch.valid, 0).sum() / batch.valid.sum().clamp_min(1)


def cross_entropies(batch: SegmentationBatch, **options: Any) -> Tensor:
    return F.cross_entropy(
        batch.logits, batch.labels, ignore_index=batch.ignore_index, reduction="none", **options
    )


def cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    unit = F.normalize(prototypes, dim=1)
    return torch.einsum("bdhw,kd->bkhw", F.normalize(features, dim=1), unit)


def correct(batch: SegmentationBatch) -> Tensor:
    """Computes the sum of cross-entropy, distillation and consistency."""
    with torch.autocast(batch.logits.device.type, enabled=False):
        wide = torch.promote_types(batch.logits.dtype, torch.float32)
        batch = batch._replace(
            logits=batch.logits.to(wide),
            features=batch.features.to(wide),
            teacher_logits=batch.teacher_logits.detach().to(wide),
            teacher_features=batch.teacher_features.detach().to(wide),
            prototypes=batch.prototypes.to(wide),
        )
        divergence = F.kl_div(
            batch.logits.log_softmax(dim=1),
            batch.teacher_logits.log_softmax(dim=1),
            reduction="none",
            log_target=True,
        )
        similarity = cosines(batch.features, batch.prototypes)
        nearness = (similarity - batch.teacher_features[:, : similarity.shape[1]]).square()
        each = cross_entropies(batch) + (divergence + nearness).sum(dim=1)
        return masked_mean(each, batch)


@settings(max_examples=10)
@given(batch=random_batches)
@pytest.mark.parametrize("check", LOSS_CHECKS)
def test_a_correct_loss_passes_all_checks(check: LossCheck, batch: SegmentationBatch) -> None:
    check(correct, batch)


@pytest.mark.parametrize("check", LOSS_CHECKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_correct_loss_passes_all_checks_in_other_dtypes(check: LossCheck, dtype: torch.dtype) -> None:
    check(correct, segmentation_batch(dtype=dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("check", LOSS_CHECKS)
def test_a_correct_loss_passes_all_checks_on_a_gpu(check: LossCheck) -> None:
    check(correct, segmentation_batch(device="cuda"))


def cross_entropy_of_pytorch(batch: SegmentationBatch) -> Tensor:
    return F.cross_entropy(batch.logits, batch.labels, ignore_index=batch.ignore_index)


@pytest.mark.parametrize("check", LOSS_CHECKS)
def test_cross_entropy_of_pytorch_fails_one_check(check: LossCheck) -> None:
    if check is check_all_ignored_is_zero:
        with pytest.raises(AssertionError, match="without valid pixels is nan, not 0"):
            check(cross_entropy_of_pytorch, segmentation_batch())
    else:
        check(cross_entropy_of_pytorch, segmentation_batch())


def mixes_precisions(batch: SegmentationBatch) -> Tensor:
    each = F.cross_entropy(
        batch.logits.float(), batch.labels, ignore_index=batch.ignore_index, reduction="none"
    )
    return masked_mean(each + batch.logits.double().logsumexp(dim=1), batch)


def mixes_precisions_the_other_way(batch: SegmentationBatch) -> Tensor:
    wide = batch._replace(logits=batch.logits.double())
    return masked_mean(cross_entropies(wide) + batch.logits.float().square().sum(dim=1), batch)


def multiplies_in_bfloat16(batch: SegmentationBatch) -> Tensor:
    scores = torch.einsum("bdhw,kd->bkhw", batch.features.bfloat16(), batch.prototypes.bfloat16())
    return masked_mean(cross_entropies(batch._replace(logits=scores.float())), batch)


def divides_by_a_small_temperature(batch: SegmentationBatch) -> Tensor:
    with torch.autocast(batch.logits.device.type, enabled=False):
        scores = cosines(batch.features.float(), batch.prototypes.float()) / 0.08
    return masked_mean(cross_entropies(batch._replace(logits=scores)), batch)


def has_kinks(batch: SegmentationBatch) -> Tensor:
    distance = batch.logits.float() - batch.teacher_logits.detach().float()
    return masked_mean(distance.abs().sum(dim=1) + distance.amax(dim=1).relu(), batch)


def dice(batch: SegmentationBatch) -> Tensor:
    p = batch.logits.float().softmax(dim=1).masked_fill(~batch.valid[:, None], 0)
    labels = batch.labels.masked_fill(~batch.valid, 0)
    target = F.one_hot(labels, p.shape[1]).movedim(-1, 1) * batch.valid[:, None]
    overlap = (p * target).sum(dim=(0, 2, 3))
    coefficients = 2 * overlap / (p + target).sum(dim=(0, 2, 3)).clamp_min(1)
    return (1 - coefficients).mean() * batch.valid.any()


def smooths(batch: SegmentationBatch) -> Tensor:
    p = batch.logits.float().softmax(dim=1)
    return (p[..., 1:] - p[..., :-1]).square().mean()


def minimizes_entropy(batch: SegmentationBatch) -> Tensor:
    log_p = batch.logits.float().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def distills(batch: SegmentationBatch) -> Tensor:
    teacher = batch.teacher_logits.detach().float().log_softmax(dim=1)
    return F.kl_div(batch.logits.float().log_softmax(dim=1), teacher, log_target=True, reduction="batchmean")


def compares_features(batch: SegmentationBatch) -> Tensor:
    return (batch.features.float() - batch.teacher_features.detach().float()).square().sum(dim=1).mean()


def separates_prototypes(batch: SegmentationBatch) -> Tensor:
    with torch.autocast(batch.logits.device.type, enabled=False):
        prototypes = batch.prototypes.float()
        return (prototypes @ prototypes.t()).triu(1).square().mean()


def samples(batch: SegmentationBatch) -> Tensor:
    chosen = torch.rand(batch.labels.shape, device=batch.labels.device) < 0.7
    each = cross_entropies(batch._replace(logits=batch.logits.float()))
    return (each * chosen).sum() / (chosen & batch.valid).sum().clamp_min(1)


def samples_in_python(batch: SegmentationBatch) -> Tensor:
    row = random.randrange(batch.labels.shape[-2])
    each = cross_entropies(batch._replace(logits=batch.logits.float()))[:, row]
    return each.sum() / batch.valid[:, row].sum().clamp_min(1)


def drops_out(batch: SegmentationBatch) -> Tensor:
    return masked_mean(F.dropout(batch.logits, 0.5).float().square().mean(dim=1), batch)


class Centered(torch.nn.Module):
    """Cross-entropy with a teacher minus its running mean, as in DINO."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(()))

    def forward(self, batch: SegmentationBatch) -> Tensor:
        teacher = batch.teacher_logits.detach().float()
        self.center = 0.9 * self.center + 0.1 * teacher.mean(dim=(0, 2, 3), keepdim=True)
        target = (teacher - self.center).softmax(dim=1)
        return -(target * batch.logits.float().log_softmax(dim=1)).sum(dim=1).mean()


def weighs_classes(batch: SegmentationBatch) -> Tensor:
    constant = torch.arange(1.0, batch.logits.shape[1] + 1)  # stays on the CPU
    weight = (constant / constant.sum().item() / len(constant.tolist())).to(batch.logits.device)
    logits = batch.logits.float()
    return masked_mean(cross_entropies(batch._replace(logits=logits), weight=weight), batch)


def smooths_labels(batch: SegmentationBatch) -> Tensor:
    each = cross_entropies(batch._replace(logits=batch.logits.float()), label_smoothing=0.1)
    return masked_mean(each, batch)


def checks_labels_on_cpus(batch: SegmentationBatch) -> Tensor:
    if batch.labels.device.type == "cpu" and batch.labels[batch.valid].ge(batch.logits.shape[1]).any():
        raise ValueError("labels are no classes")
    counts = torch.zeros(batch.logits.shape[1], device=batch.labels.device)
    labels = batch.labels.masked_fill(~batch.valid, 0).flatten()
    each = cross_entropies(batch._replace(logits=batch.logits.float()))
    return counts.index_add(0, labels, each.flatten()).sum() / batch.valid.sum().clamp_min(1)


def always_returns_float64(batch: SegmentationBatch) -> Tensor:
    return masked_mean(cross_entropies(batch._replace(logits=batch.logits.double())), batch)


CORRECT: list[Loss] = [
    mixes_precisions,
    mixes_precisions_the_other_way,
    multiplies_in_bfloat16,
    divides_by_a_small_temperature,
    has_kinks,
    dice,
    smooths,
    minimizes_entropy,
    distills,
    compares_features,
    separates_prototypes,
    samples,
    samples_in_python,
    drops_out,
    Centered(),
    weighs_classes,
    smooths_labels,
    checks_labels_on_cpus,
    always_returns_float64,
    torch.compile(distills, backend="eager"),
]


@settings(max_examples=3)
@given(batch=random_batches)
@pytest.mark.parametrize("loss", CORRECT, ids=lambda loss: getattr(loss, "__name__", type(loss).__name__))
def test_correct_losses_pass_all_checks(loss: Loss, batch: SegmentationBatch) -> None:
    loss = copy.deepcopy(loss)  # some have a state
    for check in LOSS_CHECKS:
        check(loss, batch)


NEED_LABELS = {
    check_ignored_pixels_have_no_influence,
    check_ignored_pixels_are_not_counted,
    check_all_ignored_is_zero,
}
NEED_ORDER = {
    check_ignored_pixels_are_not_counted,
    check_order_of_pixels_does_not_matter,
    check_order_of_images_does_not_matter,
}
NEED_TEACHER = {check_teacher_gets_no_gradient}


@pytest.mark.parametrize(
    ("loss", "options", "left_out"),
    [
        (correct, {}, set()),
        (minimizes_entropy, {}, NEED_LABELS | NEED_TEACHER),
        (distills, {}, NEED_LABELS),
        (compares_features, {}, NEED_LABELS),
        (separates_prototypes, {}, NEED_LABELS | NEED_TEACHER),
        (lambda batch: cpsl.distillation(batch.logits, batch.teacher_logits, batch.valid), {}, set()),
        (samples, {}, NEED_ORDER | NEED_TEACHER),
        (correct, {"images": 1}, {check_order_of_images_does_not_matter}),
        (correct, {"ignored": 0}, NEED_LABELS),
    ],
)
def test_checks_that_do_not_apply_are_left_out(
    loss: Loss, options: dict[str, Any], left_out: set[LossCheck]
) -> None:
    batch = segmentation_batch(**options)
    assert applicable_checks(loss, batch) == tuple(check for check in LOSS_CHECKS if check not in left_out)


def test_losses_with_a_state_are_not_compared() -> None:
    left_out = set(LOSS_CHECKS) - set(applicable_checks(Centered(), segmentation_batch()))
    assert left_out > NEED_LABELS | {check_gradient_matches_finite_differences}
    assert applicable_checks(lambda batch: Centered()(batch), segmentation_batch()) == applicable_checks(
        distills, segmentation_batch()
    )


def test_broken_losses_are_not_excused() -> None:
    for loss in (
        cross_entropies,
        lambda batch: correct(batch).detach(),
        lambda batch: math.nan * correct(batch),
    ):
        assert set(applicable_checks(loss, segmentation_batch())) == set(LOSS_CHECKS)


@pytest.mark.parametrize(
    ("check", "fails", "where"),
    [
        (check_scalar_with_gradient, lambda batch: True, "for the given batch"),
        (
            check_edge_cases_are_finite,
            lambda batch: batch.labels.shape[-1] == 1,
            "for the edge case one_pixel",
        ),
        (check_extreme_inputs_are_finite, lambda batch: batch.logits.max() == 1e4, "for logits of ±1e4"),
        (
            check_autocast_changes_little,
            lambda batch: torch.is_autocast_enabled("cpu"),
            "under bfloat16 autocast with float32 inputs",
        ),
        (check_all_ignored_is_zero, lambda batch: not batch.valid.any(), "for the edge case all_ignored"),
    ],
)
def test_exceptions_of_a_loss_name_the_check_and_the_inputs(
    check: LossCheck, fails: Callable[[SegmentationBatch], bool], where: str
) -> None:
    def loss(batch: SegmentationBatch) -> Tensor:
        if fails(batch):
            raise IndexError("a mistake of the loss")
        return correct(batch)

    with pytest.raises(IndexError, match="a mistake of the loss") as failure:
        check(loss, segmentation_batch())
    notes = " ".join(failure.value.__notes__)
    assert where in notes
    assert check.__name__ in notes
    assert failure.traceback[-1].name == "loss"


def test_assertions_of_a_loss_are_kept() -> None:
    def loss(batch: SegmentationBatch) -> Tensor:
        raise AssertionError("labels are no classes")

    with pytest.raises(AssertionError, match="labels are no classes") as failure:
        check_order_of_pixels_does_not_matter(loss, segmentation_batch())
    assert failure.value.__notes__


class Scaled(torch.autograd.Function):
    """Identity with a gradient that is 10 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1.1 * gradient


@settings(max_examples=3)
@given(batch=random_batches)
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (mixes_precisions, "logits"),
        (mixes_precisions_the_other_way, "logits"),
        (divides_by_a_small_temperature, "features"),
        (divides_by_a_small_temperature, "prototypes"),
        (dice, "logits"),
        (has_kinks, "logits"),
        (drops_out, "logits"),
        (distills, "logits"),
    ],
)
def test_gradients_that_are_ten_percent_too_large_are_found(
    loss: Loss, name: str, batch: SegmentationBatch
) -> None:
    def wrong(batch: SegmentationBatch) -> Tensor:
        inputs: dict[str, Any] = {name: Scaled.apply(getattr(batch, name))}
        return loss(batch._replace(**inputs))

    with pytest.raises(AssertionError, match=f"of `{name}` the loss changes"):
        check_gradient_matches_finite_differences(wrong, batch)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_in_bfloat16_that_are_twice_too_large_are_found(seed: int) -> None:
    def wrong(batch: SegmentationBatch) -> Tensor:
        return multiplies_in_bfloat16(batch._replace(features=Doubled.apply(batch.features)))

    with pytest.raises(AssertionError, match="of `features` the loss changes"):
        check_gradient_matches_finite_differences(wrong, segmentation_batch(seed=seed))


@pytest.mark.parametrize(
    ("read", "operation"),
    [
        (lambda x: x.tolist(), "tolist"),
        (lambda x: np.asarray(x), "array"),
        (lambda x: x.max() > 1e9 or None, "item"),
        (lambda x: torch.zeros_like(x).add_(x).sum().item(), "item"),
        (lambda x: torch.zeros(1).index_add_(0, torch.zeros(1).long(), x.sum()[None]).item(), "item"),
        (lambda x: torch.ones(3).to(x.device).sum().item(), "item"),
        (lambda x: torch.ones(3, device=x.device).tolist(), "tolist"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.clone().index_put_((x > 0,), x[0, 0, 0].repeat(x.shape[0]).cumsum(0)[:1]), ""),
        (lambda x: F.one_hot(x.argmax(dim=1)), "item"),
        (lambda x: F.one_hot(x.argmax(dim=1), x.shape[1]), ""),
        (lambda x: torch.ones(3, device="cpu").tolist(), ""),
        (lambda x: torch.arange(2, x.shape[1]).tolist(), ""),
        (lambda x: torch.tensor([1.0, 2.0]).sum().item(), ""),
    ],
)
def test_values_of_inputs_must_not_be_read_but_constants_may(
    read: Callable[[Tensor], Any], operation: str
) -> None:
    def loss(batch: SegmentationBatch) -> Tensor:
        read(batch.logits.detach())
        return correct(batch)

    if operation:
        with pytest.raises(AssertionError, match=f"^{operation} reads a value in line"):
            check_nothing_waits_for_the_device(loss, segmentation_batch())
    else:
        check_nothing_waits_for_the_device(loss, segmentation_batch())


class Doubled(torch.autograd.Function):
    """Identity with twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Reading(torch.autograd.Function):
    """Identity whose backward reads a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient if gradient.max() < 1 else gradient / gradient.norm()


def relabels(batch: SegmentationBatch) -> Tensor:
    value = correct(batch)
    batch.labels[batch.labels == 255] = 0
    return value


def scales_in_place(batch: SegmentationBatch) -> Tensor:
    return correct(batch._replace(logits=batch.logits.div_(2)))


def takes_ignored_pixels_for_class_0(batch: SegmentationBatch) -> Tensor:
    return F.cross_entropy(batch.logits, batch.labels.masked_fill(~batch.valid, 0))


def adds_the_mean_of_all_logits(batch: SegmentationBatch) -> Tensor:
    return correct(batch) + batch.logits.detach().mean()


def weighs_classes_by_all_predictions(batch: SegmentationBatch) -> Tensor:
    weight = batch.logits.detach().softmax(dim=1).mean(dim=(0, 2, 3))
    shares = weight * len(weight)
    return masked_mean(batch.logits.softmax(dim=1).square().mul(shares[:, None, None]).sum(1), batch)


def divides_by_all_pixels(batch: SegmentationBatch) -> Tensor:
    return cross_entropies(batch).mean()


def returns_early(batch: SegmentationBatch) -> Tensor:
    return correct(batch) if batch.valid.any() else torch.zeros(())


def forgets_the_features(batch: SegmentationBatch) -> Tensor:
    return correct(batch) if batch.valid.any() else 0 * batch.logits.sum()


def regularizes_empty_batches(batch: SegmentationBatch) -> Tensor:
    return correct(batch) + (batch.logits - batch.logits.detach()).mean()


def weighs_by_inverse_frequency(batch: SegmentationBatch) -> Tensor:
    labels = batch.labels.masked_fill(~batch.valid, 0)
    mine = F.one_hot(labels, batch.logits.shape[1]).movedim(-1, 1) * batch.valid[:, None]
    sums = (mine * batch.logits.logsumexp(dim=1, keepdim=True)).sum(dim=(0, 2, 3))
    return (sums / mine.sum(dim=(0, 2, 3))).mean()


def standardizes_each_image(batch: SegmentationBatch) -> Tensor:
    pixels = batch.features.flatten(2)
    centered = pixels - pixels.mean(dim=2, keepdim=True)
    variance = centered.square().sum(dim=2, keepdim=True) / (pixels.shape[2] - 1)
    return (pixels / (variance + 1e-5).sqrt()).mean()


def takes_the_log_of_the_softmax(batch: SegmentationBatch) -> Tensor:
    return -(batch.logits.softmax(dim=1).log() * batch.teacher_logits.softmax(dim=1)).mean()


def divides_by_the_norm(batch: SegmentationBatch) -> Tensor:
    return (batch.features / batch.features.norm(dim=1, keepdim=True)).mean()


def takes_the_root_of_squares(batch: SegmentationBatch) -> Tensor:
    return batch.features.square().sum(dim=1).sqrt().mean()


def stays_in_half_precision(batch: SegmentationBatch) -> Tensor:
    return batch.logits.square().mean()


def lets_products_be_lowered(batch: SegmentationBatch) -> Tensor:
    pixels = batch.features.movedim(1, -1).flatten(0, 2)
    scores = (pixels @ batch.prototypes.t()).float() / 0.02
    return F.cross_entropy(scores, batch.labels.flatten(), ignore_index=batch.ignore_index)


def confuses_axes(batch: SegmentationBatch) -> Tensor:
    logits = batch.logits.contiguous().view(-1, batch.logits.shape[1])
    return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=batch.ignore_index)


def takes_the_labels_of_the_first_image(batch: SegmentationBatch) -> Tensor:
    return correct(batch._replace(labels=batch.labels[:1].expand_as(batch.labels)))


def sums(batch: SegmentationBatch) -> Tensor:
    return cross_entropies(batch).sum()


def teaches_the_teacher(batch: SegmentationBatch) -> Tensor:
    return correct(batch) + (batch.logits - batch.teacher_logits).square().mean()


def doubles_the_gradient(batch: SegmentationBatch) -> Tensor:
    return correct(batch._replace(logits=Doubled.apply(batch.logits)))


def doubles_the_gradient_in_float32(batch: SegmentationBatch) -> Tensor:
    return correct(batch._replace(logits=Doubled.apply(batch.logits.float()))).float()


def weighs_by_its_own_confidence(batch: SegmentationBatch) -> Tensor:
    confidence = batch.logits.detach().softmax(dim=1).amax(dim=1)
    return masked_mean(confidence * cross_entropies(batch), batch)


def selects_by_a_mask(batch: SegmentationBatch) -> Tensor:
    return batch.logits.movedim(1, -1)[batch.valid].logsumexp(dim=1).mean()


def converts_to_numpy(batch: SegmentationBatch) -> Tensor:
    return correct(batch) * int(batch.labels.numpy().size)


def reads_a_value_in_backward(batch: SegmentationBatch) -> Tensor:
    return correct(batch._replace(logits=Reading.apply(batch.logits)))


BROKEN: list[tuple[LossCheck, Loss, str]] = [
    (
        check_scalar_with_gradient,
        cross_entropies,
        r"not a scalar tensor of a floating dtype but torch.float32 \(2, 6, 7\).*Usual cause: reduction",
    ),
    (check_scalar_with_gradient, lambda batch: correct(batch).item(), r"but \d+\.\d+"),
    (check_scalar_with_gradient, lambda batch: correct(batch).detach(), "no graph to logits"),
    (check_scalar_with_gradient, lambda batch: correct(batch) * math.nan, "the loss is nan"),
    (check_inputs_stay_as_they_are, relabels, "21 of 84 entries of `labels`.*in place"),
    (check_inputs_stay_as_they_are, scales_in_place, "420 of 420 entries of `logits`"),
    (
        check_ignored_pixels_have_no_influence,
        takes_ignored_pixels_for_class_0,
        r"ignored pixels get a gradient: up to 0\.0\d+ in `logits`.*without the mask",
    ),
    (
        check_ignored_pixels_have_no_influence,
        adds_the_mean_of_all_logits,
        r"the loss changes from \S+ to \S+ when predictions at ignored pixels.*by \S+, allowed",
    ),
    (
        check_ignored_pixels_have_no_influence,
        weighs_classes_by_all_predictions,
        "changes.* when predictions at ignored pixels",
    ),
    (
        check_ignored_pixels_are_not_counted,
        divides_by_all_pixels,
        "the loss changes from .* when 84 ignored pixels are added: by .*divide the sum by",
    ),
    (check_all_ignored_is_zero, returns_early, "no graph .*a constant that is returned"),
    (check_all_ignored_is_zero, forgets_the_features, "not connected to features, prototypes any"),
    (check_all_ignored_is_zero, lambda batch: 1 + correct(batch), "valid pixels is 1, not 0"),
    (check_all_ignored_is_zero, regularizes_empty_batches, r"gives `logits` a gradient of up to 0\.00238"),
    (
        check_edge_cases_are_finite,
        weighs_by_inverse_frequency,
        "the loss is nan for the edge case absent_class.*an absent class",
    ),
    (
        check_edge_cases_are_finite,
        standardizes_each_image,
        "the loss is nan for the edge case one_pixel.*a deviation of one pixel",
    ),
    (
        check_extreme_inputs_are_finite,
        takes_the_log_of_the_softmax,
        r"the loss is (nan|inf) for logits of ±1e4.*log_softmax",
    ),
    (check_extreme_inputs_are_finite, divides_by_the_norm, "the loss is nan for features of 0"),
    (
        check_extreme_inputs_are_finite,
        takes_the_root_of_squares,
        "672 of 672 gradients of `features` are NaN or infinite for features of 0",
    ),
    (
        check_autocast_changes_little,
        stays_in_half_precision,
        r"bfloat16 inputs give a loss of torch.bfloat16, not torch.float32.*logits.float\(\)",
    ),
    (
        check_autocast_changes_little,
        lets_products_be_lowered,
        "changes.* when autocast is on, with float32 inputs",
    ),
    (
        check_order_of_pixels_does_not_matter,
        confuses_axes,
        "the loss changes from .* when the pixels are permuted.*flattened differently",
    ),
    (
        check_order_of_images_does_not_matter,
        takes_the_labels_of_the_first_image,
        "the loss changes from .* when the images are in reverse order",
    ),
    (
        check_equal_shares_average_to_the_whole,
        sums,
        "8 copies of one image give 4 times the gradient of `logits`.*a sum instead of a mean",
    ),
    (
        check_equal_shares_average_to_the_whole,
        lambda batch: correct(batch) / len(batch.labels),
        "8 copies of one image give 0.25 times",
    ),
    (
        check_teacher_gets_no_gradient,
        teaches_the_teacher,
        r"the teacher learns: a gradient of up to \S+ in `teacher_logits`.*missing detach",
    ),
    (
        check_gradient_matches_finite_differences,
        doubles_the_gradient,
        r"along the gradient of `logits` the loss changes by \S+, the gradient predicts \S+ \(tolerance",
    ),
    (
        check_gradient_matches_finite_differences,
        doubles_the_gradient_in_float32,
        "along the gradient of `logits`",
    ),
    (
        check_gradient_matches_finite_differences,
        weighs_by_its_own_confidence,
        r"along .* of `logits`.*detach\(\)",
    ),
    (
        check_nothing_waits_for_the_device,
        returns_early,
        r"item reads a value in line \d+ of test_testing.py, `return correct\(batch\) if batch.valid.any\(\)",
    ),
    (check_nothing_waits_for_the_device, selects_by_a_mask, "index reads a value.*boolean indexing"),
    (check_nothing_waits_for_the_device, converts_to_numpy, r"numpy reads .*batch.labels.numpy\(\)"),
    (check_nothing_waits_for_the_device, reads_a_value_in_backward, "test_testing.py, `return gradient if"),
]


@pytest.mark.parametrize(("check", "loss", "message"), BROKEN)
def test_violations_are_described(check: LossCheck, loss: Loss, message: str) -> None:
    with pytest.raises(AssertionError) as failure:
        check(loss, segmentation_batch())
    assert re.search(message, str(failure.value), re.S)
    assert "Usual cause: " in str(failure.value)


def test_each_check_can_fail() -> None:
    assert {check for check, _, _ in BROKEN} == set(LOSS_CHECKS)


def test_all_checks_and_edge_cases_can_be_imported() -> None:
    assert all(getattr(checks, check.__name__) is check for check in LOSS_CHECKS)
    assert all(getattr(batches, case.__name__) is case for case in EDGE_CASES)


@pytest.mark.parametrize(
    ("check", "options", "message"),
    [
        (check_ignored_pixels_have_no_influence, {"ignored": 0.0}, "valid and ignored pixels"),
        (check_ignored_pixels_have_no_influence, {"ignored": 1.0}, "valid and ignored pixels"),
        (check_ignored_pixels_are_not_counted, {"ignored": 1.0}, "valid and ignored pixels"),
        (check_all_ignored_is_zero, {"ignored": 0.0}, "valid and ignored pixels"),
        (check_order_of_pixels_does_not_matter, {"size": (1, 1)}, "several pixels"),
        (check_order_of_images_does_not_matter, {"images": 1}, "several images"),
        (check_equal_shares_average_to_the_whole, {"ignored": 1.0}, "valid pixels"),
    ],
)
def test_batches_that_cannot_reveal_a_violation_are_refused(
    check: LossCheck, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{check.__name__} needs a batch with {message}"):
        check(correct, segmentation_batch(**options))


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_partly_float32_losses_are_accepted(seed: int) -> None:
    def loss(batch: SegmentationBatch) -> Tensor:
        return masked_mean(batch.logits.float().logsumexp(dim=1) + batch.features.square().sum(dim=1), batch)

    batch = segmentation_batch(seed=seed)
    check_gradient_matches_finite_differences(loss, batch)
    check_gradient_matches_finite_differences(lambda batch: correct(batch).float(), batch)


def test_modules_can_be_tested() -> None:
    head = torch.nn.Conv2d(8, 4, 1)
    loss = torch.nn.Sequential(head, torch.nn.Dropout(), torch.nn.Flatten(0))
    for check in (check_nothing_waits_for_the_device, check_edge_cases_are_finite):
        check(lambda batch: loss(batch.features).square().mean(), segmentation_batch())
    assert head.weight.grad is None


def test_float32_modules_are_differentiated_in_float32() -> None:
    torch.manual_seed(0)
    head = torch.nn.Conv2d(8, 4, 1)

    def loss(batch: SegmentationBatch) -> Tensor:
        return head(batch.features).square().mean()

    check_gradient_matches_finite_differences(loss, segmentation_batch())
    with pytest.raises(AssertionError, match="along the gradient of `features`"):
        check_gradient_matches_finite_differences(
            lambda batch: head(Doubled.apply(batch.features)).square().mean(), segmentation_batch()
        )


def test_random_losses_are_repeated_and_the_random_state_is_restored() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def loss(batch: SegmentationBatch) -> Tensor:
        return masked_mean(F.dropout(batch.logits, 0.5).square().mean(dim=1), batch)

    check_ignored_pixels_have_no_influence(loss, segmentation_batch())
    check_gradient_matches_finite_differences(loss, segmentation_batch())
    assert torch.equal(torch.get_rng_state(), state)


@given(batch=random_batches)
def test_batches_have_their_documented_properties(batch: SegmentationBatch) -> None:
    (classes, dim), (images, *size) = batch.prototypes.shape, batch.labels.shape
    assert batch.logits.shape == batch.teacher_logits.shape == (images, classes, *size)
    assert batch.features.shape == batch.teacher_features.shape == (images, dim, *size)
    torch.testing.assert_close(batch.prototypes @ batch.prototypes.t(), torch.eye(classes))
    counts = torch.bincount(batch.labels[batch.valid], minlength=classes)
    assert len(counts) == classes
    assert counts.max() - counts.min() <= 1
    assert torch.equal(batch.valid, batch.labels != batch.ignore_index)


def test_a_seed_gives_the_same_numbers_in_each_dtype() -> None:
    one, other, double = (
        segmentation_batch(seed=3),
        segmentation_batch(seed=4),
        segmentation_batch(seed=3, dtype=torch.float64),
    )
    assert torch.equal(one.logits, double.logits.float())
    assert torch.equal(one.prototypes, double.prototypes.float())
    assert torch.equal(one.labels, double.labels)
    assert not torch.equal(one.logits, other.logits)


@given(batch=random_batches)
def test_perfect_predictions_have_known_results(batch: SegmentationBatch) -> None:
    perfect = perfect_prediction(batch)
    assert (cross_entropies(perfect) == 0).all()
    assert torch.equal(perfect.logits, perfect.teacher_logits)
    similarity = cosines(perfect.features, perfect.prototypes).movedim(1, -1)[batch.valid]
    one_hot = F.one_hot(batch.labels[batch.valid], similarity.shape[1]).float()
    torch.testing.assert_close(similarity, one_hot, atol=1e-6, rtol=0)
    confusion = cpsl.ConfusionMatrix(similarity.shape[1], ignore_index=255)
    confusion.update(perfect.logits.argmax(dim=1), perfect.labels.masked_fill(~perfect.valid, 255))
    assert confusion.miou == 1


@given(batch=random_batches)
def test_uniform_predictions_have_known_results(batch: SegmentationBatch) -> None:
    uniform = uniform_prediction(batch)
    classes = batch.logits.shape[1]
    each = cross_entropies(uniform)[uniform.valid]
    torch.testing.assert_close(each, torch.full_like(each, math.log(classes)))
    similarity = cosines(uniform.features, uniform.prototypes)
    torch.testing.assert_close(similarity, torch.full_like(similarity, classes**-0.5))


@given(batch=random_batches)
def test_other_edge_cases_have_their_documented_properties(batch: SegmentationBatch) -> None:
    assert not all_ignored(batch).valid.any()
    last = batch.logits.shape[1] - 1
    assert not (absent_class(batch).labels == last).any()
    assert torch.equal(absent_class(batch).valid, batch.valid)
    assert one_pixel(batch).features.shape == (*batch.features.shape[:2], 1, 1)
    assert one_pixel(batch).valid.all()
    assert torch.equal(one_image(batch).teacher_logits, batch.teacher_logits[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 9}, "9 prototypes need as many features, got feature_dim=8"),
        ({"ignored": 1.5}, "0...1, got 1.5"),
        ({"ignore_index": 4}, "ignore_index 4 is one of the 5 classes"),
    ],
)
def test_invalid_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        segmentation_batch(**options)


class Outcomes:
    """Records the outcomes of tests as a plugin of pytest."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.of[report.nodeid.partition("::")[2]] = report.outcome


def test_the_test_file_of_the_documentation_passes(tmp_path: Path) -> None:
    block = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert block
    file = tmp_path / "test_loss_of_the_page.py"
    file.write_text(block[1])
    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", f"--rootdir={tmp_path}"]
    assert pytest.main([*options, str(file)], plugins=[outcomes]) == 0
    assert len(outcomes.of) == 3 * len(LOSS_CHECKS) + 3
    assert "test_my_loss_keeps_the_contract[0-check_all_ignored_is_zero]" in outcomes.of


def test_the_documentation_quotes_a_real_message() -> None:
    page = PAGE.read_text()
    with pytest.raises(AssertionError) as failure:
        check_all_ignored_is_zero(cross_entropy_of_pytorch, segmentation_batch())
    assert " ".join(f"AssertionError: {failure.value}".split()) in " ".join(page.split())
    assert all(f"`{check.__name__}`" in page for check in LOSS_CHECKS)
