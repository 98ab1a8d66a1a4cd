"""The cost of a stage: time and peak memory."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

if sys.platform != "win32":
    import resource

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """Time and memory of a stage.

    Attributes:
        seconds: Training time, interrupted runs included.
        seconds_per_iteration: Median over the last iterations of this process, without its first.
        peak_memory: Bytes on the device of this process, see `peak_memory`.
    """

    seconds: float = 0.0
    seconds_per_iteration: float = 0.0
    peak_memory: int = 0


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak; on CUDA devices and on Linux, elsewhere it does nothing."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        try:
            _CLEAR.write_text("5")  # proc(5): resets the peak of the resident set
        except OSError:  # some containers forbid it: the peak is then that of the whole process so far
            return


def peak_memory(device: torch.device) -> int:
    """Returns the peak since `reset_peak_memory`, in bytes; 0 on the CPU under Windows.

    On a CUDA device this is the memory of its tensors. On a CPU it is the memory of this process, PyTorch
    included, without the processes that load images.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
