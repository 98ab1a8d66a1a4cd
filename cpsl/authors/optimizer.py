"""The authors' optimizer: SGD with repeated steps."""

from typing import Any

import torch


class RepeatedSGD(torch.optim.SGD):
    """SGD with several momentum steps per iteration for the same gradient.

        v ← μ v + g + λ p,   p ← p - η v,   repeated group["steps"] times (default 1)

    The authors' code passes each backbone parameter once for every module that contains it, and PyTorch
    updates it as many times (with a warning). This optimizer does the same explicitly. While gradients
    change slowly, r steps per iteration act like r times the learning rate and a momentum of μ^r.

    Args:
        params: As in `torch.optim.SGD`, with an optional entry "steps" in each group.
        lr: Learning rate η.
        momentum: μ.
        weight_decay: λ.
        fused: Whether one kernel updates all parameters, as in `torch.optim.SGD`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = RepeatedSGD([{"params": [weight], "steps": 3}], lr=0.1, momentum=0.9)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> weight  # 0.1 · (1 + 1.9 + 2.71)
        Parameter containing:
        tensor([-0.5610], requires_grad=True)
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, fused: bool = False
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay, fused=fused or None)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Performs all steps of one iteration."""
        groups, loss = self.param_groups, None
        try:
            for done in range(max(group.get("steps", 1) for group in groups)):
                self.param_groups = [g for g in groups if g.get("steps", 1) > done]
                loss = super().step(closure if done == 0 else None)
        finally:
            self.param_groups = groups
        return loss
