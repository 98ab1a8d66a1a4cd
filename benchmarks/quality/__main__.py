"""The benchmark of quality: adapts networks to shifts with known labels, by our recipe and by alternatives.

    make quality                        # python benchmarks/quality
    python benchmarks/quality --quick   # tiny runs, in minutes, to try that everything works

It is resumable: finished runs are skipped, interrupted ones go on. The tables of the shifts are printed and
written to OUTPUT/quality.md. `--store` adds the results to those in the repository, whose tables are those of
docs/quality.md.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from cpsl.app.command_line import read_layers
from quality.measured import FOLDER, PAGE, Record, begin, with_tables, write_file
from quality.results import read_result
from quality.rows import Row, rows
from quality.runs import Run, execute, plan
from quality.shifts import shifts


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser("python benchmarks/quality", description="Measures the quality.")
    add = parser.add_argument
    add("--shifts", nargs="+", metavar="NAME", help="all if omitted")
    add(
        "--rows",
        nargs="+",
        metavar="NAME",
        help="all if omitted; those of their source-only networks run too",
    )
    add("--seeds", nargs="+", type=int, metavar="N", help="0 1 2 if omitted")
    add("--photographs", type=Path, default=os.environ.get("PHOTOGRAPHS"), metavar="FOLDER")
    add("--output", type=Path, metavar="FOLDER", help="runs/quality if omitted")
    add("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    add("--steps", type=float, metavar="FACTOR", help="of the iterations of all stages")
    add("--quick", action="store_true", help="few images, steps and one seed")
    add("--report", action="store_true", help="train nothing, only write the tables of the finished runs")
    add("--list", action="store_true", help="list shifts and rows, and what is unfinished")
    add("--store", action="store_true", help="add the results to those of the repository and to its page")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.seeds = options.seeds or ([0] if quick else [0, 1, 2])
    options.output = options.output or Path("runs/quality_quick" if quick else "runs/quality")
    options.steps = options.steps or (0.005 if quick else 1.0)
    if options.store and (quick or options.steps != 1):
        parser.error("--store is for runs of full length, without --quick and --steps")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    if options.photographs is not None:
        options.photographs = Path(options.photographs)
    return options


def select(known: Iterable[str], names: Sequence[str] | None, what: str) -> list[str]:
    """Returns the wanted names, all if there are none; exits if one is unknown."""
    if unknown := [name for name in names or () if name not in known]:
        raise SystemExit(f"{what}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if names is None or name in names]


class Task(NamedTuple):
    """The runs of a shift, and where their results belong."""

    title: str
    rows: list[Row]
    runs: list[Run]
    record: Record


def prepare(options: argparse.Namespace) -> dict[str, Task]:
    """Writes the data and the settings, and returns the task of each shift.

    Raises:
        ValueError: With --store, the repository holds results of other settings.
    """
    tasks = {}
    known = shifts(options.photographs)
    for name in select(known, options.shifts, "--shifts"):
        shift = known[name]
        settings = shift.prepare(options.output / "data" / name, options.quick)
        config = read_layers([str(settings)])
        of_shift = {row.name: row for row in rows(config)}
        chosen = [of_shift[row] for row in select(of_shift, options.rows, f"--rows, shift {name}")]
        runs = plan(settings, options.output / name, chosen, options.seeds, options.steps)
        every = [*of_shift.values(), *(row.source for row in of_shift.values())]
        record = begin(shift, config, every, FOLDER / f"{name}.json" if options.store else None)
        tasks[name] = Task(shift.title, every, runs, record)
    return tasks


def train(runs: Sequence[Run], jobs: int) -> int:
    """Executes runs, prints the result of each, and returns the number of those that failed."""
    failed = 0
    for count, (run, problem) in enumerate(execute(runs, jobs), 1):
        failed += bool(problem)
        result = None if problem else read_result(run)
        text = f"mIoU {result.miou:.1f}, {result.minutes:.1f} minutes" if result else f"failed: {problem}"
        print(f"[{count}/{len(runs)}] {run.folder}: {text}", flush=True)
    return failed


def report(tasks: dict[str, Task], options: argparse.Namespace) -> None:
    """Prints and writes the tables of the finished runs, with --store those of all stored results."""
    page = []
    for name, task in tasks.items():
        results = [read_result(run) for run in task.runs if run.finished]
        if results:
            record = task.record.added(results, task.rows)
            if options.store:
                write_file(FOLDER / f"{name}.json", record)
            page.append(f"## {name}: {task.title}\n\n{record.tables}\n")
    if options.store:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), FOLDER), encoding="utf-8")
    print("\n".join(page))
    (options.output / "quality.md").write_text("\n".join(page), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Executes the runs and writes the tables; the exit code is 1 if a run failed."""
    options = parse_arguments(arguments)
    try:
        tasks = prepare(options)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    every = [run for task in tasks.values() for run in task.runs]
    if options.list:
        for run in every:
            print(f"{'finished' if run.finished else '        '} {run.folder}: {run.row.title}")
        return
    if outdated := [str(run.folder) for run in every if run.outdated]:
        folders = "\n".join(outdated)
        raise SystemExit(f"results of other settings, delete them or choose another --output:\n{folders}")
    failed = 0 if options.report else train(every, options.jobs)
    report(tasks, options)
    if failed:
        raise SystemExit(f"{failed} of {len(every)} runs failed")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None
