"""The contract of a loss, one plain function for each clause.

A check takes a loss, which is a function of a batch, and the batch. It returns nothing, or raises an
AssertionError that says what is violated, by how much, and what usually causes it. Gradients are those of
`logits`, `features` and `prototypes`. The random numbers that a loss draws are the same at each call.

Numbers are near each other if they differ by less than the square root of the dtype's resolution (3e-4 in
float32), relative to the largest of them.
"""

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpsl.testing.batches import EDGE_CASES, SegmentationBatch, all_ignored
from cpsl.testing.outcome import (
    LEARNT,
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
"""A check: raises an AssertionError if a loss breaks a clause of the contract on a batch."""


def check_scalar_with_gradient(loss: Loss, batch: SegmentationBatch) -> None:
    """The loss is one finite floating number, connected to an input that learns.

    Raises:
        AssertionError: It is something else.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.logsumexp(dim=1).mean()
        >>> check_scalar_with_gradient(loss, segmentation_batch())
    """
    value = evaluate(loss, batch).value
    require(
        bool(value.isfinite()),
        f"the loss is {value.item()}",
        "0/0, log 0 or exp of a large number.",
    )


def check_inputs_stay_as_they_are(loss: Loss, batch: SegmentationBatch) -> None:
    """The loss writes into none of its inputs, so that the next loss sees the same labels.

    Raises:
        AssertionError: An input has other values afterwards.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.square().mean()
        >>> check_inputs_stay_as_they_are(loss, segmentation_batch())
    """
    given = copy(batch)
    call(loss, given)
    for name in (*LEARNT, *TEACHER, "labels"):
        before, after = getattr(batch, name), getattr(given, name)
        changed = int((before != after).sum())
        require(
            changed == 0,
            f"the loss changes {changed} of {before.numel()} entries of `{name}`",
            "an operation in place, such as labels[labels == 255] = 0 or logits.div_(temperature); "
            "masked_fill and torch.where make a new tensor.",
        )


def check_ignored_pixels_have_no_influence(loss: Loss, batch: SegmentationBatch) -> None:
    """What is predicted at ignored pixels changes neither value nor gradient, and gets no gradient.

    Raises:
        AssertionError: It does.
        ValueError: The batch has not both, valid and ignored pixels.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> def loss(batch):
        ...     return (batch.logits.square().mean(dim=1) * batch.valid).sum() / batch.valid.sum()
        >>> check_ignored_pixels_have_no_influence(loss, segmentation_batch())
    """
    _need(bool(batch.valid.any() and not batch.valid.all()), "valid and ignored pixels")
    cause = (
        "a term without the mask, labels compared with another ignore_index, or a mask that is applied "
        "after a mean, a maximum or a softmax over pixels."
    )
    ignored = ~batch.valid[:, None]
    outcome = evaluate(loss, batch)
    for name in ("logits", "features"):
        gradient = outcome.gradients[name].masked_fill(~ignored, 0)
        require(
            not gradient.any(),
            f"ignored pixels get a gradient: up to {largest(gradient):.3g} in `{name}`",
            cause,
        )

    def otherwise(x: Tensor) -> Tensor:
        return torch.where(ignored, -30 * x.flip(1), x)  # other channels, and far from 0

    other = batch._replace(
        logits=otherwise(batch.logits),
        features=otherwise(batch.features),
        teacher_logits=otherwise(batch.teacher_logits),
        teacher_features=otherwise(batch.teacher_features),
    )
    changed = "what is predicted at ignored pixels changes"
    require_same(evaluate(loss, other), outcome, changed, cause)


def check_ignored_pixels_are_not_counted(loss: Loss, batch: SegmentationBatch) -> None:
    """More ignored pixels leave value and gradient as they are: the mean is over valid pixels.

    Some published losses divide by all pixels on purpose; leave the check out for them, and expect that
    their weight varies from batch to batch.

    Raises:
        AssertionError: They change them.
        ValueError: The batch has no valid pixel.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> def loss(batch):
        ...     return (batch.logits.square().mean(dim=1) * batch.valid).sum() / batch.valid.sum()
        >>> check_ignored_pixels_are_not_counted(loss, segmentation_batch())
    """
    _need(bool(batch.valid.any()), "valid pixels")
    width = batch.labels.shape[-1]
    wider = batch.map(lambda x: torch.cat([x, x], dim=-1))
    wider.labels[..., width:] = batch.ignore_index
    require_same(
        evaluate(loss, wider).map(lambda x: x[..., :width]),
        evaluate(loss, batch),
        f"{batch.labels.numel()} ignored pixels are added",
        "mean() over all pixels of losses that are 0 where ignored; divide the sum by the number of "
        "valid pixels.",
    )


def check_all_ignored_is_zero(loss: Loss, batch: SegmentationBatch) -> None:
    """Without any valid pixel the loss is exactly 0, and backward gives zeros, not NaN and no error.

    It stays connected to the inputs it is connected to otherwise: under DDP, a rank whose crop has no
    label must take part in the exchange of gradients.

    Raises:
        AssertionError: It is not 0, a gradient is not 0, or the graph is cut.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> def loss(batch):
        ...     return torch.nn.functional.cross_entropy(batch.logits, batch.labels, ignore_index=255)
        >>> check_all_ignored_is_zero(loss, segmentation_batch())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: the loss of a batch without valid pixels is nan, not 0.
        Usual cause: a mean over 0 valid pixels, which is 0/0 (divide by valid.sum().clamp_min(1)), or ...
    """
    usual, empty = evaluate(loss, batch), evaluate(loss, all_ignored(batch))
    cause = (
        "a mean over 0 valid pixels, which is 0/0 (divide by valid.sum().clamp_min(1)), or a term "
        "without the mask."
    )
    require(
        bool(empty.value == 0),
        f"the loss of a batch without valid pixels is {empty.value.item():.6g}, not 0",
        cause,
    )
    for name, gradient in empty.gradients.items():
        require(
            bool((gradient == 0).all()),
            f"a batch without valid pixels gives `{name}` a gradient of up to {largest(gradient):.3g}",
            cause,
        )
    cut = ", ".join(sorted(usual.connected - empty.connected))
    require(
        not cut,
        f"without valid pixels the loss is not connected to {cut} any more",
        "an early return; return the masked sum, which is 0 and has a graph.",
    )


def check_edge_cases_are_finite(loss: Loss, batch: SegmentationBatch) -> None:
    """Value and gradients are finite for each of `EDGE_CASES`; `all_ignored` has a check of its own.

    Raises:
        AssertionError: One is not.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.logsumexp(dim=1).mean()
        >>> check_edge_cases_are_finite(loss, segmentation_batch())
    """
    for case in EDGE_CASES:
        if case is not all_ignored:
            require_finite(
                evaluate(loss, case(batch)),
                f"for the case {case.__name__}",
                "division by the size of a class that is absent, a deviation of one pixel, log 0, or the "
                "root or norm of 0.",
            )


def check_extreme_inputs_are_finite(loss: Loss, batch: SegmentationBatch) -> None:
    """Value and gradients are finite for logits of ±1e4, and for features of 0 and of 1e4 times the usual.

    A network that diverges for some steps gives the first, a ReLU the second.

    Raises:
        AssertionError: One is not.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.logsumexp(dim=1).mean()
        >>> check_extreme_inputs_are_finite(loss, segmentation_batch())
    """
    signs, teacher_signs = batch.logits.sign(), batch.teacher_logits.sign()
    extremes = {
        "logits of ±1e4": batch._replace(logits=1e4 * signs, teacher_logits=1e4 * teacher_signs),
        "logits of ±1e4, the teacher's opposed": batch._replace(
            logits=1e4 * signs, teacher_logits=-1e4 * signs
        ),
        "features of 0": batch._replace(
            features=0 * batch.features, teacher_features=0 * batch.teacher_features
        ),
        "features 1e4 times as long": batch._replace(
            features=1e4 * batch.features, teacher_features=1e4 * batch.teacher_features
        ),
    }
    for name, extreme in extremes.items():
        require_finite(
            evaluate(loss, extreme),
            f"for {name}",
            "the log of a softmax that is 0 (log_softmax never is -inf here), exp without the maximum "
            "subtracted (logsumexp), or x / x.norm() (F.normalize adds an epsilon).",
        )


def check_autocast_changes_little(loss: Loss, batch: SegmentationBatch) -> None:
    """Under bfloat16 autocast the loss is float32, and near the one without.

    Both with float32 inputs and with bfloat16 inputs, as a network gives them there; near means within 1 %
    of the largest entry, which leaves room for a lone product in bfloat16, but not for one that is divided
    by a small temperature. The inputs' own rounding is not counted.

    Raises:
        AssertionError: It is not.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.float().square().mean()
        >>> check_autocast_changes_little(loss, segmentation_batch())
    """
    for dtype in (torch.float32, torch.bfloat16):
        inputs = cast(batch, dtype)
        got = evaluate(loss, inputs, autocast=True)
        exact = evaluate(loss, cast(inputs, torch.float32))
        name = str(dtype).removeprefix("torch.")
        cause = (
            "arithmetic in the inputs' dtype or a matrix product that autocast lowers; begin with "
            "logits.float(), and wrap products in torch.autocast(device_type, enabled=False)."
        )
        require(
            got.value.dtype == torch.float32,
            f"under autocast, {name} inputs give a loss of {got.value.dtype}, not torch.float32",
            cause,
        )
        require_same(got, exact, f"autocast is on, with {name} inputs", cause, tolerance=0.01)


def check_order_of_pixels_does_not_matter(loss: Loss, batch: SegmentationBatch) -> None:
    """One permutation of the pixels, in all maps, permutes the gradients and leaves the value.

    Leave the check out for losses of neighbourhoods (boundaries, smoothness) and for those that draw pixels.

    Raises:
        AssertionError: It does more.
        ValueError: There is one pixel only.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.square().mean()
        >>> check_order_of_pixels_does_not_matter(loss, segmentation_batch())
    """
    pixels = batch.labels.shape[-2:].numel()
    _need(pixels > 1, "several pixels")
    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
    order = order.to(batch.labels.device)

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(-2)[..., order].reshape(x.shape)

    require_same(
        evaluate(loss, batch.map(permuted)),
        evaluate(loss, batch).map(permuted),
        "the pixels are permuted",
        "maps that are flattened differently, such as (B, K, h, w) with view(-1, K) instead of "
        "movedim(1, -1).reshape(-1, K), or pixels that are drawn.",
    )


def check_order_of_images_does_not_matter(loss: Loss, batch: SegmentationBatch) -> None:
    """The images in reverse order give the gradients in reverse order, and the same value.

    Raises:
        AssertionError: They do not.
        ValueError: There is one image only.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.square().mean()
        >>> check_order_of_images_does_not_matter(loss, segmentation_batch())
    """
    _need(len(batch.labels) > 1, "several images")

    def reverse(x: Tensor) -> Tensor:
        return x.flip(0)

    require_same(
        evaluate(loss, batch.map(reverse)),
        evaluate(loss, batch).map(reverse),
        "the images are in reverse order",
        "maps that are flattened differently, or an index of one image used for all.",
    )


def check_equal_shares_average_to_the_whole(loss: Loss, batch: SegmentationBatch) -> None:
    """The mean over ranks, as DDP takes it, is what one process would compute for the whole batch.

    Each image is one rank's share, and all have the same labels. Only then can it be asked of a mean over
    valid pixels: a rank divides by its own number of valid pixels (or by its sum of class weights), so
    that with unequal numbers the pixels of a rank with few of them weigh more. No loss that sees one rank
    can help that; to be exact, divide by the mean number of valid pixels over all ranks.

    Leave the check out for losses that join pixels (Dice, Lovász, contrast within the batch, assignments
    over the batch): they differ by design.

    Raises:
        AssertionError: Values or gradients of the shares do not average to those of the whole.
        ValueError: There is one image only, or no valid pixel.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.square().mean()
        >>> check_equal_shares_average_to_the_whole(loss, segmentation_batch())
    """
    images = len(batch.labels)
    _need(images > 1 and bool(batch.valid.any()), "several images and valid pixels")
    fullest = int(batch.valid.flatten(1).sum(dim=1).argmax())
    whole = batch._replace(labels=batch.labels[fullest].expand_as(batch.labels))
    shares = [
        evaluate(loss, whole.map(lambda x, i=i: x[i : i + 1]))  # type: ignore[misc]
        for i in range(images)
    ]
    mean = {
        # Of a map each rank holds its own images, of the prototypes all of them.
        "logits": torch.cat([share.gradients["logits"] for share in shares]) / images,
        "features": torch.cat([share.gradients["features"] for share in shares]) / images,
        "prototypes": torch.stack([share.gradients["prototypes"] for share in shares]).mean(dim=0),
    }
    require_same(
        Outcome(torch.stack([share.value for share in shares]).mean(), mean, frozenset()),
        evaluate(loss, whole),
        f"{images} equal shares are averaged",
        "a sum where a mean belongs (the learning rate then depends on the batch), or a loss that joins "
        "pixels of several images.",
    )


def check_teacher_gets_no_gradient(loss: Loss, batch: SegmentationBatch) -> None:
    """The teacher is a constant, also where its outputs come with a graph.

    Raises:
        AssertionError: `teacher_logits` or `teacher_features` get a gradient.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> def loss(batch):
        ...     return (batch.logits - batch.teacher_logits.detach()).square().mean()
        >>> check_teacher_gets_no_gradient(loss, segmentation_batch())
    """
    _, gradients = differentiate(loss, batch, (*LEARNT, *TEACHER))
    for name in TEACHER:
        gradient = gradients[name]
        require(
            gradient is None or not gradient.any(),
            f"the teacher learns: a gradient of up to {largest(gradient):.3g} in `{name}`",
            "a missing detach() of the teacher's outputs.",
        )


def check_gradient_matches_finite_differences(loss: Loss, batch: SegmentationBatch) -> None:
    """The derivative along random directions is that of central differences.

    In float64 where the loss computes in it; otherwise with a longer step and 5 % of tolerance. Leave the
    check out where a part of the student is a constant on purpose (weights from its own detached
    confidence, assignments).

    Raises:
        AssertionError: It is another.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: batch.logits.logsumexp(dim=1).mean()
        >>> check_gradient_matches_finite_differences(loss, segmentation_batch())
    """
    try:
        outcome = evaluate(loss, cast(batch, torch.float64))
        batch = cast(batch, torch.float64)
    except RuntimeError:  # a module whose parameters are float32 does not take float64
        outcome = evaluate(loss, batch)
    generator = torch.Generator().manual_seed(0)
    for name in sorted(outcome.connected) * 3:
        at, gradient = getattr(batch, name), outcome.gradients[name]
        # A gradient without digits beyond float32 came through float32.
        coarse = torch.equal(gradient, gradient.float().to(gradient))
        lowest = torch.float32 if coarse else gradient.dtype
        resolution = max(torch.finfo(dtype).eps for dtype in (lowest, outcome.value.dtype))
        step = resolution ** (
            1 / 3
        )  # where the errors of rounding and of truncation are of one size
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64).to(at)
        above, below = (
            call(loss, copy(batch._replace(**{name: at + sign * step * direction})))
            for sign in (1, -1)
        )
        numeric = float(above.detach().double() - below.detach().double()) / (2 * step)
        exact = float((gradient * direction).sum())
        rounding = resolution * float(outcome.value.abs()) / step
        tolerance = 10 * (step * float(gradient.norm()) + rounding)
        require(
            abs(numeric - exact) <= tolerance,
            f"along a random direction of `{name}` the loss changes by {numeric:.6g}, its gradient says "
            f"{exact:.6g} (tolerance {tolerance:.2g})",
            "a backward of your own, a detach() or no_grad() in the middle, or a step function (argmax, "
            "round, comparison).",
        )


def check_nothing_waits_for_the_device(loss: Loss, batch: SegmentationBatch) -> None:
    """Neither the loss nor its gradient reads a value or makes a shape that depends on one.

    On a GPU each such place stops the queue of work, and `torch.compile` breaks the graph there. They are
    found without a GPU, by tensors that have no values; a copy to the CPU that nobody reads is not found.

    Raises:
        AssertionError: The loss cannot do without values.

    Example:
        >>> from cpsl.testing import segmentation_batch
        >>> loss = lambda batch: (batch.logits.mean(dim=1) * batch.valid).mean()
        >>> check_nothing_waits_for_the_device(loss, segmentation_batch())
    """
    call(loss, copy(batch))  # an error of another kind shows here as it is
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = batch.map(mode.from_tensor)
        fake = fake._replace(prototypes=mode.from_tensor(batch.prototypes))
        leaves = [getattr(fake, name).requires_grad_() for name in LEARNT]
        violation = ""
        try:
            torch.autograd.grad(loss(fake), leaves, allow_unused=True)
        except RuntimeError as error:
            violation = f"on tensors without values the loss fails {_place(error)}"
    require(
        not violation,
        violation,
        "item(), float(), numpy(), a Python branch or assert on a tensor, boolean indexing, nonzero() or "
        "unique(); use torch.where, masked_fill and sums under a mask.",
    )


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
"""All clauses; pytest names each by its function."""


def _need(holds: bool, what: str) -> None:
    """Refuses a batch on which a check would pass whatever the loss does."""
    if not holds:
        raise ValueError(f"the check needs a batch with {what}")


def _place(error: Exception) -> str:
    """Names an error inside torch and the line that led to it."""
    lines = traceback.extract_tb(error.__traceback__)
    torch_folder = str(Path(torch.__file__).parent)
    line = [line for line in lines if not line.filename.startswith(torch_folder)][-1]
    said = str(error).partition("\n")[0]
    return f"in line {line.lineno} of {Path(line.filename).name}, `{line.line}` ({said})"
