"""Breaks a file of a healthy project at random, again and again, and looks at what the pipeline makes of it.

    python faults/random_breaks.py --trials 50 --seed 0
    python faults/random_breaks.py --seconds 300

It survives if it ends in a message that names the file, or with the right result: the weights that it would
have had. Images, labels and settings may be broken into others that are legal; then the result must be whole.
"""

import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from healthy import Ended, copy_project, finished_project, inside, run_program
from inputs import half_written

STAGES = ("source_only", "warmup", "self_label", "distill_1", "distill_2")


class Trial(NamedTuple):
    """What was broken, and what came of it.

    Attributes:
        seed: Of everything random about it.
        broken: What was done to which file.
        lost: What is wrong with how it ended; empty if it survived.
        said: What was said.
    """

    seed: int
    broken: str
    lost: str
    said: str


def flip(data: bytes, chance: random.Random) -> bytes:
    """Flips some bits."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """Keeps the beginning."""
    return data[: chance.randrange(len(data) + 1)]


def garble(data: bytes, chance: random.Random) -> bytes:
    """Overwrites a part with random bytes."""
    place = chance.randrange(len(data) + 1)
    return data[:place] + chance.randbytes(chance.randint(1, 64)) + data[place + 64 :]


def replace(data: bytes, chance: random.Random) -> bytes:
    """Returns something else altogether."""
    return chance.choice([b"", b"\0" * len(data), chance.randbytes(100), b"{}", b"[]", b"hello\n"])


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, cut, garble, replace)


def undo_stages(run: Path, chance: random.Random) -> None:
    """Makes a run one that is not finished: some of the last stages have not been evaluated yet."""
    for stage in STAGES[chance.randint(1, len(STAGES)) :]:
        (run / stage / "metrics.json").unlink()
        if chance.random() < 0.5:
            (run / stage / "model.pt").unlink()


def break_at_random(folder: Path, chance: random.Random) -> tuple[Path, str]:
    """Changes or deletes any file; returns which, and what was done to it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path = chance.choice([path for path in files if "tfevents" not in path.name])
    name = path.relative_to(folder)
    if chance.random() < 0.2:
        path.unlink()
        return name, f"delete {name}"
    change = chance.choice(CHANGES)
    path.write_bytes(change(path.read_bytes(), chance))
    return name, f"{change.__name__} {name}"


def try_at_random(seed: int, folder: Path) -> Trial:
    """Breaks something in a project in an empty folder, runs the pipeline and judges how it ends."""
    chance = random.Random(seed)
    copy_project(folder, finished=True)
    undo_stages(folder / "run", chance)
    path, broken = break_at_random(folder, chance)
    before = half_written(folder)
    with inside(folder):
        ended = run_program("adapt.py", "--config", "settings.toml")
    half = [left for left in half_written(folder) if left not in before]
    problem = f"left half written: {', '.join(half)}" if half else lost(ended, path, folder)
    return Trial(seed, broken, problem, ended.said)


def lost(ended: Ended, path: Path, folder: Path) -> str:
    """Says what is wrong with how a run ended after a file was broken; nothing if all is well."""
    if ended.error is not None:
        return f"a traceback: {type(ended.error).__name__}: {ended.error}"
    if "Traceback" in ended.said:
        return "a traceback in what was said"
    if ended.code:
        named = path.stem in ended.said or path.parts[0] == "settings.toml"
        return "" if named else "the message does not name the file"
    metrics = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
    if not _finite(metrics):
        return "metrics that are not finite"
    if path.parts[0] != "run" or path.name == "config.toml":
        return ""
    try:
        ours, theirs = (_weights(root / "run") for root in (folder, finished_project()))
    except Exception as error:  # torch raises nearly anything on broken bytes
        return f"no model that can be read, and not a word: {error}"
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    return "" if same else "other weights, and not a word"


def _weights(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "distill_2" / "model.pt", weights_only=True)["model"]
    return state


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


class Arguments(NamedTuple):
    """Breaks things at random."""

    trials: int = 0
    """How many times; 0 goes on until the time is over."""
    seconds: float = 60
    """How long, if `trials` is 0."""
    seed: int = 0
    """Of the first trial; each further one has the next."""


def main(arguments: Arguments) -> None:
    """Prints what was lost, and how many survived; ends with an error if anything was lost."""
    began, done, failed = time.monotonic(), 0, 0
    while done < arguments.trials or (
        not arguments.trials and time.monotonic() - began < arguments.seconds
    ):
        with tempfile.TemporaryDirectory() as folder:
            trial = try_at_random(arguments.seed + done, Path(folder))
        done += 1
        if trial.lost:
            failed += 1
            print(f"seed {trial.seed}: {trial.broken}: {trial.lost}\n  said: {trial.said[-500:]}")
    print(f"{done} trials, {done - failed} survived, {failed} lost")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
