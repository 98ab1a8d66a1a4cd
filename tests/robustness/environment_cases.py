"""A machine that does not do what is asked of it: disks, devices, memory, processes."""

import os
import resource
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from case import Act, Case, content
from cpsl.data import SegmentationFolder
from project import run

of = partial(Case, "environment")


def full_disk(files: int) -> Act:
    """Runs the pipeline on a disk that is full after a number of files."""

    def act() -> None:
        left, replace = [files], os.replace

        def refuse(path: Any, target: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device", str(target))
            replace(path, target)

        with mock.patch.object(os, "replace", refuse):
            run("adapt")

    return act


def small_files() -> None:
    """Runs the pipeline where no file may be larger than 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        run("adapt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def killed_worker() -> None:
    """Runs the pipeline with a loader process that ends without a message, as one killed by the system."""
    main, image = os.getpid(), SegmentationFolder.image

    def die(dataset: SegmentationFolder, index: int) -> torch.Tensor:
        if os.getpid() != main:
            os.kill(os.getpid(), 9)
        return image(dataset, index)

    with mock.patch.object(SegmentationFolder, "image", die):
        run("adapt --workers 1")


def no_memory() -> None:
    """Runs the pipeline where no image fits into memory."""
    with mock.patch.object(SegmentationFolder, "image", side_effect=MemoryError):
        run("adapt")


DEVICE = f"cuda:{torch.cuda.device_count() + 3}"

ENVIRONMENT = [
    of("output is a file", (), "settings.toml", "adapt --output settings.toml"),
    of("output below a file", (), "settings.toml", "adapt --output settings.toml/run"),
    of("output below a file, in the check", (), "settings.toml", "check --output settings.toml/run"),
    of("output below a folder without files", (), "/proc/run", "adapt --output /proc/run"),
    of("missing GPU", (), (DEVICE, "cpu"), f"adapt --device {DEVICE}"),
    of("unknown device", (), ("device", "'gpu'"), "adapt --device gpu"),
    of("full disk at the start", (), ("run/config.toml", "No space"), act=full_disk(0)),
    of("full disk in training", (), ("run/source_only", "No space"), act=full_disk(3)),
    of("full disk between stages", (), ("run/warmup", "No space"), act=full_disk(10)),
    of("disk without large files", (), "run/source_only/checkpoint.pt", act=small_files),
    of("killed loader process", (), ("DataLoader worker", "--workers"), act=killed_worker),
    of("too little memory", (), "emory", act=no_memory),
    of("log.txt is a folder", lambda: Path("run/log.txt").mkdir(parents=True), "log.txt"),
    of("folder of a stage is a file", content("run/source_only", b""), "run/source_only"),
]
