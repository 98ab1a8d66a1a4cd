import torch

from cpsl.engine import peak_memory, reset_peak_memory

CPU = torch.device("cpu")


def test_the_peak_counts_what_was_freed_again() -> None:
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    block = torch.ones(50_000_000)
    del block
    assert peak_memory(CPU) - before > 150_000_000
