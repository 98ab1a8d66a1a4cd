"""The optimizers of a method: learning rates, mixed precision, accumulation, skipped steps."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler, PolynomialLR

from cpsl._internal.distributed import all_reduce_max
from cpsl.training.finite import all_finite

Precision = Literal["float32", "bfloat16", "float16"]
"""Precision of the networks: float32, or mixed precision with one of the half precisions."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Returns the context in which networks run: float32, or mixed precision."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


class Optimization:
    """Optimizers whose learning rates decay polynomially to zero, and which skip non-finite steps.

    Gradients of several backward passes add up until `step`. A step with a non-finite loss or gradient on any
    rank changes nothing: no parameter, no state of an optimizer, no statistic of a BatchNorm. The device
    decides that, without synchronizing. Only the learning rates continue: they follow the iterations.

    In float16 the gradients are scaled, and `torch.amp.GradScaler` halves the scale when they overflow.

    Args:
        optimizers: One or several, with their base learning rates; on a CUDA device they must be fused.
        iterations: Number of steps.
        power: lr = base · (1 - step / iterations)^power.
        warmup: Number of first steps in which the learning rates rise linearly to that schedule.
        precision: Precision of the forward passes.
        accumulation: Number of micro-batches whose gradients are averaged in one step.
        module: When a step is skipped, the running statistics of its normalization layers in training mode
            are restored.

    Attributes:
        overflowed: Scalar bool on the device, whether the last step was skipped because scaled float16
            gradients overflowed, while all losses are finite and the scale can still shrink to 1. None in
            other precisions.

    Raises:
        ValueError: An optimizer on a CUDA device is not fused, or a fused SGD has dampening.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimization = Optimization(torch.optim.SGD(layer.parameters(), lr=0.1), iterations=100)
        >>> optimization.backward(layer(torch.tensor([[1.0, torch.nan]])).sum())
        >>> optimization.step()
        tensor(False)
    """

    def __init__(
        self,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        iterations: int,
        *,
        power: float = 0.9,
        warmup: int = 0,
        precision: Precision = "float32",
        accumulation: int = 1,
        module: nn.Module | None = None,
    ) -> None:
        if isinstance(optimizers, torch.optim.Optimizer):
            optimizers = [optimizers]
        self.optimizers = list(optimizers)
        self.accumulation = accumulation
        self.overflowed: Tensor | None = None
        self._schedules: list[LRScheduler] = [
            PolynomialLR(o, max(iterations, 1), power) for o in self.optimizers
        ]
        if warmup:
            self._schedules += [LinearLR(o, 1 / (warmup + 1), total_iters=warmup) for o in self.optimizers]
        self._device = self._parameters()[0].device
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "float16")
        for optimizer in self.optimizers:
            _prepare_to_skip(optimizer)
        modules = [] if module is None else list(module.modules())
        self._norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._losses: list[Tensor] = []
        self._keep_statistics()

    @property
    def learning_rate(self) -> Tensor:
        """The highest learning rate of the first optimizer, a scalar on the device."""
        rates = [group["lr"] for group in self.optimizers[0].param_groups]
        return torch.full((), max(rates), device=self._device)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss of one micro-batch."""
        self._losses.append(loss.detach())
        # Autocast is for the forward passes: the gradients take their precision from these.
        with torch.autocast(loss.device.type, enabled=False):
            self._scaler.scale(loss / self.accumulation).backward()

    def step(self) -> Tensor:
        """Updates the parameters, clears the gradients, and returns whether the step was applied.

        The result is a scalar bool on the device, equal on all ranks.
        """
        applied = self._check()
        for optimizer in self.optimizers:
            if _is_fused(optimizer):
                # A fused kernel reads this flag on the device and changes nothing where it is set.
                optimizer.grad_scale, optimizer.found_inf = None, (~applied).float()  # type: ignore[attr-defined]
                optimizer.step()
                del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
            elif applied:  # a CPU has the value at once
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._scaler.is_enabled():
            self._scaler.update()
        for norm, before in zip(self._norms, self._before, strict=True):
            # Others are not changed by a forward pass, but perhaps by a moving average since the last step.
            if norm.training:
                for statistic, value in zip(norm.buffers(), before, strict=True):
                    torch.where(applied, statistic, value, out=statistic)
        self._keep_statistics()
        self._losses = []
        with warnings.catch_warnings():
            # After a skipped first step, PyTorch suspects a wrong order of calls.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for schedule in self._schedules:
                schedule.step()
        return applied

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of optimizers, learning rates and scaler."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self._schedules],
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the result of `state_dict`; call it after the modules' own state is restored."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
            _prepare_to_skip(optimizer)
        for schedule, state in zip(self._schedules, state_dict["schedules"], strict=True):
            schedule.load_state_dict(state)
        self._scaler.load_state_dict(state_dict["scaler"])
        self._keep_statistics()

    def _parameters(self) -> list[Tensor]:
        return [p for o in self.optimizers for group in o.param_groups for p in group["params"]]

    @torch.no_grad()
    def _check(self) -> Tensor:
        """Returns whether losses and gradients are finite on all ranks, so that all skip together."""
        if self._scaler.is_enabled():
            for optimizer in self.optimizers:
                self._scaler.unscale_(optimizer)
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        finite = [all_finite(tensors).to(self._device) for tensors in (self._losses, gradients)]
        bad = all_reduce_max((~torch.stack(finite)).to(torch.uint8)).bool()
        bad_loss, bad_gradient = bad.unbind()
        if self._scaler.is_enabled():
            scale: Tensor = self._scaler.scale(torch.ones((), device=self._device))
            self.overflowed = bad_gradient & ~bad_loss & (scale > 1)
        return ~(bad_loss | bad_gradient)

    @torch.no_grad()
    def _keep_statistics(self) -> None:
        self._before = [[value.clone() for value in norm.buffers()] for norm in self._norms]


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)


def _prepare_to_skip(optimizer: torch.optim.Optimizer) -> None:
    """Checks that an optimizer can skip a step on the device, its first one included."""
    if not _is_fused(optimizer):
        if any(parameter.is_cuda for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError(
                f"{type(optimizer).__name__} on a CUDA device must be fused, so that it can skip a step "
                "without synchronizing: pass fused=True"
            )
        return
    if not isinstance(optimizer, torch.optim.SGD):
        return
    # SGD copies its first gradient, even if the step is skipped, unless it has a momentum buffer. With a
    # buffer of zeros and no dampening its first step is the same.
    for group in optimizer.param_groups:
        if group["dampening"]:
            raise ValueError(f"fused SGD must have dampening 0, got {group['dampening']}")
        if group["momentum"]:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
