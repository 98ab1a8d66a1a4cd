"""Optimiser, schedule and precision of a stage."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import PolynomialLR

Precision = Literal["float32", "bfloat16", "float16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Returns the context in which networks run: float32, or mixed precision."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


class Optimization:
    """An optimiser that decays its learning rates polynomially to zero.

    Gradients of several backward passes add up until `step`. In float16 they are scaled, and a step with
    an overflow is skipped.

    Args:
        optimizer: With the base learning rates.
        iterations: Steps in all.
        power: lr = base · (1 - step / iterations)^power.
        precision: Of the forward passes.
        accumulate: Micro-batches whose gradients are averaged in one step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        iterations: int,
        *,
        power: float = 0.9,
        precision: Precision = "float32",
        accumulate: int = 1,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = PolynomialLR(optimizer, max(iterations, 1), power)
        self.scaler = torch.amp.GradScaler(enabled=precision == "float16")
        self.accumulate = accumulate

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss of one micro-batch."""
        # The gradients take the precision of their forward pass; autocast is for that alone.
        with torch.autocast(loss.device.type, enabled=False):
            self.scaler.scale(loss / self.accumulate).backward()

    def step(self) -> None:
        """Moves the parameters and forgets the gradients."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of optimiser, schedule and scaler."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.schedule.load_state_dict(state_dict["schedule"])
        self.scaler.load_state_dict(state_dict["scaler"])


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Returns the parameters that are trained, each of them once."""
    return [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
