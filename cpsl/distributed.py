"""The processes of a run: this one's place among them, and sums that are no-ops in a run of one process."""

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Returns whether this process is one of several that talk to each other."""
    return dist.is_available() and dist.is_initialized()


def rank_and_size(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """Returns this process's rank in a group and the number of ranks; 0 and 1 in a run of one process."""
    if not is_distributed():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


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
