"""Optimiser, schedule and precision of a stage."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import PolynomialLR

from cpsl.engine.finite import all_finite

Precision = Literal["float32", "bfloat16", "float16"]
"""What networks compute in: single precision, or mixed with one of the half precisions."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Returns the context in which networks run: float32, or mixed precision."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


class RepeatedSGD(torch.optim.SGD):
    """SGD that takes several momentum steps an iteration with one gradient.

        v ← μ v + g + λ p,   p ← p - η v,   as often as the group's entry "steps" says (once without it)

    The authors' release lists a parameter of the backbone once for each module that encloses it. Torch
    then warns, and steps such a parameter once for each time that it is listed. This does the same in the
    open, from a number. With gradients that stay alike for a while, r steps an iteration are about r times
    the learning rate and a momentum of μ^r.

    Args:
        params: As in `torch.optim.SGD`, with an optional entry "steps" in each group.
        lr: Learning rate η.
        momentum: μ.
        weight_decay: λ.
        fused: Whether the parameters are moved by one kernel, as in `torch.optim.SGD`; not with several
            steps, for which a gradient that is scaled for float16 would be unscaled several times.

    Raises:
        ValueError: `fused` with several steps.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> optimizer = RepeatedSGD([{"params": [weight], "steps": 3}], lr=0.1, momentum=0.9)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> weight  # 0.1 · (1 + 1.9 + 2.71)
        Parameter containing:
        tensor([-0.5610], requires_grad=True)
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        fused: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay, fused=fused or None)
        if fused and any(group.get("steps", 1) > 1 for group in self.param_groups):
            raise ValueError("a fused optimiser takes one step an iteration")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes the steps of one iteration."""
        groups, loss = self.param_groups, None
        try:
            for done in range(max(group.get("steps", 1) for group in groups)):
                self.param_groups = [g for g in groups if g.get("steps", 1) > done]
                loss = super().step(closure if done == 0 else None)
        finally:
            self.param_groups = groups
        return loss


class Optimization:
    """An optimiser that decays its learning rates polynomially to zero.

    Gradients of several backward passes add up until `step`. A gradient that is not finite moves nothing:
    the step is taken with a gradient of zero, and what the forward passes told BatchNorm is forgotten, so
    that a bad batch leaves no trace; the device decides that, nothing waits. In float16 gradients are scaled,
    and a step with an overflow is skipped by the scaler.

    Args:
        optimizer: With the base learning rates.
        iterations: Steps in all.
        power: lr = base · (1 - step / iterations)^power.
        precision: Of the forward passes.
        accumulate: Micro-batches whose gradients are averaged in one step.
        module: Whose BatchNorm statistics are guarded; none if left out.

    Attributes:
        finite: Scalar bool tensor, whether all gradients of the last step were finite. None before the first
            step, and in float16, where overflows belong to the scaler's search for a scale.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        iterations: int,
        *,
        power: float = 0.9,
        precision: Precision = "float32",
        accumulate: int = 1,
        module: nn.Module | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = PolynomialLR(optimizer, max(iterations, 1), power)
        self.scaler = torch.amp.GradScaler(enabled=precision == "float16")
        self.accumulate = accumulate
        self.finite: Tensor | None = None
        modules = [] if module is None else list(module.modules())
        self._norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._remember_statistics()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss of one micro-batch."""
        # The gradients take the precision of their forward pass; autocast is for that alone.
        with torch.autocast(loss.device.type, enabled=False):
            self.scaler.scale(loss / self.accumulate).backward()

    def step(self) -> None:
        """Moves the parameters and forgets the gradients."""
        if not self.scaler.is_enabled():
            self._leave_out_what_is_not_finite()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    @torch.no_grad()
    def _leave_out_what_is_not_finite(self) -> None:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        self.finite = finite = all_finite(gradients)
        for gradient in gradients:
            gradient.masked_fill_(~finite, 0)
        for statistic, before in self._statistics:
            statistic.copy_(torch.where(finite, statistic, before))
            before.copy_(statistic)

    def _remember_statistics(self) -> None:
        parts = ((norm.running_mean, norm.running_var) for norm in self._norms)
        self._statistics = [(s, s.clone()) for part in parts for s in part if s is not None]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of optimiser, schedule and scaler."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; after the module's own state, whose statistics it guards."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.schedule.load_state_dict(state_dict["schedule"])
        self.scaler.load_state_dict(state_dict["scaler"])
        self._remember_statistics()


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Returns the parameters that are trained, each of them once."""
    return [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
