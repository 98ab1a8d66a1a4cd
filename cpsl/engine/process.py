"""This process among its peers: device, rank, parallel modules."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

# A rank that has done its share of the images waits for the slowest, and all wait while rank 0 writes: longer
# than the ten minutes that NCCL would.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Process:
    """One process of a run; the only one, unless torchrun started several.

    Attributes:
        device: Where this process computes.
        rank: 0...world_size - 1; rank 0 writes files and talks to the user.
        world_size: Number of processes.
        hosts: Group of all ranks whose messages need no device; None where the default group is one.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    hosts: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wraps a module so that its gradients are averaged over the ranks.

        Buffers are broadcast neither now nor later: a memory bank belongs to its rank, and batch statistics
        are kept equal by SyncBatchNorm, which replaces BatchNorm on CUDA devices. (On CPUs there is none:
        each rank normalises by its own images, and the statistics that are kept are rank 0's.)
        """
        if self.world_size == 1:
            return module
        devices = None
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            devices = [self.device.index]
        with warnings.catch_warnings():
            # What torch recommends instead would broadcast the buffers once, at the start: after a resumed
            # run has loaded each rank's bank.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

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

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Returns of each flag whether it is set on any rank; the hosts talk, no device is waited for."""
        if self.world_size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.hosts)
        return tuple(values.bool().tolist())


@contextmanager
def start_process(device: str = "auto") -> Iterator[Process]:
    """Joins the other processes of the run, if there are any, and leaves them at the end.

    Whatever starts the processes says which is which by torchrun's environment variables: WORLD_SIZE, RANK,
    LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Args:
        device: "auto" is this rank's CUDA device where there is one, else the CPU; or any name that
            torch.device knows.

    Yields:
        This process.

    Raises:
        RuntimeError: A CUDA device is asked for that this machine does not have or that several processes
            would share, or the processes do not know of each other.
        ValueError: There is no device of that name.
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
        # Told its device, NCCL connects now, and not in the midst of the first step.
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        hosts: Any = (
            dist.new_group(backend="gloo", timeout=PATIENCE) if chosen.type == "cuda" else None
        )
        yield Process(chosen, dist.get_rank(), dist.get_world_size(), hosts)
    finally:
        dist.destroy_process_group()


def _check_environment() -> None:
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK") if name not in os.environ]
        if missing:
            raise RuntimeError(
                f"WORLD_SIZE says that there are {size} processes, but {' and '.join(missing)} is not "
                "set: start them with torchrun, or set what it sets"
            )
    # Each task of a Slurm step would take itself for the whole run, and all would write the same files.
    elif "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "WORLD_SIZE" not in os.environ:
            raise RuntimeError(
                f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks that do not know of each other: "
                "set WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as "
                "examples/slurm/adapt.sbatch does, or start one task with torchrun"
            )


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
    if chosen.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise RuntimeError(
            f'{chosen} is one device for {os.environ["LOCAL_WORLD_SIZE"]} processes: choose device = "cuda", '
            "and each takes its own"
        )
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


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
