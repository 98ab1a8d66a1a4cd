"""Ranks and collectives; in a single process the collectives do nothing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def is_distributed() -> bool:
    """Returns whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def rank_and_size(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """Returns this process's rank in a group and the number of ranks; 0 and 1 without a process group."""
    if not is_distributed():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def check_ranks(built_for: int, group: dist.ProcessGroup | None = None) -> None:
    """Raises RuntimeError unless a group has the number of ranks for which a module was built."""
    ranks = rank_and_size(group)[1]
    if ranks != built_for:
        raise RuntimeError(
            f"the clustering was built for {built_for} rank(s), but its process group has {ranks}: build it "
            "after init_process_group, in Lightning in configure_model()"
        )


def broadcast_from_first(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> bool:
    """Copies tensors of a group's first rank to all ranks; returns False for NCCL and tensors on the CPU."""
    if dist.get_backend(group) == "nccl" and any(tensor.device.type == "cpu" for tensor in tensors):
        return False
    first = 0 if group is None else dist.get_global_rank(group, 0)
    for tensor in tensors:
        dist.broadcast(tensor.detach(), first, group)
    return True


def all_reduce_sum(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sums a tensor over the ranks of a group, in place, and returns it."""
    if is_distributed():
        dist.all_reduce(tensor, dist.ReduceOp.SUM, group=group)
    return tensor


def all_reduce_max(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Takes the elementwise maximum over the ranks of a group, in place, and returns it."""
    if is_distributed():
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor


def unwrap(module: nn.Module) -> Any:
    """Returns the module inside any nesting of DistributedDataParallel, DataParallel and torch.compile."""
    *_, innermost = _unwrapped(module)
    return innermost


def _unwrapped(module: nn.Module) -> Iterator[nn.Module]:
    """Yields a module, the one that it wraps, and so on."""
    inner: nn.Module | None = module
    while inner is not None:
        yield inner
        if isinstance(inner, DistributedDataParallel | DataParallel):
            inner = inner.module
        else:
            # The result of torch.compile, whose class is not imported here: it would load the compiler.
            inner = inner._modules.get("_orig_mod")


@contextmanager
def no_sync(*modules: nn.Module, when: bool = True) -> Iterator[None]:
    """Disables DDP's gradient averaging, for all forward passes of a step but the last."""
    with ExitStack() as stack:
        for module in modules:
            for layer in _unwrapped(module):
                if when and isinstance(layer, DistributedDataParallel):
                    stack.enter_context(layer.no_sync())
        yield
