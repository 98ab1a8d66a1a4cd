"""Everything that can go wrong, tried: bad input, files broken at random, runs killed at random.

    make faults          # python faults --minutes 12

Prints how many faults were tried, how many were survived (a message that a person can act on, or the result
of an undisturbed run), and how many were lost; ends with an error if any was.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from inputs import cases, try_case
from kills import Victims
from random_breaks import try_at_random


@dataclass(frozen=True)
class Arguments:
    """Tries faults for some minutes."""

    minutes: float = 12
    """Time to begin new trials in, half of it for broken files and half for kills."""
    seed: int = 0
    """Of all random breaks and moments."""


def bad_inputs() -> Iterator[str]:
    """Tries the table of bad input; yields what is wrong with each answer, nothing if all is well."""
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            result = try_case(case, Path(folder))
        yield f"{case.area}: {case.name}: {'; '.join(result.flaws)}" if result.flaws else ""


def broken_files(seed: int, end: float) -> Iterator[str]:
    """Breaks a file of a run at random, until some time; yields what was lost, nothing if it survived."""
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            trial = try_at_random(seed, Path(folder))
        yield f"{trial.broken}: {trial.lost} (seed {seed})" if trial.lost else ""
        seed += 1


def kills(seed: int, end: float) -> Iterator[str]:
    """Kills runs at random, until some time; yields the problem of the run that each kill belongs to."""
    with tempfile.TemporaryDirectory() as folder:
        victims, number = Victims(Path(folder)), 0
        while time.monotonic() < end:
            trial = victims.trial(number, random.Random(f"{seed} {number}"))
            # A run that came through has survived all its kills; of a lost one the last is to blame.
            yield from [""] * (len(trial.kills) - bool(trial.problem))
            if trial.problem:
                yield f"run {number}: {trial.problem}, after {trial.kills}"
            number += 1


def main(arguments: Arguments) -> None:
    """Tries all kinds of faults and prints the table."""
    begun, half = time.monotonic(), 30 * arguments.minutes
    kinds = {
        "bad input": bad_inputs(),
        "files broken at random": broken_files(arguments.seed, begun + half),
        "kills at random moments": kills(arguments.seed, begun + 2 * half),
    }
    tried, lost = Counter[str](), Counter[str]()
    for kind, problems in kinds.items():
        print(f"{kind} ...", flush=True)
        for problem in problems:
            tried[kind] += 1
            if problem:
                lost[kind] += 1
                print(f"  lost: {problem}", flush=True)
    print(f"\n{'faults':28}{'tried':>8}{'survived':>10}{'lost':>6}")
    for kind in kinds:
        print(f"{kind:28}{tried[kind]:8}{tried[kind] - lost[kind]:10}{lost[kind]:6}")
    print(f"{'together':28}{tried.total():8}{tried.total() - lost.total():10}{lost.total():6}")
    sys.exit(min(lost.total(), 1))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
