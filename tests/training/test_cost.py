import subprocess
import sys

SCRIPT = """
import torch
from cpsl.training.cost import peak_memory, reset_peak_memory

cpu = torch.device("cpu")
large = torch.ones(100_000_000)
del large
reset_peak_memory(cpu)
before = peak_memory(cpu)
block = torch.ones(50_000_000)
del block
print(before, peak_memory(cpu))
"""


def test_the_peak_includes_freed_memory_since_the_reset() -> None:
    # In a process of its own: a system may reclaim idle memory of a large one meanwhile.
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, ended.stdout.split())
    assert after - before > 150_000_000
