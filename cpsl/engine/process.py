"""This process among its peers: device, rank, parallel modules."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One process of a run; the only one, unless torchrun started several.

    Attributes:
        device: Where this process computes.
        rank: 0...world_size - 1; rank 0 writes files and talks to the user.
        world_size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wraps a module so that its gradients are averaged over the ranks.

        Buffers are not broadcast: a memory bank belongs to its rank, and batch statistics are kept equal
        by SyncBatchNorm, which replaces BatchNorm on CUDA devices.
        """
        if self.world_size == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            return DistributedDataParallel(
                module, device_ids=[self.device.index], broadcast_buffers=False
            )
        return DistributedDataParallel(module, broadcast_buffers=False)

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Returns the value of each rank, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def start_process(device: str = "auto") -> Iterator[Process]:
    """Joins the other processes of the run, if torchrun started any, and leaves them at the end.

    Args:
        device: "auto" is this rank's CUDA device where there is one, else the CPU; or any name that
            torch.device knows.

    Yields:
        This process.

    Raises:
        RuntimeError: A CUDA device is asked for that this machine does not have.
        ValueError: There is no device of that name.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield Process(chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")  # a name that torch knows, and no device either
    if chosen.type == "meta":
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "cuda:N", got {device!r}')
    if chosen.type != "cuda":
        return chosen
    count = torch.cuda.device_count()
    index = local_rank if chosen.index is None else chosen.index
    if index >= count:
        raise RuntimeError(
            f"cuda:{index} is asked for, but this machine has {count} CUDA device(s); "
            'choose device = "cpu" or start fewer processes'
        )
    return torch.device("cuda", index)


def unwrap(module: nn.Module) -> nn.Module:
    """Returns the module inside a DistributedDataParallel wrapper, or the module itself."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def local_gradients(*modules: nn.Module, when: bool = True) -> Iterator[None]:
    """Keeps gradients on their rank: for every backward pass of a step but the last.

    Args:
        modules: Wrapped by `Process.parallel`; others are left alone.
        when: False makes this a no-op.
    """
    wrapped = [m for m in modules if isinstance(m, DistributedDataParallel)] if when else []
    with wrapped[0].no_sync() if wrapped else nullcontext():
        if len(wrapped) > 1:
            with local_gradients(*wrapped[1:]):
                yield
        else:
            yield


def mean_over_ranks(values: Tensor) -> Tensor:
    """Averages a tensor over all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
