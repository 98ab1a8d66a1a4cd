"""Runs that are killed again and again: does the same command end with what an undisturbed run ends with?

    python faults/kills.py --seconds 300

Each trial is a small run of the whole pipeline that is stopped until it gets to its end: by SIGKILL or
SIGTERM at a random moment, by SIGKILL while it writes a file (half of it is on the disk), or by SIGKILL just
before a complete file moves into place. It is lost if it ends with other weights, metrics or labels than the
undisturbed run, in any bit, leaves a partial file, or does not end at all.
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from healthy import write_project  # noqa: E402

Way = Literal["SIGKILL", "SIGTERM", "SIGKILL while writing", "SIGKILL before moving into place"]
WAYS: tuple[Way, ...] = Way.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Kill:
    """How a process is to end before its time.

    Attributes:
        way: What kills it.
        when: Seconds after its start, or the number of the file that it writes.
    """

    way: Way
    when: float


@dataclass(frozen=True)
class Trial:
    """A run that was killed until it got to its end.

    Attributes:
        kills: Those that came before the process was done.
        problem: What differs from the undisturbed run; empty if nothing does.
    """

    kills: list[Kill]
    problem: str


def run(project: Path, kill: Kill | None) -> None:
    """Runs the whole pipeline in this process, as `adapt.py` does; dies while it writes if asked to."""
    os.chdir(project)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    import adapt
    from config import Config, parse

    if kill is not None and "SIGKILL " in kill.way:
        _die_while_writing(int(kill.when), whole="moving" in kill.way)
    with open("output.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    adapt.main(parse(Config, ["--config", "settings.toml"]))


def _die_while_writing(number: int, whole: bool) -> None:
    """Makes this process kill itself at the n-th file that it writes."""
    import cpsl.files

    replace, left = Path.replace, iter(range(number, -1, -1))

    def dying_replace(path: Path, target: Any) -> Path:
        if path.name.endswith(cpsl.files.PARTIAL_SUFFIX) and next(left, 0) == 0:
            if not whole:
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    setattr(Path, "replace", dying_replace)  # noqa: B010


def fingerprints(run: Path) -> dict[str, str]:
    """Returns a hash of each result of a run, its timings left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.name == "model.pt" or path.name in ("teacher.pt", "clustering.pt", "start.pt"):
            content = repr(_hashes(torch.load(path, weights_only=True))).encode()
        elif path.name == "metrics.json":
            content = json.dumps(_without_timings(json.loads(path.read_text()))).encode()
        elif path.suffix in (".png", ".jsonl"):
            content = path.read_bytes()
        elif path.name.endswith(".partial"):
            content = b"nobody should leave this"
        else:
            continue
        found[name] = hashlib.sha256(content).hexdigest()
    if not (run / "report.html").exists():
        found["report.html"] = "missing"
    return found


def _hashes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: _hashes(part) for key, part in value.items()}
    return value


def _without_timings(metrics: Any) -> Any:
    if not isinstance(metrics, dict):
        return metrics
    timings = ("seconds", "seconds_per_iteration", "peak_memory")
    return {k: _without_timings(v) for k, v in metrics.items() if k not in timings}


class Victims:
    """Starts runs and kills them.

    Args:
        folder: Everything is written below it.
    """

    def __init__(self, folder: Path) -> None:
        # The server has PyTorch imported; a run is a fork of it and begins at once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["adapt", "torch"])
        self._folder = folder
        begun = time.perf_counter()
        undisturbed = self._project("undisturbed")
        process = self._start(undisturbed, None)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError((undisturbed / "output.txt").read_text())
        self.duration = time.perf_counter() - begun
        self.wanted = fingerprints(undisturbed / "run")
        self.files = sum(name.endswith((".png", ".pt", ".json")) for name in self.wanted) + 20

    def trial(self, number: int, random: random.Random) -> Trial:
        """Kills one run until it gets to its end."""
        project = self._project(f"trial {number}", workers=number % 2)
        kills: list[Kill] = []
        while len(kills) < 100:
            kill = self._draw(random)
            process = self._start(project, kill)
            if kill.way in ("SIGKILL", "SIGTERM"):
                process.join(kill.when)
                if process.is_alive():
                    os.kill(process.pid, getattr(signal, kill.way))
            process.join(300)
            if process.is_alive():
                process.kill()
                return Trial([*kills, kill], "the process hangs")
            if process.exitcode == 0:
                return Trial(kills, self._difference(project / "run"))
            kills.append(kill)
            if process.exitcode not in (-signal.SIGKILL, -signal.SIGTERM, 75):
                told = (project / "output.txt").read_text()[-300:]
                return Trial(kills, f"exit code {process.exitcode}: {told}")
        return Trial(kills, "no end after 100 kills")

    def _draw(self, random: random.Random) -> Kill:
        way = random.choice(WAYS)
        if way in ("SIGKILL", "SIGTERM"):
            return Kill(way, random.uniform(0.05, self.duration / 2))
        return Kill(way, random.randrange(self.files // 2))

    def _difference(self, run: Path) -> str:
        got = fingerprints(run)
        names = sorted(
            n for n in got.keys() | self.wanted.keys() if got.get(n) != self.wanted.get(n)
        )
        return f"{len(names)} results differ, such as {names[0]}" if names else ""

    def _project(self, name: str, workers: int = 0) -> Path:
        folder = self._folder / name
        write_project(folder)
        settings = folder / "settings.toml"
        text = settings.read_text()
        for old, new in (
            ("iterations = 2", "iterations = 5"),
            ("checkpoint_every = 1", "checkpoint_every = 2"),  # what lies between is done again
            ("workers = 0", f"workers = {workers}"),
        ):
            text = text.replace(old, new)
        settings.write_text(text)
        return folder

    def _start(self, project: Path, kill: Kill | None) -> Any:
        process = self._context.Process(target=run, args=(project, kill))
        process.start()
        return process


def trials(folder: Path, seed: int, go_on: Callable[[int], bool]) -> Iterator[Trial]:
    """Yields trials as long as wanted.

    Args:
        folder: An empty folder.
        seed: Of all random moments.
        go_on: Told how many trials there were.
    """
    victims, number = Victims(folder), 0
    while go_on(number):
        yield victims.trial(number, random.Random(f"{seed} {number}"))
        number += 1


@dataclass(frozen=True)
class Arguments:
    """Kills runs at random moments and compares what they end with to an undisturbed run."""

    seconds: float = 300
    """Time to begin new trials in."""
    seed: int = 0
    """Another seed kills at other moments."""


def main(arguments: Arguments) -> int:
    """Prints what happened; returns how many runs were lost."""
    end, kills, lost, tried = time.monotonic() + arguments.seconds, Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials(Path(folder), arguments.seed, lambda _: time.monotonic() < end):
            tried += 1
            kills.update(kill.way for kill in trial.kills)
            if trial.problem:
                lost += 1
                print(f"lost: {trial.problem}, after {trial.kills}", flush=True)
    for way in WAYS:
        print(f"{way:34}{kills[way]:6}")
    print(f"{'kills':34}{kills.total():6}")
    print(f"{'runs':34}{tried:6}")
    print(f"{'ended like an undisturbed run':34}{tried - lost:6}")
    print(f"{'lost':34}{lost:6}")
    return lost


if __name__ == "__main__":
    sys.exit(min(main(tyro.cli(Arguments)), 1))
