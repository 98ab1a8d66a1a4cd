"""What a stage takes: time, and memory at its peak."""

import resource
import sys
from pathlib import Path
from typing import NamedTuple

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """What a stage took.

    Attributes:
        seconds: Of training in all, those of interrupted runs included.
        seconds_per_iteration: Median of the last iterations of this process, without its first.
        peak_memory: Bytes on the device of this process, see `peak_memory`.
    """

    seconds: float = 0.0
    seconds_per_iteration: float = 0.0
    peak_memory: int = 0


def reset_peak_memory(device: torch.device) -> None:
    """Begins a new measurement, where the system can: on CUDA devices and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        try:
            _CLEAR.write_text("5")  # proc(5): resets the peak of the resident set
        except OSError:  # some containers forbid it: then the peak is that of the process so far
            return


def peak_memory(device: torch.device) -> int:
    """Returns the peak since `reset_peak_memory`, in bytes.

    On a CUDA device what its tensors took; on a CPU all that this process held, PyTorch itself included,
    but not the processes that load images.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
