"""Numbers that are not finite: noticed without waiting for the device, and traced to what made them."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LAG = 2
"""Iterations after which a flag of a CUDA device is read: by then it has long been computed."""


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Returns whether all numbers are finite, as a scalar of their device that nobody has to wait for.

    Args:
        tensors: Of any shapes, on one device; those that are not floating are left out.

    Example:
        >>> all_finite([torch.ones(3), torch.tensor([1.0, torch.nan])])
        tensor(False)
    """
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return torch.ones((), dtype=torch.bool)
    # The largest magnitude of each is finite just where all of it is: NaN counts as larger than any number.
    largest = torch._foreach_norm(floating, torch.inf)
    return torch.stack([norm.float() for norm in largest]).isfinite().all()


class FlagReader:
    """Reads flags that a device computes, on a CUDA device some iterations later, so that nothing waits.

    Args:
        device: Where the flags are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[int, Tensor, Any]] = deque()

    def put(self, iteration: int, flags: Sequence[Tensor]) -> None:
        """Begins to fetch whether all flags of an iteration, scalar bool tensors of the device, are set."""
        flag = torch.stack(list(flags)).all() if flags else torch.tensor(True)
        done = None
        if flag.is_cuda:
            flag = flag.to("cpu", non_blocking=True)  # into page-locked memory
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self._device))
        self._pending.append((iteration, flag, done))

    def take(self, iteration: int, last: bool = False) -> list[tuple[int, bool]]:
        """Returns iterations and their flags.

        Args:
            iteration: The current one; it tells which are old enough.
            last: Whether to wait for all that are left.
        """
        lag = LAG if self._device.type == "cuda" and not last else 0
        taken = []
        while self._pending and self._pending[0][0] <= iteration - lag:
            before, flag, done = self._pending.popleft()
            if done is not None:
                done.synchronize()
            taken.append((before, bool(flag)))
        return taken


@contextmanager
def trace_not_finite(parts: Mapping[str, Any]) -> Iterator[list[str]]:
    """Watches every module that is called, and finds where numbers stop being finite.

    Args:
        parts: By name; those that are modules give the names of the modules inside them.

    Yields:
        Findings, in the order in which they were made. The first is nearest to the cause: the module that
        made such numbers of finite ones, that was given them, or that a gradient reached so.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with torch.no_grad(): _ = model[0].bias.fill_(torch.inf)
        >>> with trace_not_finite({"student": model}) as found: _ = model(torch.ones(1, 2))
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

    def after_forward(module: nn.Module, given: Any, made: Any) -> None:
        name = f"{names.get(module, 'a module')} ({type(module).__name__})"
        inputs, outputs = _floating(given), _floating(made)
        if any(bool(value.isnan().any()) for value in inputs):  # infinity may be meant, as a mask
            found.append(f"the input of {name}")
        elif bool(all_finite(inputs)) and not bool(all_finite(outputs)):
            found.append(f"the output of {name}")
        for output in outputs:
            if output.requires_grad:
                output.register_hook(lambda gradient: after_backward(name, gradient))

    def after_backward(name: str, gradient: Tensor) -> None:
        if not bool(all_finite([gradient])):
            found.append(f"the gradient that reaches {name}")

    handle = nn.modules.module.register_module_forward_hook(after_forward)
    try:
        # Compiled networks call no hooks: for this while they run as they are written.
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        handle.remove()


def _floating(values: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.is_floating_point()]
