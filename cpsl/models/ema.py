"""A teacher that is the moving average of a student."""

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """Keeps the moving average of a module's parameters (Tarvainen and Valpola, 2017).

        teacher ← momentum · teacher + (1 - momentum) · student

    Floating buffers, such as the running statistics of BatchNorm, are averaged like parameters; others are
    copied. The average is in evaluation mode and has no gradients. Nothing waits for the device.

    Args:
        student: Module to start from; copied.

    Attributes:
        module: The average, to be called like the student.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = ExponentialMovingAverage(student)
        >>> before = teacher.module.weight.clone()
        >>> with torch.no_grad(): student.weight += 1
        >>> teacher.update(student, momentum=0.9)
        >>> (teacher.module.weight - before).round(decimals=3)
        tensor([[0.1000]])
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ExponentialMovingAverage":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float = 0.999) -> None:
        """Moves the average towards the student.

        Args:
            student: The module that was copied, after the optimiser's step.
            momentum: 0 copies the student, 1 changes nothing.

        Raises:
            ValueError: momentum lies outside 0...1, or the student has other entries than the average.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0...1, got {momentum}")
        mine, theirs = self.module.state_dict(), student.state_dict()
        for key in mine.keys() | theirs.keys():
            if key not in mine or key not in theirs or mine[key].shape != theirs[key].shape:
                raise ValueError(f"student and average differ in their entry {key}")
        floating = [key for key, value in mine.items() if value.is_floating_point()]
        averages: list[Tensor] = [mine[key] for key in floating]
        torch._foreach_lerp_(
            averages, [theirs[key].to(mine[key]) for key in floating], 1 - momentum
        )
        for key in mine.keys() - set(floating):
            mine[key].copy_(theirs[key])
