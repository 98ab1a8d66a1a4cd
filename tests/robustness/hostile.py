"""Files that would run code if they were unpickled as they are; each would make a folder, as a mark."""

import builtins
import io
import os
import pickle
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


class _Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call

    def __call__(self) -> None:
        """Lets the result of one call be called by another."""


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    """Returns files that would make the folder `mark`, by name.

    Several ways to call, each in all protocols of pickle and in both formats of torch, bare and inside the
    dictionary of a checkpoint.
    """
    command, inner = f"mkdir {mark}", io.BytesIO()
    torch.save(_Calls(os.mkdir, str(mark)), inner)
    trusting_load = partial(torch.load, weights_only=False)
    files = {}
    for name, call in {
        "os.system": _Calls(os.system, command),
        "os.mkdir": _Calls(os.mkdir, str(mark)),
        "eval": _Calls(builtins.eval, f"__import__('os').mkdir({str(mark)!r})"),
        "exec": _Calls(builtins.exec, f"import os; os.mkdir({str(mark)!r})"),
        "subprocess": _Calls(subprocess.check_output, ["mkdir", str(mark)]),
        "getattr": _Calls(_Calls(getattr, _Calls(__import__, "os"), "system"), command),
        "torch.load": _Calls(trusting_load, _Calls(io.BytesIO, inner.getvalue())),
        "pickle.loads": _Calls(pickle.loads, pickle.dumps(_Calls(os.mkdir, str(mark)))),
    }.items():
        state = {"ResNet101": {"model_state": {"conv1.weight": call}}, "model": {"a": [call]}}
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            files[f"{name}, protocol {protocol}"] = pickle.dumps(call, protocol)
            files[f"{name}, nested, protocol {protocol}"] = pickle.dumps(state, protocol)
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
            files[f"{name}, torch, {'zip' if zipped else 'legacy'}"] = buffer.getvalue()
    return files
