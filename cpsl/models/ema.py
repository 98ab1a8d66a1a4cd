"""A teacher network that is the moving average of a student."""

import copy
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cpsl._internal.averaging import check_momentum, update_moving_average
from cpsl._internal.distributed import unwrap

__all__ = ["ExponentialMovingAverage", "update_moving_average"]

M = TypeVar("M", bound=nn.Module)


class ExponentialMovingAverage(nn.Module, Generic[M]):
    """Averages a module's parameters over training (Tarvainen and Valpola, 2017).

        teacher ← momentum · teacher + (1 - momentum) · student

    Floating buffers, such as the running statistics of BatchNorm, are averaged like parameters; others are
    copied. The average is in evaluation mode, has no gradients, and is called like the student.

    Args:
        student: Module to start from; copied, without its DistributedDataParallel wrapper.
        mode: "evaluation", or "training" to keep the average in training mode, with dropout and batch
            statistics, as in the authors' code.
        momentum: 0...1; 0 copies the student, 1 keeps the average.

    Attributes:
        module: The average.

    Raises:
        ValueError: momentum is outside 0...1, or the mode is unknown.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = ExponentialMovingAverage(student, momentum=0.9)
        >>> before = teacher.module.weight.clone()
        >>> with torch.no_grad(): student.weight += 1
        >>> teacher.update(student)
        >>> (teacher.module.weight - before).round(decimals=3)
        tensor([[0.1000]])
        >>> teacher(torch.ones(4, 1)).shape
        torch.Size([4, 1])
    """

    module: M
    __call__: M  # typed like the student

    def __init__(
        self,
        student: M | DistributedDataParallel,
        mode: Literal["evaluation", "training"] = "evaluation",
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        if mode not in ("evaluation", "training"):
            raise ValueError(f'mode must be "evaluation" or "training", got {mode!r}')
        check_momentum(momentum)
        self.mode = mode
        self.momentum = momentum
        self._before: dict[str, Tensor] = {}
        average: M = copy.deepcopy(unwrap(student))
        self.module = average.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ExponentialMovingAverage[M]":
        """Keeps the mode of the constructor."""
        return super().train(self.mode == "training")

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Calls the average like the student."""
        if self.mode == "training" and not self._before:
            # Its passes change its statistics, which `update` restores if the step was not applied.
            self._before = {key: value.clone() for key, value in self.module.named_buffers()}
        return self.module(*inputs, **options)

    @torch.no_grad()
    def update(
        self, student: nn.Module, momentum: float | None = None, applied: Tensor | None = None
    ) -> None:
        """Moves the average towards the student; call it once per step, after the optimizer's.

        Args:
            student: The module of the constructor, wrapped or not.
            momentum: 0...1; None is that of the constructor.
            applied: Scalar bool on the device, whether the optimizer applied its step; False changes nothing.

        Raises:
            ValueError: momentum is outside 0...1, or student and average have different entries.
        """
        averages, values = _tensors(self.module), _tensors(unwrap(student))
        for key in averages | values:
            both = key in averages and key in values
            if not both or averages[key].shape != values[key].shape:
                raise ValueError(f"student and average differ in their entry {key}")
        if applied is not None:
            for key, value in self._before.items():
                averages[key].copy_(torch.where(applied, averages[key], value))
        self._before = {}
        floating = [key for key, value in averages.items() if value.is_floating_point()]
        momentum = self.momentum if momentum is None else momentum
        pairs = [averages[key] for key in floating], [values[key] for key in floating]
        update_moving_average(*pairs, momentum, applied)
        for key in averages.keys() - set(floating):
            value = values[key].to(averages[key])
            if applied is not None:
                value = torch.where(applied, value, averages[key])
            averages[key].copy_(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # Not the state dictionary: it lists shared tensors twice, which would then be averaged twice.
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
