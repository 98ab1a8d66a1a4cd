"""Execution of the runs: each is a process with a file of settings, finished ones are skipped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpsl.app.command_line import read_layers
from cpsl.app.config import METHODS, STAGES, Config
from cpsl.app.run import FREE_SETTINGS
from cpsl.app.settings import UsageError, override

from .rows import Row

SOURCE_PROGRAM = Path(__file__).with_name("source_only.py")


@dataclass(frozen=True)
class Run:
    """A row of a shift with a seed.

    Attributes:
        row: Its row.
        seed: Its seed.
        config: All settings.
        source: The run that trains the network it starts from; None trains on the source only.
    """

    row: Row
    seed: int
    config: Config
    source: "Run | None"

    @property
    def folder(self) -> Path:
        """Folder of the results; beside it are FOLDER.toml, its settings, and FOLDER.txt, its output."""
        return self.config.output

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of the run in order."""
        return METHODS[self.config.method] if self.row.adapts else ("source_only",)

    @property
    def finished(self) -> bool:
        """Whether there are results."""
        return (self.folder / ("metrics.json" if self.row.adapts else "source_only/metrics.json")).exists()

    @property
    def outdated(self) -> bool:
        """Whether the folder holds results of other settings."""
        if not any(self.folder.glob("*/metrics.json")):
            return False
        try:
            before = read_layers([str(self.folder / "config.toml")])
        except UsageError:  # settings of another version
            return True
        return replace(before, **{name: getattr(self.config, name) for name in FREE_SETTINGS}) != self.config

    @property
    def command(self) -> list[str]:
        """The command of the run."""
        program = ["-m", "cpsl", "adapt"] if self.row.adapts else [str(SOURCE_PROGRAM)]
        return [sys.executable, *program, "--config", f"{self.folder}.toml"]

    def remove_unneeded(self) -> None:
        """Removes large files that a finished run does not need: there are hundreds of runs."""
        unneeded = [*self.folder.glob("*/checkpoint.pt*")]
        if self.source is not None:
            unneeded.append(self.folder / "source_only" / "model.pt")  # a copy
        for path in unneeded:
            path.unlink(missing_ok=True)


def plan(shift: Path, output: Path, rows: Iterable[Row], seeds: Sequence[int], steps: float = 1) -> list[Run]:
    """Writes the settings of runs, and returns the runs, each after the one whose network it starts from.

    Args:
        shift: Settings of the shift.
        output: Folder of the shift's results.
        rows: The rows.
        seeds: The seeds, all rows of one before the next.
        steps: Factor of the iterations of all stages.

    Raises:
        UsageError: Settings do not exist or are out of range.
    """
    runs: dict[tuple[str, int], Run] = {}

    def add(row: Row, seed: int) -> Run:
        if (row.name, seed) not in runs:
            source = add(row.source, seed) if row.adapts else None
            runs[row.name, seed] = _written(
                row, seed, shift, output / row.name / f"seed_{seed}", source, steps
            )
        return runs[row.name, seed]

    for seed in seeds:
        for row in rows:
            add(row, seed)
    return [*runs.values()]


def _written(row: Row, seed: int, shift: Path, folder: Path, source: Run | None, steps: float) -> Run:
    settings = {**row.settings, "seed": seed, "output": str(folder)}
    if source is not None:
        settings["init_from.source_only"] = str(source.folder / "source_only" / "model.pt")
    if steps != 1:
        config = override(read_layers([str(shift)]), nested(settings), str(shift))
        for name in dict.fromkeys("distill" if stage.startswith("distill") else stage for stage in STAGES):
            of_stage = config.settings_of("distill_1" if name == "distill" else name)
            settings[f"{name}.iterations"] = max(round(steps * of_stage.iterations), 1)
        settings["online.warmup_iterations"] = round(steps * config.online.warmup_iterations)
    lines = [f"# {row.title}", f"base = {json.dumps(str(shift))}"]
    # Texts, numbers and truth values are written in TOML as in JSON.
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = Path(f"{folder}.toml")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Run(row, seed, read_layers([str(file)]), source)


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted name as nested tables.

    Example:
        >>> nested({"seed": 1, "views.crop": [16, 16], "views.width": 32})
        {'seed': 1, 'views': {'crop': [16, 16], 'width': 32}}
    """
    tables: dict[str, Any] = {}
    for key, value in settings.items():
        *path, name = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
    return tables


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, str]]:
    """Executes runs, `jobs` at a time, and yields each with its problem, "" if there is none.

    If it is interrupted, the processes write checkpoints, from which the next call goes on.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(max(cores() // jobs, 1))}
    processes: list[subprocess.Popen[bytes]] = []
    failed: set[Path] = set()

    def problem_of(run: Run) -> str:
        if run.source is not None and run.source.folder in failed:
            return "its source-only network is missing"
        if run.finished:
            return ""
        with Path(f"{run.folder}.txt").open("ab") as log:
            process = subprocess.Popen(run.command, env=environment, stdout=log, stderr=log)
            processes.append(process)
            if code := process.wait():
                failed.add(run.folder)
                return f"exit code {code}: {run.folder}.txt"
        run.remove_unneeded()
        return ""

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    waiting, running = list(runs), dict[Future[str], Run]()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                unfinished = {run.folder for run in [*waiting, *running.values()]}
                ready = [run for run in waiting if run.source is None or run.source.folder not in unfinished]
                for run in ready[: jobs - len(running)]:
                    waiting.remove(run)
                    running[pool.submit(problem_of, run)] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            raise
