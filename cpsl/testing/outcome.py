"""A loss's value and gradients on a batch, and how two of them, or one and the expected, are compared."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl.testing.batches import SegmentationBatch

Loss = Callable[[SegmentationBatch], Tensor]
"""A loss under test: a function of a batch that returns a scalar."""

LEARNT = ("logits", "features", "prototypes")
TEACHER = ("teacher_logits", "teacher_features")


class Outcome(NamedTuple):
    """What a loss gives on a batch.

    Attributes:
        value: The loss, without its graph.
        gradients: Of each input that learns; zeros where the loss does not depend on it.
        connected: Names of the inputs that the graph reaches.
    """

    value: Tensor
    gradients: dict[str, Tensor]
    connected: frozenset[str]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Outcome":
        """Returns the outcome with a function applied to the gradients of the maps."""
        maps = {name: function(self.gradients[name]) for name in ("logits", "features")}
        return self._replace(gradients={**self.gradients, **maps})


def evaluate(loss: Loss, batch: SegmentationBatch, autocast: bool = False) -> Outcome:
    """Computes a loss, with bfloat16 autocast if wanted, and its gradients."""
    value, found = differentiate(loss, batch, LEARNT, autocast)
    gradients = {
        name: torch.zeros_like(getattr(batch, name)) if gradient is None else gradient
        for name, gradient in found.items()
    }
    connected = frozenset(name for name, gradient in found.items() if gradient is not None)
    return Outcome(value.detach(), gradients, connected)


def differentiate(
    loss: Loss, batch: SegmentationBatch, names: Iterable[str], autocast: bool = False
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Computes a loss and its gradients for some inputs; None where the graph does not reach one."""
    batch = copy(batch)
    leaves = {name: getattr(batch, name).requires_grad_() for name in names}
    # The output of a network is no leaf either: an operation in place fails on leaves only.
    value = call(loss, batch._replace(**{name: x.clone() for name, x in leaves.items()}), autocast)
    gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    require(
        any(gradient is not None for gradient in gradients),
        "the loss has no graph to logits, features or prototypes",
        "detach(), no_grad(), argmax, or a constant that is returned where no pixel is valid; return the "
        "masked sum, which is 0 and has a graph.",
    )
    return value, dict(zip(leaves, gradients, strict=True))


def call(loss: Loss, batch: SegmentationBatch, autocast: bool = False) -> Tensor:
    """Computes a loss, with the same random numbers each time."""
    device = batch.logits.device
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=autocast),
    ):
        torch.manual_seed(0)
        value = loss(batch)
    scalar = isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()
    got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    require(
        scalar,
        f"the loss is no scalar tensor of a floating dtype but {got}",
        'reduction="none", a mean over some of the axes, or item().',
    )
    return value


def cast(batch: SegmentationBatch, dtype: torch.dtype) -> SegmentationBatch:
    """Returns the batch in another floating dtype."""
    names = (*LEARNT, *TEACHER)
    return batch._replace(**{name: getattr(batch, name).to(dtype) for name in names})


def copy(batch: SegmentationBatch) -> SegmentationBatch:
    """Returns the batch in memory of its own."""
    batch = batch.map(lambda x: x.detach().clone())
    return batch._replace(prototypes=batch.prototypes.detach().clone())


def require(holds: bool, violation: str, cause: str) -> None:
    """Raises an AssertionError that says what is violated and why, unless a condition holds."""
    __tracebackhide__ = True  # pytest shows the check, not this line
    if not holds:
        raise AssertionError(f"{violation}.\nUsual cause: {cause}")


def require_finite(outcome: Outcome, where: str, cause: str) -> None:
    """Raises an AssertionError unless a value and all gradients are finite."""
    __tracebackhide__ = True  # pytest shows the check, not this line
    value = outcome.value
    require(bool(value.isfinite()), f"the loss is {value.item()} {where}", cause)
    for name, gradient in outcome.gradients.items():
        broken = int((~gradient.isfinite()).sum())
        require(
            broken == 0,
            f"{broken} of {gradient.numel()} gradients of `{name}` are NaN or infinite {where}",
            cause,
        )


def require_same(
    got: Outcome, wanted: Outcome, when: str, cause: str, tolerance: float | None = None
) -> None:
    """Raises an AssertionError unless two outcomes are near each other.

    Args:
        got: One.
        wanted: The other.
        when: What was done to get the one.
        cause: What usually makes them differ.
        tolerance: Difference allowed, relative to the largest entry; the root of the resolution if None.
    """
    __tracebackhide__ = True
    pairs = [("the loss", got.value, wanted.value)]
    pairs += [
        (f"the gradient of `{name}`", got.gradients[name], gradient)
        for name, gradient in wanted.gradients.items()
    ]
    for name, one, other in pairs:
        resolution = torch.finfo(other.dtype).eps
        allowed = (tolerance or resolution**0.5) * largest(other) + resolution
        difference = largest(one.double() - other.double())
        values = f" from {other.item():.6g} to {one.item():.6g}" if other.ndim == 0 else ""
        require(
            difference <= allowed,
            f"{name} changes{values} when {when}: by {difference:.3g}, allowed {allowed:.2g}",
            cause,
        )


def largest(x: Tensor | None) -> float:
    """Returns the largest absolute value; NaN if there is one."""
    return 0.0 if x is None else float(x.abs().max())
