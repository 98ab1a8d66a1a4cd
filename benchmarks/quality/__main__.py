"""The benchmark of quality: adapts networks to shifts with known labels, by our recipe and by alternatives.

    make quality                        # python benchmarks/quality
    python benchmarks/quality --quick   # tiny runs, in minutes, to try that everything works

It is resumable: finished runs are skipped, interrupted ones go on. The tables of the shifts are printed and
written to OUTPUT/quality.md.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cpsl.app.command_line import read_layers
from quality.results import read_result
from quality.rows import rows
from quality.runs import Run, execute, plan
from quality.shifts import shifts
from quality.tables import insert, quality_table, score_table


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
    add("--docs", type=Path, metavar="FILE", help="page that receives the tables as well")
    add("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    add("--steps", type=float, metavar="FACTOR", help="of the iterations of all stages")
    add("--quick", action="store_true", help="few images, steps and one seed")
    add("--report", action="store_true", help="train nothing, only write the tables of the finished runs")
    add("--list", action="store_true", help="list shifts and rows, and what is unfinished")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.seeds = options.seeds or ([0] if quick else [0, 1, 2])
    options.output = options.output or Path("runs/quality_quick" if quick else "runs/quality")
    options.steps = options.steps or (0.005 if quick else 1.0)
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


def prepare(options: argparse.Namespace) -> dict[str, list[Run]]:
    """Writes the data and the settings, and returns the runs of each shift."""
    runs = {}
    known = shifts(options.photographs)
    for name in select(known, options.shifts, "--shifts"):
        settings = known[name].prepare(options.output / "data" / name, options.quick)
        of_shift = {row.name: row for row in rows(read_layers([str(settings)]))}
        chosen = [of_shift[row] for row in select(of_shift, options.rows, f"--rows, shift {name}")]
        runs[name] = plan(settings, options.output / name, chosen, options.seeds, options.steps)
    return runs


def train(runs: Sequence[Run], jobs: int) -> int:
    """Executes runs, prints the result of each, and returns the number of those that failed."""
    failed = 0
    for count, (run, problem) in enumerate(execute(runs, jobs), 1):
        failed += bool(problem)
        result = None if problem else read_result(run)
        text = f"mIoU {result.miou:.1f}, {result.minutes:.1f} minutes" if result else f"failed: {problem}"
        print(f"[{count}/{len(runs)}] {run.folder}: {text}", flush=True)
    return failed


def report(runs: dict[str, list[Run]], options: argparse.Namespace) -> None:
    """Prints the tables of the finished runs, and writes them."""
    known, page = shifts(options.photographs), []
    for name, of_shift in runs.items():
        results = [read_result(run) for run in of_shift if run.finished]
        if results:
            tables = f"{quality_table(results, known[name].rare)}\n\n{score_table(results)}"
            page.append(f"## {name}: {known[name].title}\n\n{tables}\n")
            if options.docs:
                text = insert(options.docs.read_text(encoding="utf-8"), name, tables)
                options.docs.write_text(text, encoding="utf-8")
    print("\n".join(page))
    (options.output / "quality.md").write_text("\n".join(page), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Executes the runs and writes the tables; the exit code is 1 if a run failed."""
    options = parse_arguments(arguments)
    runs = prepare(options)
    every = [run for of_shift in runs.values() for run in of_shift]
    if options.list:
        for run in every:
            print(f"{'finished' if run.finished else '        '} {run.folder}: {run.row.title}")
        return
    if outdated := [str(run.folder) for run in every if run.outdated]:
        folders = "\n".join(outdated)
        raise SystemExit(f"results of other settings, delete them or choose another --output:\n{folders}")
    failed = 0 if options.report else train(every, options.jobs)
    report(runs, options)
    if failed:
        raise SystemExit(f"{failed} of {len(every)} runs failed")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None
