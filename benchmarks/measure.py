"""Timings, the roofline lower bound of this machine, and the table of `make bench`."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of repeated measurements."""

    median: float
    low: float
    high: float
    repeats: int


def measure(work: Callable[[], object], repeats: int = 7, warm_up: int = 2) -> Timing:
    """Times a function; on a GPU until the device has finished."""

    def once() -> float:
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for _ in range(warm_up):
        once()
    return timing([once() for _ in range(repeats)])


def timing(seconds: list[float]) -> Timing:
    """Summarizes measurements."""
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


class Machine(NamedTuple):
    """Rates that this machine reaches."""

    bandwidth: float  # bytes per second of a copy, reads and writes
    operations: float  # floating-point operations per second of a float32 matrix product

    def __str__(self) -> str:
        return (
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, copies "
            f"{self.bandwidth / 1e9:.1f} GB/s, float32 products {self.operations / 1e9:.0f} GFLOP/s"
        )

    def bound(self, moved: float, operations: float) -> float:
        """Returns the roofline lower bound in seconds: bytes moved / bandwidth, or operations / rate."""
        return max(moved / self.bandwidth, operations / self.operations)


def survey(device: torch.device) -> Machine:
    """Measures the rates of a device."""
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    a, b = torch.rand(2, 2048, 2048, device=device)
    copy, product = measure(lambda: target.copy_(source)), measure(lambda: a @ b)
    return Machine(2 * source.nbytes / copy.low, 2 * 2048**3 / product.low)


class Row(NamedTuple):
    """A line of the table."""

    name: str
    timing: Timing
    authors: str  # milliseconds of the authors' code, "low-high" if it varied; empty if it has no such part
    target: float | None  # milliseconds that this project aims at
    bound: float | None  # seconds; None if neither bytes nor operations limit the work
    note: str = ""  # replaces the target in the table

    def __str__(self) -> str:
        median, low, high = (f"{1e3 * seconds:9.1f}" for seconds in self.timing[:3])
        target = self.note or ("" if self.target is None else f"{self.target:.0f}")
        missed = self.target is not None and 1e3 * self.timing.median > self.target
        bound = "" if self.bound is None else f"{1e3 * self.bound:.1f}"
        return (
            f"{self.name:44}{median}{low}{high}{self.timing.repeats:4}"
            f"{self.authors:>13}{target:>17}{bound:>9}{'  missed' * missed}"
        )


HEAD = (
    f"{'milliseconds':44}{'median':>9}{'min':>9}{'max':>9}{'n':>4}{'authors':>13}{'target':>17}{'bound':>9}"
)
