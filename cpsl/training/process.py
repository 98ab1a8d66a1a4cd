"""The processes of a run: devices, ranks, parallel modules."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

# NCCL's ten minutes are too short: ranks wait while rank 0 writes files, and for the slowest at the end of a
# pass over the images.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Process:
    """One process of a run; the only one, unless torchrun started several.

    Attributes:
        device: Where this process computes.
        rank: 0...world_size - 1; rank 0 writes files and messages.
        world_size: Number of processes.
        cpu_group: Group of all ranks for tensors in main memory; None is the default group.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    cpu_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wraps a module in DistributedDataParallel, unless there is one process or nothing is trained.

        Buffers are not broadcast, since each rank has its own memory bank. On CUDA devices SyncBatchNorm
        replaces BatchNorm and keeps the running statistics equal. There is none for CPUs: each rank
        normalizes by its own images, and a checkpoint holds the running statistics of rank 0.
        """
        if self.world_size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        devices = None
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            devices = [self.device.index]
        with warnings.catch_warnings():
            # The alternative that torch recommends broadcasts the buffers once, in the constructor: after a
            # resumed run has loaded the bank of each rank.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Returns the values of all ranks, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for each flag whether it is set on any rank; does not synchronize with the device."""
        if self.world_size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.cpu_group)
        return tuple(values.bool().tolist())


@contextmanager
def start_process(device: str = "auto") -> Iterator[Process]:
    """Joins the process group of a run that torchrun started, and destroys it at the end.

    Another launcher has to set the environment variables of torchrun: WORLD_SIZE, RANK, LOCAL_RANK,
    MASTER_ADDR and MASTER_PORT. Without WORLD_SIZE there is one process.

    Args:
        device: "auto", the CUDA device of this rank or else the CPU; or "cpu", "cuda" or "cuda:N".

    Raises:
        RuntimeError: The machine has no such CUDA device, several processes would share one, or variables of
            torchrun are missing.
        ValueError: The device does not exist.
    """
    _check_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield Process(chosen)
        return
    if chosen.type == "cuda":
        # With a device_id NCCL connects here and not during the first step.
        dist.init_process_group("nccl", timeout=_TIMEOUT, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        cpu_group: Any = None
        if chosen.type == "cuda":
            cpu_group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        yield Process(chosen, dist.get_rank(), dist.get_world_size(), cpu_group)
    finally:
        dist.destroy_process_group()


def _check_environment() -> None:
    size = os.environ.get("WORLD_SIZE")
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_ID" in os.environ else "1"
    missing = [name for name in ("RANK", "LOCAL_RANK") if name not in os.environ]
    if size is not None and int(size) > 1 and missing:
        raise RuntimeError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} is not set: start the processes with "
            "torchrun, or set its environment variables"
        )
    # Each task of a Slurm step would start its own run, and all would write the same files.
    if size is None and int(tasks) > 1:
        raise RuntimeError(
            f"srun started {tasks} tasks without WORLD_SIZE: set WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR "
            "and MASTER_PORT as examples/adapt.sbatch does, or start one task with torchrun"
        )


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")  # refused below, like every name that is not a device
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "cuda:N", got {device!r}')
    if chosen.type != "cuda":
        return chosen
    if chosen.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise RuntimeError(
            f'{chosen} is one device for {os.environ["LOCAL_WORLD_SIZE"]} processes: choose device = "cuda" '
            "to give each its own"
        )
    count = torch.cuda.device_count()
    index = local_rank if chosen.index is None else chosen.index
    if index >= count:
        raise RuntimeError(
            f'there is no cuda:{index} among {count} CUDA device(s): choose device = "cpu" or fewer processes'
        )
    return torch.device("cuda", index)
