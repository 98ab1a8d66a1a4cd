"""Exponential moving averages of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_moving_average(
    averages: Sequence[Tensor],
    values: Sequence[Tensor],
    momentum: float = 0.999,
    applied: Tensor | None = None,
) -> None:
    """Updates averages in place: a ← momentum · a + (1 - momentum) · v.

    Values are converted to dtype and device of their averages. If `applied`, a scalar bool on the device, is
    False, nothing changes. Averages in half precision are refused: at a momentum of 0.999 their steps would
    be rounded to zero. `ExponentialMovingAverage` keeps the average of such a network in float32.

    Raises:
        ValueError: momentum is outside 0...1, or the numbers or shapes of the tensors differ.
        TypeError: An average is neither float32 nor float64.

    Example:
        >>> prototypes, ema_prototypes = torch.ones(19, 256), torch.zeros(19, 256)
        >>> update_moving_average([ema_prototypes], [prototypes], momentum=0.75)
        >>> ema_prototypes[0, 0]
        tensor(0.2500)
    """
    check_momentum(momentum)
    if len(averages) != len(values):
        raise ValueError(f"got {len(averages)} averages but {len(values)} values")
    for average, value in zip(averages, values, strict=True):
        if average.shape != value.shape:
            raise ValueError(
                f"an average and its values differ in shape: {tuple(average.shape)} and {tuple(value.shape)}"
            )
        if average.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"averages must be float32 or float64, got {average.dtype}: keep them in float32, because "
                "small steps are lost in half precision"
            )
    targets = [value.to(average) for average, value in zip(averages, values, strict=True)]
    if not targets:
        return
    if applied is None:
        torch._foreach_lerp_(list(averages), targets, 1 - momentum)
        return
    # Old values are selected, not averaged with themselves: lerp(a, a, w) loses the sign of -0.0.
    updated = torch._foreach_lerp(list(averages), targets, 1 - momentum)
    for average, new in zip(averages, updated, strict=True):
        average.copy_(torch.where(applied, new, average))


def check_momentum(momentum: float) -> None:
    """Raises ValueError unless a momentum is in 0...1."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in 0...1, got {momentum}")
