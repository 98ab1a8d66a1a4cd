"""Value and gradients of a loss on a batch, and comparisons of them."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cpsl.testing.batches import SegmentationBatch

Loss = Callable[[SegmentationBatch], Tensor]
"""A loss under test: a function of a batch that returns a scalar."""

LEARNED = ("logits", "features", "prototypes")
TEACHER = ("teacher_logits", "teacher_features")
PREDICTED = ("logits", "features", *TEACHER)
GIVEN = "for the given batch"
FLOAT32 = torch.finfo(torch.float32).eps


class Outcome(NamedTuple):
    """Value and gradients of a loss on a batch.

    Attributes:
        value: The loss, detached.
        gradients: Gradient of each trained input; zeros if the loss does not depend on it.
        connected: Names of the inputs that are part of the graph.
    """

    value: Tensor
    gradients: dict[str, Tensor]
    connected: frozenset[str]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Outcome":
        """Applies a function to the gradients of the maps."""
        maps = {name: function(self.gradients[name]) for name in ("logits", "features")}
        return self._replace(gradients={**self.gradients, **maps})


class Violation(Exception):  # noqa: N818
    """A violated requirement; checks that apply to the loss raise it as an AssertionError."""


def evaluate(
    loss: Loss, batch: SegmentationBatch, autocast: bool = False, seed: int = 0, where: str = GIVEN
) -> Outcome:
    """Computes a loss and its gradients, optionally under bfloat16 autocast."""
    value, found = differentiate(loss, batch, LEARNED, autocast, seed, where)
    gradients = {
        name: torch.zeros_like(getattr(batch, name)) if gradient is None else gradient
        for name, gradient in found.items()
    }
    connected = frozenset(name for name, gradient in found.items() if gradient is not None)
    return Outcome(value.detach(), gradients, connected)


def differentiate(
    loss: Loss,
    batch: SegmentationBatch,
    names: Iterable[str],
    autocast: bool = False,
    seed: int = 0,
    where: str = GIVEN,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Computes a loss and its gradients for some inputs; None for inputs that are not part of the graph."""
    batch = copy(batch)
    leaves = {name: getattr(batch, name).requires_grad_() for name in names}
    # Cloned, because in-place operations fail on leaves but not on outputs of networks.
    value = call(
        loss, batch._replace(**{name: x.clone() for name, x in leaves.items()}), autocast, seed, where
    )
    gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if value.requires_grad:
        with noted(where):
            gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    cause = (
        "detach(), no_grad(), argmax, or a constant that is returned if no pixel is valid; return the "
        "masked sum, which is 0 and has a graph."
    )
    connected = any(gradient is not None for gradient in gradients)
    require(connected, "the loss has no graph to logits, features or prototypes", cause)
    return value, dict(zip(leaves, gradients, strict=True))


def call(
    loss: Loss, batch: SegmentationBatch, autocast: bool = False, seed: int = 0, where: str = GIVEN
) -> Tensor:
    """Computes a loss with the same random numbers of torch, NumPy and Python in each call."""
    device = batch.logits.device
    with _seeded(seed, device), torch.autocast(device.type, torch.bfloat16, enabled=autocast), noted(where):
        value = loss(batch)
    scalar = isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()
    got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    cause = 'reduction="none", a mean over some of the axes, or item().'
    require(scalar, f"the loss is not a scalar tensor of a floating dtype but {got}", cause)
    return value


@contextmanager
def noted(where: str) -> Iterator[None]:
    """Adds a note to an exception of the loss that names the inputs."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The loss raised this {where}.")
        raise


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global random states, and restores them at the end."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def cast(batch: SegmentationBatch, dtype: torch.dtype) -> SegmentationBatch:
    """Returns the batch in another floating dtype."""
    return batch._replace(**{name: getattr(batch, name).to(dtype) for name in (*LEARNED, *TEACHER)})


def copy(batch: SegmentationBatch) -> SegmentationBatch:
    """Returns a detached copy of the batch."""
    batch = batch.map(lambda x: x.detach().clone())
    return batch._replace(prototypes=batch.prototypes.detach().clone())


def require(holds: bool, violation: str, cause: str) -> None:
    """Raises a Violation with its usual cause unless a condition holds."""
    __tracebackhide__ = True  # pytest then shows the check
    if not holds:
        raise Violation(f"{violation}.\nUsual cause: {cause}")


def require_finite(outcome: Outcome, where: str, cause: str) -> None:
    """Raises a Violation unless value and gradients are finite."""
    __tracebackhide__ = True
    value = outcome.value
    require(bool(value.isfinite()), f"the loss is {value.item()} {where}", cause)
    for name, gradient in outcome.gradients.items():
        broken = int((~gradient.isfinite()).sum())
        count = f"{broken} of {gradient.numel()}"
        require(not broken, f"{count} gradients of `{name}` are NaN or infinite {where}", cause)


def require_same(got: Outcome, wanted: Outcome, when: str, cause: str, tolerance: float) -> None:
    """Raises a Violation unless outcomes before and after a change agree, relative to the largest entry."""
    __tracebackhide__ = True
    pairs = [("the loss", got.value, wanted.value)]
    for name, gradient in wanted.gradients.items():
        pairs.append((f"the gradient of `{name}`", got.gradients[name], gradient))
    for name, one, other in pairs:
        allowed = tolerance * largest(other) + FLOAT32
        difference = largest(one.double() - other.double())
        values = f" from {other.item():.6g} to {one.item():.6g}" if other.ndim == 0 else ""
        violation = f"{name} changes{values} when {when}: by {difference:.3g}, allowed {allowed:.2g}"
        require(difference <= allowed, violation, cause)


def resolution_of(loss: Loss, batch: SegmentationBatch, where: str = GIVEN) -> float:
    """Returns the resolution of the coarsest floating dtype in which loss and gradients are computed."""
    coarsest = _CoarsestDtype()
    with coarsest:
        evaluate(loss, batch, where=where)
    return coarsest.resolution


def tolerance_of(loss: Loss, batch: SegmentationBatch) -> float:
    """Returns the allowed difference of equal results, relative to the largest entry.

    The square root of the resolution, at least of float32: rounding errors of sums grow with their length.
    """
    return math.sqrt(max(FLOAT32, resolution_of(loss, batch)))


class _CoarsestDtype(TorchDispatchMode):
    """Records the resolution of the coarsest floating dtype of all results, backward included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.resolution: float = torch.finfo(torch.float64).eps

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.resolution = max(self.resolution, torch.finfo(x.dtype).eps)
        return result


def largest(x: Tensor | None) -> float:
    """Returns the largest absolute value, 0 for None, and NaN if there is a NaN."""
    return 0.0 if x is None else float(x.abs().max())
