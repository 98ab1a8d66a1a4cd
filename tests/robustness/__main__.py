"""Tries all faults, and prints for each kind how many were tried, survived and lost.

    make faults                             # python tests/robustness --minutes 12 --seed 0

A fault is survived if it ends in a message that names what is wrong, or in the result of an undisturbed run.
The exit code is 1 if any is lost.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from all_cases import CASES
from case import flaws
from kills import Victims
from random_breaks import try_at_random

Tried = Iterator[tuple[str, str]]
"""Kind of each fault, and what was lost by it; an empty text if nothing."""


def bad_input() -> Tried:
    """Tries the tables of cases."""
    for case in CASES:
        with TemporaryDirectory() as folder:
            found = flaws(case, Path(folder))
        yield case.kind, f"{case.name} {'; '.join(found)}" if found else ""


def broken_files(seed: int, seconds: float) -> Tried:
    """Breaks files at random, for some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with TemporaryDirectory() as folder:
            done, problem = try_at_random(seed, Path(folder))
        kind = f"broken files: {done.partition(' ')[0]}"
        yield kind, f"{done}: {problem} (seed {seed})" if problem else ""
        seed += 1


def killed_runs(seed: int, seconds: float) -> Tried:
    """Kills runs at random, for some time; of a lost run the last kill is to blame."""
    end = time.monotonic() + seconds
    with TemporaryDirectory() as folder:
        victims, number = Victims(Path(folder)), 0
        while time.monotonic() < end:
            kills, problem = victims.kill(number, random.Random(f"{seed} {number}"))
            yield from ((f"kills: {kill.way}", "") for kill in kills[:-1])
            if kills or problem:
                way = kills[-1].way if kills else "none"
                yield f"kills: {way}", f"run {number}: {problem}, {kills}" if problem else ""
            number += 1


def main() -> None:
    """Tries all kinds of faults and prints the table."""
    parser = argparse.ArgumentParser("python tests/robustness", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12, help="time for random faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random faults")
    options = parser.parse_args()
    seed, half = options.seed, 30 * options.minutes
    tried, lost = Counter[str](), Counter[str]()
    for faults in (bad_input(), broken_files(seed, half), killed_runs(seed, half)):
        for kind, problem in faults:
            if not tried[kind]:
                print(f"{kind} ...", flush=True)
            tried[kind] += 1
            if problem:
                lost[kind] += 1
                print(f"  lost: {problem}", flush=True)
    print(f"\n{'kind':36}{'tried':>8}{'survived':>10}{'lost':>6}")
    tried["together"], lost["together"] = tried.total(), lost.total()
    for kind, number in tried.items():
        print(f"{kind:36}{number:8}{number - lost[kind]:10}{lost[kind]:6}")
    sys.exit(min(lost.total(), 1))


if __name__ == "__main__":
    main()
