"""Starts the ranks of a distributed test as processes on this machine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

Work = Callable[[int, int, Path], None]


def start_ranks(work: Work, ranks: int, folder: Path) -> None:
    """Calls the module-level function `work(rank, ranks, folder)` in one process per rank.

    The environment variables are those of torchrun.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_begin, args=(ranks, port, work, folder), nprocs=ranks)


def _begin(rank: int, ranks: int, port: int, work: Work, folder: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
    )
    torch.set_num_threads(1)  # there may be more ranks than cores
    work(rank, ranks, folder)
