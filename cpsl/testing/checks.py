"""Checks that a segmentation loss should pass, one function each.

A check is called with a loss, which is a function of a batch, and a batch. It raises an AssertionError that
names the violation, its size and its usual cause, or a ValueError if the batch cannot reveal the violation.
A check that does not apply to the loss, such as ignored pixels for a loss without labels, passes.
Gradients are those of `logits`, `features` and `prototypes`. Random numbers are the same in each call.

Two results are equal if they differ by less than the square root of the resolution of the coarsest dtype in
which the loss is computed (3e-4 for float32 and float64, 0.09 for bfloat16), relative to the largest entry.

    >>> import torch.nn.functional as F
    >>> from cpsl.testing import segmentation_batch
    >>> def loss(batch):
    ...     return F.cross_entropy(batch.logits, batch.labels, ignore_index=batch.ignore_index)
    >>> check_scalar_with_gradient(loss, segmentation_batch())
    >>> check_all_ignored_is_zero(loss, segmentation_batch())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: the loss of a batch without valid pixels is nan, not 0.
    Usual cause: a mean over 0 valid pixels, which is 0/0 (divide by valid.sum().clamp_min(1)), or ...
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpsl.testing.applicability import (
    SEVERAL_IMAGES,
    SEVERAL_PIXELS,
    VALID,
    VALID_AND_IGNORED,
    LossCheck,
    has,
    is_deterministic,
    is_repeatable,
    loss_check,
    uses_labels,
    uses_teacher,
)
from cpsl.testing.batches import EDGE_CASES, SegmentationBatch, all_ignored, one_pixel
from cpsl.testing.gradients import require_true_gradients
from cpsl.testing.outcome import (
    LEARNED,
    PREDICTED,
    TEACHER,
    Loss,
    Outcome,
    Violation,
    call,
    cast,
    copy,
    differentiate,
    evaluate,
    largest,
    require,
    require_finite,
    require_same,
    tolerance_of,
)
from cpsl.testing.reads import recorded_reads


@loss_check()
def check_scalar_with_gradient(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss is a finite floating-point scalar with a graph to an input."""
    value = evaluate(loss, batch).value
    require(bool(value.isfinite()), f"the loss is {value.item()}", "0/0, log 0 or exp of a large number.")


@loss_check()
def check_inputs_stay_as_they_are(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss modifies none of its inputs in place."""
    cause = (
        "an operation in place, such as labels[labels == 255] = 0 or logits.div_(temperature); "
        "masked_fill and torch.where return a new tensor."
    )
    given = copy(batch)
    call(loss, given)
    for name in (*LEARNED, *TEACHER, "labels"):
        before, after = getattr(batch, name), getattr(given, name)
        changed = int((before != after).sum())
        require(not changed, f"the loss changes {changed} of {before.numel()} entries of `{name}`", cause)


@loss_check(VALID_AND_IGNORED, uses_labels, is_repeatable)
def check_ignored_pixels_have_no_influence(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that predictions at ignored pixels change neither value nor gradients, and have no gradient."""
    cause = (
        "a term without the mask, labels compared with another ignore_index, or a mask that is applied "
        "after a mean, a maximum or a softmax over pixels."
    )
    ignored = ~batch.valid[:, None]
    outcome = evaluate(loss, batch)
    for name in ("logits", "features"):
        size = largest(outcome.gradients[name].masked_fill(~ignored, 0))
        require(size == 0, f"ignored pixels get a gradient: up to {size:.3g} in `{name}`", cause)

    def changed(name: str) -> Any:
        x = getattr(batch, name)
        return torch.where(ignored, -30 * x.flip(1), x)  # other channels, and far from 0

    other = batch._replace(**{name: changed(name) for name in PREDICTED})
    when = "predictions at ignored pixels change"
    require_same(evaluate(loss, other, where=f"when {when}"), outcome, when, cause, tolerance_of(loss, batch))


@loss_check(VALID_AND_IGNORED, uses_labels, is_deterministic)
def check_ignored_pixels_are_not_counted(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that additional ignored pixels change nothing: the mean is over valid pixels.

    Some published losses divide by the number of all pixels on purpose; their weight then varies between
    batches. Omit this check for them.
    """
    width = batch.labels.shape[-1]
    wider = batch.map(lambda x: torch.cat([x, x], dim=-1))
    wider.labels[..., width:] = batch.ignore_index
    when = f"{batch.labels.numel()} ignored pixels are added"
    got = evaluate(loss, wider, where=f"when {when}").map(lambda x: x[..., :width])
    cause = "mean() over all pixels of losses that are 0 where ignored; divide the sum by the valid pixels."
    require_same(got, evaluate(loss, batch), when, cause, tolerance_of(loss, batch))


@loss_check(VALID_AND_IGNORED, uses_labels, is_repeatable)
def check_all_ignored_is_zero(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that loss and gradients are exactly 0 if all pixels are ignored.

    The loss must keep its graph to the same inputs: under DDP, a rank without labels must participate in the
    averaging of gradients.
    """
    usual, empty = (
        evaluate(loss, batch),
        evaluate(loss, all_ignored(batch), where="for the edge case all_ignored"),
    )
    cause = (
        "a mean over 0 valid pixels, which is 0/0 (divide by valid.sum().clamp_min(1)), or a term "
        "without the mask."
    )
    value = empty.value.item()
    require(value == 0, f"the loss of a batch without valid pixels is {value:.6g}, not 0", cause)
    for name, gradient in empty.gradients.items():
        size = largest(gradient)
        violation = f"a batch without valid pixels gives `{name}` a gradient of up to {size:.3g}"
        require(size == 0, violation, cause)
    cut = ", ".join(sorted(usual.connected - empty.connected))
    cause = "an early return; return the masked sum, which is 0 and has a graph."
    require(not cut, f"without valid pixels the loss is not connected to {cut} any more", cause)


@loss_check()
def check_edge_cases_are_finite(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that value and gradients are finite for `EDGE_CASES`, except `all_ignored`.

    A neighborhood loss need not accept a single pixel.
    """
    cause = "division by the size of an absent class, a deviation of one pixel, log 0, root or norm of 0."
    for case in EDGE_CASES:
        if case is all_ignored:
            continue
        where = f"for the edge case {case.__name__}"
        try:
            require_finite(evaluate(loss, case(batch), where=where), where, cause)
        except Exception:
            if not (case is one_pixel and _is_of_neighborhoods(loss, batch)):
                raise


@loss_check()
def check_extreme_inputs_are_finite(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that value and gradients are finite for logits of ±1e4, zero features and very long features.

    Diverging networks return large logits, ReLUs zero features.
    """
    cause = (
        "the log of a softmax that is 0 (log_softmax never is -inf here), exp without the maximum "
        "subtracted (logsumexp), or x / x.norm() (F.normalize adds an epsilon)."
    )
    signs, teacher_signs = 1e4 * batch.logits.sign(), 1e4 * batch.teacher_logits.sign()
    features, teacher_features = batch.features, batch.teacher_features
    extremes = {
        "logits of ±1e4": batch._replace(logits=signs, teacher_logits=teacher_signs),
        "logits of ±1e4, the teacher's opposed": batch._replace(logits=signs, teacher_logits=-signs),
        "features of 0": batch._replace(features=0 * features, teacher_features=0 * teacher_features),
        "features 1e4 times as long": batch._replace(
            features=1e4 * features, teacher_features=1e4 * teacher_features
        ),
    }
    for name, extreme in extremes.items():
        require_finite(evaluate(loss, extreme, where=f"for {name}"), f"for {name}", cause)


@loss_check()
def check_autocast_changes_little(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss is float32 or wider under bfloat16 autocast, and within 1 % of the result without.

    Tested for inputs in float32 and, as networks return them under autocast, bfloat16; rounding of the inputs
    is not counted. The tolerance allows a single product in bfloat16, but no division of one by a small
    temperature. Results of random losses are not compared: random numbers depend on the dtype.
    """
    cause = (
        "arithmetic in the inputs' dtype or a matrix product that autocast lowers; begin with "
        "logits.float(), and wrap products in torch.autocast(device_type, enabled=False)."
    )
    comparable = has(loss, batch, is_deterministic)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = cast(batch, dtype)
        name = str(dtype).removeprefix("torch.")
        got = evaluate(loss, inputs, autocast=True, where=f"under bfloat16 autocast with {name} inputs")
        violation = f"under autocast, {name} inputs give a loss of {got.value.dtype}, not torch.float32"
        require(torch.finfo(got.value.dtype).eps <= torch.finfo(torch.float32).eps, violation, cause)
        if comparable:
            exact = evaluate(loss, cast(inputs, torch.float32), where=f"with inputs rounded to {name}")
            require_same(got, exact, f"autocast is on, with {name} inputs", cause, tolerance=0.01)


@loss_check(SEVERAL_PIXELS, is_deterministic)
def check_order_of_pixels_does_not_matter(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that permuting the pixels of all maps permutes the gradients and keeps the value.

    Neighborhood losses (boundaries, smoothness) pass if this is true for one of the two flips.
    """
    cause = (
        "maps that are flattened differently, such as (B, K, h, w) with view(-1, K) instead of "
        "movedim(1, -1).reshape(-1, K)."
    )
    if not _is_of_neighborhoods(loss, batch):
        _require_equivariance(loss, batch, _permuted, "the pixels are permuted", cause)


@loss_check(SEVERAL_IMAGES, is_deterministic)
def check_order_of_images_does_not_matter(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that reversing the images reverses the gradients and keeps the value."""
    cause = "maps that are flattened differently, or an index of one image used for all."
    _require_equivariance(loss, batch, lambda x: x.flip(0), "the images are in reverse order", cause)


@loss_check(VALID, is_repeatable)
def check_equal_shares_average_to_the_whole(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss is a mean over images, so that the learning rate does not depend on their number.

    Under DDP each rank computes the loss of its share of the images, and gradients are averaged. The check
    repeats the image with the most valid pixels: 8 copies should give the gradient of 2 copies. Losses that
    combine pixels (contrast within the batch) are not exact means; only a factor above 3 is a violation.
    """
    fullest = int(batch.valid.flatten(1).sum(dim=1).argmax())

    def copies(number: int) -> Outcome:
        share = batch.map(lambda x: x[fullest].expand(number, *x.shape[1:]))
        return evaluate(loss, share, where=f"for {number} copies of one image")

    few, many = copies(2), copies(8)
    cause = "a sum instead of a mean, or a division by the number of images in addition to the mean."
    for name in LEARNED:
        # Sum over the copies; the prototypes are not copied.
        small, large = (
            float((x.gradients[name] if name == "prototypes" else x.gradients[name].sum(dim=0)).norm())
            for x in (few, many)
        )
        factor = large / small if min(small, large) > 0 else 1
        violation = (
            f"8 copies of one image give {factor:.3g} times the gradient of `{name}` that 2 copies give"
        )
        require(1 / 3 <= factor <= 3, violation, cause)


@loss_check(uses_teacher)
def check_teacher_gets_no_gradient(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that `teacher_logits` and `teacher_features` receive no gradient, even if they require one."""
    _, gradients = differentiate(loss, batch, (*LEARNED, *TEACHER))
    cause = "a missing detach() of the teacher's outputs."
    for name in TEACHER:
        size = largest(gradients[name])
        require(size == 0, f"the teacher learns: a gradient of up to {size:.3g} in `{name}`", cause)


@loss_check(is_repeatable)
def check_gradient_matches_finite_differences(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks derivatives along the gradient and random directions by central differences.

    The check uses float64 if the loss accepts it. The tolerance is 2 % of the gradient plus the measured
    rounding error; if a part of the loss is computed in bfloat16, only large errors are detected. Omit this
    check if a part of the student is detached on purpose (weights from its own confidence, assignments).
    """
    cause = (
        "a custom backward, a detach() or no_grad() in the middle, or a step function (argmax, round, "
        "comparison)."
    )
    require_true_gradients(loss, batch, cause)


@loss_check()
def check_nothing_waits_for_the_device(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that loss and gradient neither read a value nor create a shape that depends on the inputs.

    Each such operation synchronizes with a GPU and breaks the graph of `torch.compile`. The check needs no
    GPU. Constants that stay on the CPU may be read. Copies to the CPU that are not read are not detected.
    """
    cause = (
        "item(), float(), numpy(), a Python branch or assert on a tensor, boolean indexing, nonzero() or "
        "unique(); use torch.where, masked_fill and sums under a mask."
    )
    try:
        reads = recorded_reads(loss, batch, pretend=True)
    except Exception:  # a loss may use the device in ways that cannot be simulated
        reads = recorded_reads(loss, batch, pretend=False)
    for read in reads[:1]:
        violation = f"{read.operation} reads a value in line {read.line} of {read.file}, `{read.source}`"
        require(False, violation, cause)


LOSS_CHECKS: tuple[LossCheck, ...] = (
    check_scalar_with_gradient,
    check_inputs_stay_as_they_are,
    check_ignored_pixels_have_no_influence,
    check_ignored_pixels_are_not_counted,
    check_all_ignored_is_zero,
    check_edge_cases_are_finite,
    check_extreme_inputs_are_finite,
    check_autocast_changes_little,
    check_order_of_pixels_does_not_matter,
    check_order_of_images_does_not_matter,
    check_equal_shares_average_to_the_whole,
    check_teacher_gets_no_gradient,
    check_gradient_matches_finite_differences,
    check_nothing_waits_for_the_device,
)
"""All checks; pytest names parametrized tests after their functions."""


def applicable_checks(loss: Loss, batch: SegmentationBatch) -> tuple[LossCheck, ...]:
    """Returns the checks that apply to a loss and for which a batch is suitable.

    The properties of the loss are measured: whether it changes with the labels, with the teacher, with the
    random numbers, and from call to call. The other checks pass for this loss, or reject the batch.

    Args:
        loss: The loss under test.
        batch: A typical batch.

    Raises:
        Exception: The loss raises it for the batch.

    Example:
        >>> def entropy(batch):
        ...     log_probabilities = batch.logits.float().log_softmax(dim=1)
        ...     return -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()
        >>> from cpsl.testing import segmentation_batch
        >>> checks = applicable_checks(entropy, segmentation_batch())
        >>> check_all_ignored_is_zero in checks, check_autocast_changes_little in checks
        (False, True)
    """
    properties = {condition for check in LOSS_CHECKS for condition in check.only_if}
    found = {condition for condition in properties if has(loss, batch, condition)}
    return tuple(
        check
        for check in LOSS_CHECKS
        if found.issuperset(check.only_if) and all(need.holds(batch) for need in check.needs)
    )


def _require_equivariance(
    loss: Loss, batch: SegmentationBatch, change: Callable[[Tensor], Tensor], when: str, cause: str
) -> None:
    """Requires that a transformation of all maps transforms the gradients equally and keeps the value."""
    __tracebackhide__ = True  # pytest then shows the check
    changed = evaluate(loss, batch.map(change), where=f"when {when}")
    require_same(changed, evaluate(loss, batch).map(change), when, cause, tolerance_of(loss, batch))


def _permuted(x: Tensor) -> Tensor:
    """Permutes the pixels of a map."""
    order = torch.randperm(x.shape[-2:].numel(), generator=torch.Generator().manual_seed(0)).to(x.device)
    return x.flatten(-2)[..., order].reshape(x.shape)


def _is_of_neighborhoods(loss: Loss, batch: SegmentationBatch) -> bool:
    """Returns whether the loss depends on the order of pixels, but not on one of the two flips."""
    # Tiled, because few pixels have few orders.
    batch = batch.map(lambda x: torch.cat([torch.cat([x, x], dim=-1)] * 2, dim=-2))
    fulfilled = [
        _is_equivariant(loss, batch, change)
        for change in (_permuted, lambda x: x.flip(-1), lambda x: x.flip(-2))
    ]
    return not fulfilled[0] and any(fulfilled)


def _is_equivariant(loss: Loss, batch: SegmentationBatch, change: Callable[[Tensor], Tensor]) -> bool:
    try:
        _require_equivariance(loss, batch, change, "", "")
    except Violation:
        return False
    return True
