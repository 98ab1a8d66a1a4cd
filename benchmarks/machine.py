"""What the machine at hand can do at best, and how long a piece of work takes on it."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Repeated measurements of one piece of work.

    Attributes:
        median: Seconds.
        low: The fastest.
        high: The slowest.
        repeats: How many were measured.
    """

    median: float
    low: float
    high: float
    repeats: int


def measure(work: Callable[[], object], repeats: int = 7, warm_up: int = 2) -> Timing:
    """Times a piece of work; on a GPU until the device has done it."""

    def once() -> float:
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    for _ in range(warm_up):
        once()
    times = [once() for _ in range(repeats)]
    return Timing(statistics.median(times), min(times), max(times), repeats)


class Machine(NamedTuple):
    """What the machine reaches.

    Attributes:
        bytes_per_second: Of a copy, reading and writing.
        operations_per_second: Of a float32 matrix product, two for each multiply-add.
    """

    bytes_per_second: float
    operations_per_second: float

    def __str__(self) -> str:
        return (
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, copies "
            f"{self.bytes_per_second / 1e9:.1f} GB/s, float32 products "
            f"{self.operations_per_second / 1e9:.0f} GFLOP/s"
        )

    def bound(self, moved: float, operations: float) -> float:
        """Returns the seconds below which no program can come.

        Args:
            moved: Bytes that have to be read and written.
            operations: Floating-point operations that have to be done.
        """
        return max(moved / self.bytes_per_second, operations / self.operations_per_second)


def survey(device: torch.device) -> Machine:
    """Measures the machine."""
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    a, b = torch.rand(2, 2048, 2048, device=device)
    copy = measure(lambda: target.copy_(source))
    product = measure(lambda: a @ b)
    return Machine(2 * source.numel() * 4 / copy.low, 2 * 2048**3 / product.low)
