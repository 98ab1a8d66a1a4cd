"""Checks that a loss for segmentation should pass, one function each.

A check is called with a loss, which is a function of a batch, and a batch. It raises an AssertionError that
names the violation, its size and its usual cause, or a ValueError if the batch cannot reveal the violation.
Gradients are those of `logits`, `features` and `prototypes`. The random numbers are the same in each call.

Two results are equal if they differ by less than the square root of the dtype's resolution (3e-4 in float32),
relative to the largest entry.

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

import traceback
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpsl.testing.batches import EDGE_CASES, SegmentationBatch, all_ignored
from cpsl.testing.outcome import (
    LEARNED,
    PREDICTED,
    TEACHER,
    Loss,
    Outcome,
    call,
    cast,
    copy,
    differentiate,
    evaluate,
    largest,
    require,
    require_finite,
    require_same,
)

LossCheck = Callable[[Loss, SegmentationBatch], None]
"""A check, called with a loss and a batch."""


def check_scalar_with_gradient(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss is one finite floating number with a graph to an input."""
    value = evaluate(loss, batch).value
    require(bool(value.isfinite()), f"the loss is {value.item()}", "0/0, log 0 or exp of a large number.")


def check_inputs_stay_as_they_are(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss modifies none of its inputs in place."""
    cause = (
        "an operation in place, such as labels[labels == 255] = 0 or logits.div_(temperature); "
        "masked_fill and torch.where make a new tensor."
    )
    given = copy(batch)
    call(loss, given)
    for name in (*LEARNED, *TEACHER, "labels"):
        before, after = getattr(batch, name), getattr(given, name)
        changed = int((before != after).sum())
        require(not changed, f"the loss changes {changed} of {before.numel()} entries of `{name}`", cause)


def check_ignored_pixels_have_no_influence(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that predictions at ignored pixels change neither value nor gradients, and get no gradient."""
    _need(bool(batch.valid.any() and not batch.valid.all()), "valid and ignored pixels")
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
    require_same(evaluate(loss, other), outcome, when, cause)


def check_ignored_pixels_are_not_counted(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that additional ignored pixels change nothing: the mean is over valid pixels.

    Some published losses divide by the number of all pixels on purpose. Omit this check for them; their
    weight varies from batch to batch.
    """
    _need(bool(batch.valid.any()), "valid pixels")
    width = batch.labels.shape[-1]
    wider = batch.map(lambda x: torch.cat([x, x], dim=-1))
    wider.labels[..., width:] = batch.ignore_index
    got = evaluate(loss, wider).map(lambda x: x[..., :width])
    when = f"{batch.labels.numel()} ignored pixels are added"
    cause = "mean() over all pixels of losses that are 0 where ignored; divide the sum by the valid pixels."
    require_same(got, evaluate(loss, batch), when, cause)


def check_all_ignored_is_zero(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that loss and gradients are exactly 0 if all pixels are ignored.

    The loss must keep its graph to the same inputs: under DDP, a rank without labels must participate in the
    averaging of gradients.
    """
    usual, empty = evaluate(loss, batch), evaluate(loss, all_ignored(batch))
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


def check_edge_cases_are_finite(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that value and gradients are finite for `EDGE_CASES`, except `all_ignored`."""
    cause = "division by the size of an absent class, a deviation of one pixel, log 0, root or norm of 0."
    for case in EDGE_CASES:
        if case is not all_ignored:
            require_finite(evaluate(loss, case(batch)), f"for the case {case.__name__}", cause)


def check_extreme_inputs_are_finite(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that value and gradients are finite for logits of ±1e4, zero features and very long features.

    Diverging networks return the first, ReLUs the second.
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
        require_finite(evaluate(loss, extreme), f"for {name}", cause)


def check_autocast_changes_little(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the loss is float32 under bfloat16 autocast, and within 1 % of the result without.

    Tested for inputs in float32 and, as networks return them under autocast, bfloat16; rounding of the inputs
    is not counted. The tolerance allows a single product in bfloat16, but no division of one by a small
    temperature.
    """
    cause = (
        "arithmetic in the inputs' dtype or a matrix product that autocast lowers; begin with "
        "logits.float(), and wrap products in torch.autocast(device_type, enabled=False)."
    )
    for dtype in (torch.float32, torch.bfloat16):
        inputs = cast(batch, dtype)
        got = evaluate(loss, inputs, autocast=True)
        exact = evaluate(loss, cast(inputs, torch.float32))
        name = str(dtype).removeprefix("torch.")
        violation = f"under autocast, {name} inputs give a loss of {got.value.dtype}, not torch.float32"
        require(got.value.dtype == torch.float32, violation, cause)
        require_same(got, exact, f"autocast is on, with {name} inputs", cause, tolerance=0.01)


def check_order_of_pixels_does_not_matter(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that permuting the pixels of all maps permutes the gradients and keeps the value.

    Omit this check for losses of neighborhoods (boundaries, smoothness) and losses that sample pixels.
    """
    pixels = batch.labels.shape[-2:].numel()
    _need(pixels > 1, "several pixels")
    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0)).to(batch.labels.device)
    cause = (
        "maps that are flattened differently, such as (B, K, h, w) with view(-1, K) instead of "
        "movedim(1, -1).reshape(-1, K), or pixels that are sampled."
    )

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(-2)[..., order].reshape(x.shape)

    _require_equivariance(loss, batch, permuted, "the pixels are permuted", cause)


def check_order_of_images_does_not_matter(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that reversing the images reverses the gradients and keeps the value."""
    _need(len(batch.labels) > 1, "several images")
    cause = "maps that are flattened differently, or an index of one image used for all."
    _require_equivariance(loss, batch, lambda x: x.flip(0), "the images are in reverse order", cause)


def check_equal_shares_average_to_the_whole(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that the mean over ranks, as in DDP, is the loss of the whole batch.

    Each image is the share of one rank, and all shares have the same labels. With different numbers of valid
    pixels (or sums of class weights) no loss that is computed on one rank has this property, because each
    rank divides by its own number. To be exact, divide by the mean number of valid pixels over all ranks.

    Omit this check for losses that combine pixels (Dice, Lovász, contrast within the batch, assignments
    over the batch).
    """
    images = len(batch.labels)
    _need(images > 1 and bool(batch.valid.any()), "several images and valid pixels")
    fullest = int(batch.valid.flatten(1).sum(dim=1).argmax())
    whole = batch._replace(labels=batch.labels[fullest].expand_as(batch.labels))
    shares = [evaluate(loss, whole.map(itemgetter(slice(i, i + 1)))) for i in range(images)]
    mean = {
        # Each rank has its own images, and all of them have the prototypes.
        "logits": torch.cat([share.gradients["logits"] for share in shares]) / images,
        "features": torch.cat([share.gradients["features"] for share in shares]) / images,
        "prototypes": torch.stack([share.gradients["prototypes"] for share in shares]).mean(dim=0),
    }
    averaged = Outcome(torch.stack([share.value for share in shares]).mean(), mean, frozenset())
    cause = (
        "a sum where a mean belongs (the learning rate then depends on the batch), or a loss that joins "
        "pixels of several images."
    )
    require_same(averaged, evaluate(loss, whole), f"{images} equal shares are averaged", cause)


def check_teacher_gets_no_gradient(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that `teacher_logits` and `teacher_features` get no gradient, even if they require one."""
    _, gradients = differentiate(loss, batch, (*LEARNED, *TEACHER))
    cause = "a missing detach() of the teacher's outputs."
    for name in TEACHER:
        size = largest(gradients[name])
        require(size == 0, f"the teacher learns: a gradient of up to {size:.3g} in `{name}`", cause)


def check_gradient_matches_finite_differences(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks derivatives along random directions against central differences.

    In float64 if the loss computes in it; otherwise with a longer step and a tolerance of 5 %. Omit this
    check if a part of the student is a constant on purpose (weights from its own detached confidence,
    assignments).
    """
    cause = (
        "a backward of your own, a detach() or no_grad() in the middle, or a step function (argmax, round, "
        "comparison)."
    )
    try:
        outcome = evaluate(loss, cast(batch, torch.float64))
        batch = cast(batch, torch.float64)
    except RuntimeError:  # modules with float32 parameters do not accept float64
        outcome = evaluate(loss, batch)
    generator = torch.Generator().manual_seed(0)
    for name in sorted(outcome.connected) * 3:
        at, gradient = getattr(batch, name), outcome.gradients[name]
        # A gradient that float32 represents exactly was computed in float32.
        coarse = torch.equal(gradient, gradient.float().to(gradient))
        lowest = torch.float32 if coarse else gradient.dtype
        resolution = max(torch.finfo(dtype).eps for dtype in (lowest, outcome.value.dtype))
        step = resolution ** (1 / 3)  # balances the errors of rounding and of truncation
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64).to(at)
        above, below = (
            call(loss, copy(batch._replace(**{name: at + sign * step * direction}))) for sign in (1, -1)
        )
        numeric = float(above.detach().double() - below.detach().double()) / (2 * step)
        exact = float((gradient * direction).sum())
        rounding = resolution * float(outcome.value.abs()) / step
        tolerance = 10 * (step * float(gradient.norm()) + rounding)
        violation = (
            f"along a random direction of `{name}` the loss changes by {numeric:.6g}, its gradient predicts "
            f"{exact:.6g} (tolerance {tolerance:.2g})"
        )
        require(abs(numeric - exact) <= tolerance, violation, cause)


def check_nothing_waits_for_the_device(loss: Loss, batch: SegmentationBatch) -> None:
    """Checks that loss and gradient neither read a value nor create a shape that depends on one.

    Each such operation synchronizes with a GPU and breaks the graph of `torch.compile`. The check needs no
    GPU: it uses tensors without values. Copies to the CPU that are not read are not detected.
    """
    cause = (
        "item(), float(), numpy(), a Python branch or assert on a tensor, boolean indexing, nonzero() or "
        "unique(); use torch.where, masked_fill and sums under a mask."
    )
    call(loss, copy(batch))  # raises unrelated errors as they are
    violation = ""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = batch.map(mode.from_tensor)
        fake = fake._replace(prototypes=mode.from_tensor(batch.prototypes))
        leaves = [getattr(fake, name).requires_grad_() for name in LEARNED]
        try:
            torch.autograd.grad(loss(fake), leaves, allow_unused=True)
        except RuntimeError as error:
            violation = f"on tensors without values the loss fails {_location(error)}"
    require(not violation, violation, cause)


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
"""All checks. As parameters of a pytest test, each is named after its function."""


def _require_equivariance(
    loss: Loss, batch: SegmentationBatch, change: Callable[[Tensor], Tensor], when: str, cause: str
) -> None:
    """Requires that a change of all maps changes the gradients alike and keeps the value."""
    __tracebackhide__ = True  # pytest then shows the check
    require_same(evaluate(loss, batch.map(change)), evaluate(loss, batch).map(change), when, cause)


def _need(holds: bool, what: str) -> None:
    """Raises ValueError for a batch on which any loss would pass."""
    if not holds:
        raise ValueError(f"the check needs a batch with {what}")


def _location(error: Exception) -> str:
    """Describes an error inside torch by the line that caused it."""
    lines = traceback.extract_tb(error.__traceback__)
    torch_folder = str(Path(torch.__file__).parent)
    line = [line for line in lines if not line.filename.startswith(torch_folder)][-1]
    said = str(error).partition("\n")[0]
    return f"in line {line.lineno} of {Path(line.filename).name}, `{line.line}` ({said})"
