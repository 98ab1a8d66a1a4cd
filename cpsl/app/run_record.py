"""When, how and where a run was computed: stored in `run.json` of its folder, one entry per start."""

import json
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

import cpsl
from cpsl.training import Process
from cpsl.training.checkpoints import write_text

NAME = "run.json"
"""Name of the record in the folder of a run."""

PACKAGES = ("torch", "torchvision", "timm", "transformers", "segmentation-models-pytorch")
"""Packages whose versions are recorded if they are installed."""


class Session(NamedTuple):
    """One start of a run, from the first to its last resumption.

    Attributes:
        started: Time in ISO format, with its offset from UTC.
        command: What was typed.
        versions: Of Python and of packages, by name.
        hardware: Device, processor and memory, in words.
    """

    started: str
    command: str
    versions: dict[str, str]
    hardware: list[str]


def record_session(folder: Path, arguments: Sequence[str], process: Process) -> None:
    """Adds an entry to the record of a run; a damaged record begins anew."""
    session = Session(
        datetime.now().astimezone().isoformat(timespec="seconds"),
        shlex.join(["cpsl", *arguments]),
        _versions(),
        describe_hardware(process),
    )
    sessions = [*read_sessions(folder), session]
    content = {"sessions": [entry._asdict() for entry in sessions]}
    write_text(folder / NAME, json.dumps(content, indent=1))


def read_sessions(folder: Path) -> list[Session]:
    """Returns the entries of the record; none if it is missing, as of earlier versions, or damaged."""
    try:
        entries: list[dict[str, Any]] = json.loads((folder / NAME).read_bytes())["sessions"]
        sessions = [Session(**entry) for entry in entries]
        for session in sessions:
            datetime.fromisoformat(session.started)
            dict[str, str](session.versions)
        return sessions
    except (OSError, ValueError, LookupError, TypeError):
        return []


def describe_hardware(process: Process) -> list[str]:
    """Returns the devices, the processor and the operating system, in words."""
    described = []
    if process.device.type == "cuda":
        properties = torch.cuda.get_device_properties(process.device)
        described.append(f"{process.world_size} × {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.get_num_threads()
    threads = f", {count} {'thread' if count == 1 else 'threads'} per process" * (
        process.device.type == "cpu"
    )
    described.append(f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}{threads}{_memory()}")
    if process.device.type == "cpu" and process.world_size > 1:
        described.append(f"{process.world_size} processes")
    return [*described, f"{platform.system()} {platform.machine()}"]


def _processor() -> str:
    try:  # Linux; `platform.processor` is empty on many systems
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or "CPU"


def _memory() -> str:
    try:
        return f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory"
    except (AttributeError, ValueError, OSError):  # not on Windows
        return ""


def _versions() -> dict[str, str]:
    found = {"cpsl": cpsl.__version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found["CUDA"] = torch.version.cuda
    return found
