"""A teacher that is the moving average of a student."""

import copy
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def update_moving_average(
    averages: Sequence[Tensor], values: Sequence[Tensor], momentum: float = 0.999
) -> None:
    """Moves averages towards values, in place: a ← momentum · a + (1 - momentum) · v.

    Args:
        averages: Floating tensors of any shapes, changed in place.
        values: As many tensors of the same shapes; another floating dtype or device is converted.
        momentum: 0 copies the values, 1 changes nothing.

    Raises:
        ValueError: momentum lies outside 0...1, or the numbers or shapes of tensors differ.

    Example:
        >>> prototypes, ema_prototypes = torch.ones(19, 256), torch.zeros(19, 256)
        >>> update_moving_average([ema_prototypes], [prototypes], momentum=0.75)
        >>> ema_prototypes[0, 0]
        tensor(0.2500)
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in 0...1, got {momentum}")
    if len(averages) != len(values):
        raise ValueError(f"got {len(averages)} averages but {len(values)} values")
    for average, value in zip(averages, values, strict=True):
        if average.shape != value.shape:
            raise ValueError(
                f"an average and its values differ in shape: {tuple(average.shape)} and "
                f"{tuple(value.shape)}"
            )
    targets = [value.to(average) for average, value in zip(averages, values, strict=True)]
    torch._foreach_lerp_(list(averages), targets, 1 - momentum)


class ExponentialMovingAverage(nn.Module, Generic[M]):
    """Keeps the moving average of a module's parameters (Tarvainen and Valpola, 2017).

        teacher ← momentum · teacher + (1 - momentum) · student

    Floating buffers, such as the running statistics of BatchNorm, are averaged like parameters; others are
    copied. The average is in evaluation mode and has no gradients. Nothing waits for the device.

    Args:
        student: Module to start from; copied. What DistributedDataParallel wraps is taken out of it.
        mode: "training" keeps the average in training mode, with dropout and the statistics of each batch,
            as the authors' release leaves its teacher.

    Attributes:
        module: The average, to be called like the student.

    Raises:
        ValueError: There is no such mode.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = ExponentialMovingAverage(student)
        >>> before = teacher.module.weight.clone()
        >>> with torch.no_grad(): student.weight += 1
        >>> teacher.update(student, momentum=0.9)
        >>> (teacher.module.weight - before).round(decimals=3)
        tensor([[0.1000]])
    """

    module: M

    def __init__(
        self,
        student: M | DistributedDataParallel,
        mode: Literal["evaluation", "training"] = "evaluation",
    ) -> None:
        super().__init__()
        if mode not in ("evaluation", "training"):
            raise ValueError(f'mode must be "evaluation" or "training", got {mode!r}')
        self.mode = mode
        average: M = copy.deepcopy(_unwrap(student))
        self.module = average.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ExponentialMovingAverage[M]":
        """Stays in its mode, whatever is asked for."""
        return super().train(self.mode == "training")

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float = 0.999) -> None:
        """Moves the average towards the student.

        Args:
            student: The module that was copied, wrapped or not, after the optimiser's step.
            momentum: 0 copies the student, 1 changes nothing but the buffers that are not floating.

        Raises:
            ValueError: momentum lies outside 0...1, or the student has other entries than the average.
        """
        mine, theirs = _tensors(self.module), _tensors(_unwrap(student))
        for key in mine | theirs:
            if key not in mine or key not in theirs or mine[key].shape != theirs[key].shape:
                raise ValueError(f"student and average differ in their entry {key}")
        floating = [key for key, value in mine.items() if value.is_floating_point()]
        update_moving_average(
            [mine[key] for key in floating], [theirs[key] for key in floating], momentum
        )
        for key in mine.keys() - set(floating):
            mine[key].copy_(theirs[key])


def _unwrap(module: nn.Module) -> Any:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # Not the state dictionary: it names a shared tensor twice, which would then be averaged twice.
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
