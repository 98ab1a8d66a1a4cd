"""A machine that does not do what is asked of it."""

import os
import resource
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from case import (
    Break,
    Case,
    Program,
    adapt,
    check,
    content,
    nothing,
    program,
)
from cpsl.data import SegmentationFolder


def environment_cases() -> list[Case]:
    """Returns the cases."""

    def of(name: str, breaks: Break, invoke: Program, *says: str) -> Case:
        return Case("environment", name, breaks, invoke, says)

    def full_disk(after: int) -> Program:
        """Runs the pipeline on a disk that is full after so many files."""

        def act() -> None:
            left = [after]
            replace = Path.replace

            def refuse(path: Path, target: Any) -> Path:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(28, "No space left on device", str(target))
                return replace(path, target)

            with mock.patch.object(Path, "replace", refuse):
                adapt()()

        return act

    def killed_worker() -> None:
        # In a worker that loads images: it ends without a word, as one that the system kills.
        me = os.getpid()
        real = SegmentationFolder.image

        def die(dataset: SegmentationFolder, index: int) -> torch.Tensor:
            if os.getpid() != me:
                os.kill(os.getpid(), 9)
            return real(dataset, index)

        with mock.patch.object(SegmentationFolder, "image", die):
            adapt("--workers", "1")()

    def small_files() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            adapt()()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def no_memory() -> None:
        with mock.patch.object(SegmentationFolder, "image", mock.Mock(side_effect=MemoryError)):
            adapt()()

    missing = f"cuda:{torch.cuda.device_count() + 3}"
    return [
        of("output is a file", nothing, adapt("--output", "settings.toml"), "settings.toml"),
        of(
            "output lies in a file",
            nothing,
            adapt("--output", "settings.toml/run"),
            "settings.toml",
        ),
        of(
            "output lies in a file, in the check",
            nothing,
            check("--output", "settings.toml/run"),
            "settings.toml",
        ),
        of(
            "output below a folder that takes no files",
            nothing,
            adapt("--output", "/proc/run"),
            "/proc/run",
        ),
        of(
            "a GPU that is not there",
            nothing,
            adapt("--device", missing),
            f"{missing} is asked for",
            "cpu",
        ),
        of(
            "a device of no name",
            nothing,
            adapt("--device", "gpu"),
            'device must be "auto"',
            "'gpu'",
        ),
        of(
            "full disk at the start",
            nothing,
            full_disk(0),
            "No space left on device",
            "run/config.toml",
        ),
        of("full disk while training", nothing, full_disk(2), "No space left on device", "run/"),
        of(
            "disk that takes no large files",
            nothing,
            small_files,
            "while run/source_only/checkpoint.pt was written",
            "disk",
        ),
        of(
            "full disk between the stages", nothing, full_disk(9), "No space left on device", "run/"
        ),
        of(
            "a process that loads images is killed",
            nothing,
            killed_worker,
            "DataLoader worker",
            "--workers",
        ),
        of("memory is short", nothing, no_memory, "memory|Memory"),
        of(
            "log.txt is a folder",
            lambda: Path("run/log.txt").mkdir(parents=True),
            adapt(),
            "log.txt",
        ),
        of(
            "a stage's folder is a file",
            content("run/source_only", b""),
            adapt(),
            "run/source_only",
        ),
        of(
            "a stage before its time",
            nothing,
            program("self_label.py"),
            "there is no file run/warmup/model.pt",
            "has to run first",
        ),
    ]
