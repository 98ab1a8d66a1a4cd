"""Opening of data sets and stores of many files, and the check of many images on one core and on all.

    python benchmarks/scale.py                  # 100,000 files, a check of 2,000 images; a minute

The files are written into a temporary folder and removed. "CPU" are the seconds of all processes together,
"MB" is the largest amount that Python allocates.
"""

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from cpsl._internal.workers import usable_cores
from cpsl.data import (
    DatasetCheck,
    HardLabelStore,
    SegmentationFolder,
    SoftLabelStore,
    check_dataset,
    write_streets,
)

T = TypeVar("T")

FOLDERS = 100
"""Folders among which the files are divided."""

SIZE = (480, 640)
"""Height and width of the images that are checked."""


def write_names(folder: Path, names: Iterable[str], suffix: str) -> None:
    """Writes empty files, which suffice for lists."""
    for name in names:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of those that have ended."""
    return sum(os.times()[:4])


def timed(title: str, count: int, work: Callable[[], T], memory: bool = True) -> T:
    """Prints the time of a function, and the memory that Python allocates when it runs again."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    result = work()
    row = f"{title:40}{count:10,}{time.perf_counter() - begin:10.2f}{cpu_seconds() - cpu:10.2f}"
    if memory:
        tracemalloc.start()
        work()
        row += f"{tracemalloc.get_traced_memory()[1] / 1e6:10.0f}"
        tracemalloc.stop()
    print(row, flush=True)
    return result


def measure_lists(files: int) -> None:
    """Opens folders and stores."""
    names = [f"city{number % FOLDERS:03}/city{number % FOLDERS:03}_{number:06}" for number in range(files)]
    with TemporaryDirectory() as name:
        images, labels = Path(name, "images"), Path(name, "labels")
        write_names(images, names, ".jpg")
        write_names(labels, names, ".png")
        dataset = timed("SegmentationFolder", files, partial(SegmentationFolder, images, labels, ["road"]))
        assert len(dataset) == files
        for kind in (HardLabelStore, SoftLabelStore):
            store = timed(kind.__name__, files, partial(kind, labels))
            missing = timed(f"{kind.__name__}.missing", files, partial(store.missing, names))
            assert not missing


def measure_check(images: int, size: tuple[int, int]) -> None:
    """Checks the same images with one thread, with threads, and with processes."""
    with TemporaryDirectory() as name:
        root = Path(name)
        write_streets(root / "few", layout="gta5", style="game", count=20, size=size)
        for part in ("images", "labels"):
            (root / part).mkdir()
            files = sorted((root / "few" / part).glob("*.png"))
            for number in range(images):
                (root / part / f"{number:06}.png").hardlink_to(files[number % len(files)])
        ids = dict.fromkeys(range(256), 255)
        dataset = SegmentationFolder(root / "images", root / "labels", ["road"], ids=ids)
        results, cores = list[DatasetCheck](), usable_cores()
        for title, threads, workers in (
            ("check_dataset, 1 thread", 1, 0),
            ("check_dataset, 4 threads", 4, 0),
            (f"check_dataset, {cores} processes", 1, cores),
        ):
            check = partial(check_dataset, dataset, threads=threads, workers=workers)
            results.append(timed(title, images, check, memory=False))
        assert all(result.sizes == results[0].sizes and not result.problems for result in results)
        assert all(result.ignored == results[0].ignored for result in results)


def main(files: int = 100_000, images: int = 2_000) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print(f"{'':40}{'files':>10}{'seconds':>10}{'CPU':>10}{'MB':>10}")
    measure_lists(files)
    measure_check(images, SIZE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="files of lists")
    parser.add_argument("--images", type=int, default=2_000, help="images that are checked")
    main(**vars(parser.parse_args()))
