"""Processes that read or write the files of a whole data set."""

import os
import signal
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")

CHUNK = 4
"""Results that a process sends together: fewer would wait, more would be late for the progress."""


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; jobs of a cluster often have a part of the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(function: Callable[[int], T], count: int, workers: int) -> Generator[T, None, None]:
    """Yields function(0), ..., function(count - 1) in this order, computed by processes of one thread each.

    Without workers this process computes them.

    Example:
        >>> list(map_in_processes(abs, 3, workers=1))
        [0, 1, 2]
    """
    loader: DataLoader[T] = DataLoader(
        _Calls(function, count),
        batch_size=CHUNK,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # the default takes a number from the global random state
    )
    for results in loader:
        yield from results


class _Calls(Dataset[T], Generic[T]):
    """The results of a function, for the processes of a loader."""

    def __init__(self, function: Callable[[int], T], count: int) -> None:
        self._function, self._count = function, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> T:
        return self._function(index)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ignores Ctrl-C, which the terminal sends to all processes; the main process ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
