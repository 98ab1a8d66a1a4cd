"""Comparison of gradients with finite differences, in the precision of the loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpsl.testing.batches import SegmentationBatch
from cpsl.testing.outcome import (
    LEARNED,
    TEACHER,
    Loss,
    Violation,
    call,
    cast,
    copy,
    evaluate,
    require,
    resolution_of,
)

STEPS = tuple(0.5 * 4.0**-i for i in range(10))  # 0.5 to 2e-6, in units of the input's root mean square
TOLERANCE = 0.02
SAFETY = 5
POINTS = 3
WHERE = "near the given batch, for finite differences"


def require_true_gradients(loss: Loss, batch: SegmentationBatch, cause: str) -> None:
    """Requires that derivatives along the gradient and random directions match central differences.

    The comparison uses float64 if the loss accepts it. A violation is a deviation above 2 % of the gradient
    plus 5 times the estimated error at all of three nearby points; at a single point, a kink can cause it.
    """
    __tracebackhide__ = True  # pytest then shows the check
    batch = _widest(loss, batch)
    generator = torch.Generator().manual_seed(0)
    resolution = resolution_of(loss, batch, WHERE)
    for name in sorted(evaluate(loss, batch, where=WHERE).connected):
        point = batch
        for _ in range(POINTS):
            violation = _violation(loss, point, name, resolution, generator)
            if not violation:
                break
            point = _moved(batch, generator)
        require(not violation, violation, cause)


def _violation(
    loss: Loss, batch: SegmentationBatch, name: str, resolution: float, generator: torch.Generator
) -> str:
    """Compares derivatives with respect to one input, and describes the first that deviates."""
    outcome = evaluate(loss, batch, where=WHERE)
    at: Tensor = getattr(batch, name)
    gradient = outcome.gradients[name].double()
    scale = _size(at) or 1.0

    def value(shift: Tensor) -> float:
        moved = copy(batch)._replace(**{name: (at.double() + shift).to(at.dtype)})  # type: ignore[arg-type]
        return float(call(loss, moved, where=WHERE).detach())

    center = float(outcome.value)
    # The error of a term is at most half the resolution, and errors partly cancel in the sum.
    noise = resolution * abs(center) / 4 + abs(value(torch.zeros_like(gradient)) - center)
    directions = {
        "the gradient": gradient,
        **{f"random direction {i}": _normal(at, generator) for i in (1, 2)},
    }
    for which, direction in directions.items():
        if not _size(direction):
            continue  # a gradient of 0
        unit = direction * (scale / _size(direction))
        numeric, error = _central_difference(value, unit, resolution, noise)
        exact = float((gradient * unit).sum())
        tolerance = TOLERANCE * max(abs(exact), scale * float(gradient.norm())) + SAFETY * error
        if not abs(numeric - exact) <= tolerance:
            return (
                f"along {which} of `{name}` the loss changes by {numeric:.6g}, the gradient predicts "
                f"{exact:.6g} (tolerance {tolerance:.2g})"
            )
    return ""


def _central_difference(
    function: Callable[[Tensor], float], direction: Tensor, resolution: float, noise: float
) -> tuple[float, float]:
    """Estimates the derivative of a function along a direction, and the error of the estimate.

    The error of a step is the difference from the next smaller step (truncation and kinks) plus the rounding
    error, noise / step. The step with the smallest error is used. Smaller steps than the precision resolves
    are excluded: all their differences would be 0.
    """
    steps = [step for step in STEPS if step >= resolution**0.5 / 4]
    numeric = [(function(step * direction) - function(-step * direction)) / (2 * step) for step in steps]
    pairs = zip(numeric, numeric[1:], steps, strict=False)
    errors = [abs(one - finer) + noise / step for one, finer, step in pairs]
    error = min(errors)
    return numeric[errors.index(error)], error


def _widest(loss: Loss, batch: SegmentationBatch) -> SegmentationBatch:
    """Returns the batch in the widest dtype that the loss accepts; modules accept their parameters' dtype."""
    for dtype in (torch.float64, torch.float32):
        try:
            evaluate(loss, cast(batch, dtype), where=WHERE)
            return cast(batch, dtype)
        except Violation:
            raise
        except Exception:  # of any type: losses reject dtypes in different ways
            continue
    return batch


def _moved(batch: SegmentationBatch, generator: torch.Generator) -> SegmentationBatch:
    """Adds normal noise of 5 % of the root mean square to all inputs."""

    def moved(x: Tensor) -> Tensor:
        return (x + 0.05 * _size(x) * _normal(x, generator)).to(x.dtype)

    inputs: dict[str, Any] = {name: moved(getattr(batch, name)) for name in (*LEARNED, *TEACHER)}
    return batch._replace(**inputs)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _size(x: Tensor) -> float:
    """Returns the root mean square."""
    return float(x.double().square().mean().sqrt())
