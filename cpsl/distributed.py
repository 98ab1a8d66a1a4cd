"""Sums over the processes of a run, which are no-ops in a run of one process."""

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Returns whether this process is one of several that talk to each other."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sums a tensor over the ranks of a group, in place.

    Args:
        tensor: Any shape; the same shape and dtype on every rank.
        group: None is the default group, or this process alone where there is none.

    Returns:
        The same tensor, now holding the sum.
    """
    if is_distributed():
        dist.all_reduce(tensor, dist.ReduceOp.SUM, group=group)
    return tensor


def all_reduce_max(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Takes the maximum of a tensor over the ranks of a group, in place; see `all_reduce_sum`."""
    if is_distributed():
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor
