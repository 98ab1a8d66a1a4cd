"""Non-finite numbers: detected without synchronizing with the device, and traced to a module."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LAG = 2
"""Iterations after which the flag of a step on a CUDA device is read; it has been computed by then."""


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Returns whether all numbers are finite, as a scalar on their device; integer tensors are skipped.

    Example:
        >>> all_finite([torch.ones(3), torch.tensor([1.0, torch.nan])])
        tensor(False)
    """
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return torch.ones((), dtype=torch.bool, device=tensors[0].device if tensors else None)
    # The largest magnitude of a tensor is finite exactly if all its numbers are: NaN exceeds any number.
    largest = torch._foreach_norm(floating, torch.inf)
    return torch.stack([norm.float() for norm in largest]).isfinite().all()


class SkippedSteps:
    """Reads whether steps were applied; on a CUDA device LAG iterations later, without synchronizing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[Any, Tensor, Any]] = deque()

    def put(self, step: Any, applied: Tensor) -> None:
        """Starts copying the flag of a step to the host; `take` returns the step if it was skipped."""
        copied = None
        if applied.is_cuda:
            applied = applied.to("cpu", non_blocking=True)  # into page-locked memory
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self._device))
        self._pending.append((step, applied, copied))

    def take(self, wait: bool = False) -> list[Any]:
        """Returns the skipped steps whose flags have arrived, or waits for all flags."""
        lag = LAG if self._device.type == "cuda" and not wait else 0
        skipped = []
        while len(self._pending) > lag:
            step, applied, copied = self._pending.popleft()
            if copied is not None:
                copied.synchronize()
            if not applied:
                skipped.append(step)
        return skipped


@contextmanager
def trace_non_finite(parts: Mapping[str, Any]) -> Iterator[list[str]]:
    """Observes all modules to find the first one with non-finite numbers; slow, since every output is read.

    Yields findings in the order in which they occur, by the names of the parts: a module that computed
    non-finite outputs from finite inputs, a module whose inputs are NaN, or one whose output received a
    non-finite gradient. The first is nearest to the cause.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with torch.no_grad(): _ = model[0].bias.fill_(torch.inf)
        >>> with trace_non_finite({"student": model}) as found: _ = model(torch.ones(1, 2))
        >>> found[0]
        'the output of student.0 (Linear)'
    """
    names = {
        module: ".".join(filter(None, (part, name)))
        for part, root in parts.items()
        if isinstance(root, nn.Module)
        for name, module in root.named_modules()
    }
    found: list[str] = []

    def after_forward(module: nn.Module, inputs: Any, outputs: Any) -> None:
        name = f"{names.get(module, 'a module')} ({type(module).__name__})"
        inputs, outputs = _floating(inputs), _floating(outputs)
        if any(bool(value.isnan().any()) for value in inputs):  # infinity may be a mask
            found.append(f"the input of {name}")
        elif bool(all_finite(inputs)) and not bool(all_finite(outputs)):
            found.append(f"the output of {name}")
        for output in outputs:
            if output.requires_grad:
                output.register_hook(lambda gradient: after_backward(name, gradient))

    def after_backward(name: str, gradient: Tensor) -> None:
        if not bool(all_finite([gradient])):
            found.append(f"the gradient of the output of {name}")

    handle = nn.modules.module.register_module_forward_hook(after_forward)
    try:
        # Compiled networks call no hooks.
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        handle.remove()


def _floating(values: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.is_floating_point()]
