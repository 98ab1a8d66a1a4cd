"""A file of a project with an unfinished run is broken at random, then the same command is given again.

The run survives if it ends with a message that names the file, or with the weights of an undisturbed run. A
broken image, label or settings file may be another legal one: then the run must end with finite metrics.
"""

import contextlib
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import fingerprint
from project import STAGES, RefusedError, copy_project, finished_project, incomplete_files, read_json, run

Change = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, chance: random.Random) -> bytes:
    """Flips some bits."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(data: bytes, chance: random.Random) -> bytes:
    """Keeps the beginning."""
    return data[: chance.randrange(len(data) + 1)]


def overwrite(data: bytes, chance: random.Random) -> bytes:
    """Overwrites a part with random bytes."""
    start = chance.randrange(len(data) + 1)
    return data[:start] + chance.randbytes(chance.randint(1, 64)) + data[start + 64 :]


def replace(data: bytes, chance: random.Random) -> bytes:
    """Returns something else altogether."""
    return chance.choice([b"", b"\0" * len(data), chance.randbytes(100), b"{}", b"[]", b"hello\n"])


CHANGES: tuple[Change, ...] = (flip, truncate, overwrite, replace)


def try_at_random(seed: int, folder: Path) -> tuple[str, str]:
    """Breaks a file of a project and runs the pipeline; returns what was done and the problem, if any."""
    chance = random.Random(seed)
    copy_project(folder, finished=True)
    for stage in STAGES[chance.randint(1, len(STAGES)) :]:  # these are not finished
        (folder / "run" / stage / "metrics.json").unlink()
        if chance.random() < 0.5:
            (folder / "run" / stage / "model.pt").unlink()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice([path for path in files if "tfevents" not in path.name])
    if chance.random() < 0.2:
        done = "delete"
        path.unlink()
    else:
        change = chance.choice(CHANGES)
        done = change.__name__
        path.write_bytes(change(path.read_bytes(), chance))
    broken, before, error = path.relative_to(folder), incomplete_files(folder), None
    with contextlib.chdir(folder):
        try:
            run("adapt")
        except Exception as raised:
            error = raised
    if left := incomplete_files(folder) - before:
        return f"{done} {broken}", f"leaves {left} incomplete"
    return f"{done} {broken}", lost(error, broken, folder)


def lost(error: Exception | None, broken: Path, folder: Path) -> str:
    """Returns what is wrong with the outcome of a run after a file was broken; "" if it survived."""
    if error is not None:
        message = str(error)
        if not isinstance(error, RefusedError) or "Traceback" in message:
            return f"a traceback: {error!r}"
        named = broken.stem in message or broken.name == "settings.toml"
        return "" if named else f"the message does not name the file: {message[-300:]}"
    if not _finite(read_json(folder / "run" / "metrics.json")):
        return "metrics are not finite"
    if broken.parts[0] != "run" or broken.name == "config.toml":
        return ""
    weights = Path("run", "distill_2", "model.pt")
    same = fingerprint(folder / weights) == fingerprint(finished_project() / weights)
    return "" if same else "other weights without a message"


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)
