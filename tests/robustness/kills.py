"""Runs that are killed again and again: does the same command end like an undisturbed run?

A run is stopped until it gets to its end: by SIGKILL or SIGTERM at a random moment, by SIGKILL when half of a
file is written, or just before a complete file is moved into place. It is lost if any bit of its weights,
metrics or labels differs in the end, if it leaves a partial file, or if it does not end.
"""

import multiprocessing
import os
import random
import signal
import time
import zipfile
import zlib
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from project import incomplete_files, read_json, write_project

WAYS = ("SIGKILL", "SIGTERM", "SIGKILL while writing", "SIGKILL before moving a file")
STOPPED = (-signal.SIGKILL, -signal.SIGTERM, 75)  # exit codes
TIMINGS = ("seconds", "seconds_per_iteration", "peak_memory", "evaluation_data")
"""Metrics that depend on the machine, or on when the files of the project were written."""


class Kill(NamedTuple):
    """One of `WAYS`, and its moment: seconds after the start, or number of the file that is written."""

    way: str
    moment: float


class Trial(NamedTuple):
    """All kills that a run went through, and what is wrong with its end, if anything."""

    kills: list[Kill]
    problem: str


def run_until_killed(project: Path, kill: Kill | None) -> None:
    """Runs the whole pipeline in this process."""
    import torch

    from cpsl.app import adapt

    os.chdir(project)
    torch.set_num_threads(1)
    with open("output.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kill is not None and kill.way in WAYS[2:]:
        _die_at_file(int(kill.moment), half=kill.way == WAYS[2])
    adapt.main(["--config", "settings.toml"])


def _die_at_file(number: int, half: bool) -> None:
    """Makes this process kill itself when it moves the n-th file into place."""
    replace, files = os.replace, count()

    def die(path: Any, target: Any) -> None:
        if next(files) == number:
            if half:
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(path, target)

    os.replace = die  # type: ignore[assignment]


def fingerprint(path: Path) -> Any:
    """Returns what equal results have in common: checksums of tensors, metrics without timings, bytes."""
    if path.suffix == ".pt":
        try:
            with zipfile.ZipFile(path) as archive:
                parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile:
            return "damaged"
        return {name: zlib.crc32(part) for name, part in parts.items() if "_id" not in name}
    return _without_timings(read_json(path)) if path.suffix == ".json" else path.read_bytes()


def _without_timings(metrics: Any) -> Any:
    if not isinstance(metrics, dict):
        return metrics
    return {key: _without_timings(value) for key, value in metrics.items() if key not in TIMINGS}


def results(project: Path) -> dict[str, Any]:
    """Returns the fingerprint of each result of the run of a project."""
    kinds = (".pt", ".json", ".jsonl", ".png")
    paths = [path for path in project.glob("run/**/*") if path.suffix in kinds]
    others = ("checkpoint", "data", "report", "run")  # they depend on times
    found = {str(p.relative_to(project)): fingerprint(p) for p in paths if p.stem not in others}
    report = (project / "run" / "report.html").exists()
    return {**found, "report.html": report, "incomplete": incomplete_files(project)}


class Victims:
    """Starts runs and kills them.

    Args:
        folder: Everything is written below it.
        method: Method of the runs.
    """

    def __init__(self, folder: Path, method: str = "paper") -> None:
        # The server has imported PyTorch; a run is a fork of it and begins at once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cpsl.app.adapt"])
        self._folder, self._method = folder, method
        project, begun = self._project("undisturbed"), time.perf_counter()
        process = self._start(project, None)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError((project / "output.txt").read_text())
        self._seconds = time.perf_counter() - begun
        self._expected = results(project)

    def kill(self, number: int, chance: random.Random, most: int = 100) -> Trial:
        """Kills one run repeatedly until it finishes or the limit of kills is reached."""
        project = self._project(f"trial {number}", workers=number % 2)
        kills: list[Kill] = []
        while True:
            way = WAYS[len(kills) % len(WAYS)]
            moment = chance.uniform(0.05, self._seconds / 2)
            if "while" in way or "before" in way:
                moment = chance.randrange(len(self._expected) // 2 + 10)
            kill = Kill(way, moment) if len(kills) < most else None
            process = self._start(project, kill)
            if way in ("SIGKILL", "SIGTERM") and kill is not None:
                process.join(moment)
                if process.is_alive():
                    os.kill(process.pid, getattr(signal, way))
            process.join(300)
            if process.exitcode == 0:
                return Trial(kills, self._difference(project))
            kills += [] if kill is None else [kill]
            if process.is_alive():
                process.kill()
                return Trial(kills, "the process hangs")
            if process.exitcode not in STOPPED:
                output = (project / "output.txt").read_text()[-300:]
                return Trial(kills, f"exit code {process.exitcode}: {output}")

    def _difference(self, project: Path) -> str:
        found, expected = results(project), self._expected
        names = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        return f"{len(names)} results differ, such as {min(names)}" if names else ""

    def _project(self, name: str, workers: int = 0) -> Path:
        folder = self._folder / name
        write_project(folder)
        settings = folder / "settings.toml"
        text = settings.read_text().replace("iterations = 2", "iterations = 5")
        text = text.replace('method = "paper"', f'method = "{self._method}"')
        text = text.replace("checkpoint_every = 1", "checkpoint_every = 2")
        settings.write_text(text.replace("workers = 0", f"workers = {workers}"))
        return folder

    def _start(self, project: Path, kill: Kill | None) -> Any:
        process = self._context.Process(target=run_until_killed, args=(project, kill))
        process.start()
        return process
