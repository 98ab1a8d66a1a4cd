"""Gradients of two ranks and two micro-batches are those of one process on everything."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from cpsl.engine import local_gradients, start_process, unwrap


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def batch() -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def work(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
    )
    with start_process("cpu") as process:
        network = process.parallel(model())
        mine = batch()[4 * rank : 4 * rank + 4]
        for part in range(2):
            with local_gradients(network, when=part == 0):
                (network(mine[2 * part : 2 * part + 2]).square().mean() / 2).backward()
        gradients = [parameter.grad for parameter in unwrap(network).parameters()]
        assert process.gather(rank) == [0, 1]
        torch.save(gradients, folder / f"{rank}.pt")


def test_two_ranks_with_two_parts_are_one_process(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, tmp_path), nprocs=2)
    alone = model()
    alone(batch()).square().mean().backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        for got, parameter in zip(gradients, alone.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad)


def test_one_process_is_left_alone() -> None:
    with start_process("cpu") as process:
        network = model()
        assert process.parallel(network) is network
        assert process.is_main
        with local_gradients(network):
            network(batch()).sum().backward()
    assert network[0].weight.grad is not None


def test_a_missing_device_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with (
        pytest.raises(RuntimeError, match=r"cuda:0 is asked for, but this machine has 0"),
        start_process("cuda"),
    ):
        pass
