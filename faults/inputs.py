"""Bad input of every kind, and what the programs and the library say to it.

    python faults/inputs.py             # prints how many cases were answered well, by area
    python faults/inputs.py --area data

A case breaks something in a tiny healthy project and runs a program in this process, or calls the library. It
is answered well if it ends in one message that names what is wrong, without a traceback, with an exit code
other than zero, and nothing is left half written; or, where the input is legal, in the result that the case
defines.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from bad_calls import CALLS
from case import Case, LeftError, gives_message, nothing
from data_cases import data_cases, label_cases
from environment_cases import environment_cases
from healthy import copy_project, inside
from run_cases import checkpoint_cases, run_folder_cases, stored_label_cases
from setting_cases import setting_cases


class Result(NamedTuple):
    """How a case ended.

    Attributes:
        case: The case.
        flaws: What is wrong with the answer; none if it was answered well.
        said: What was said.
        seconds: What it took.
    """

    case: Case
    flaws: list[str]
    said: str
    seconds: float


def cases() -> list[Case]:
    """Returns all cases."""
    return [
        *data_cases(),
        *label_cases(),
        *stored_label_cases(),
        *setting_cases(),
        *checkpoint_cases(),
        *run_folder_cases(),
        *environment_cases(),
        *library_cases(),
    ]


def library_cases() -> list[Case]:
    """Returns the cases."""
    return [Case("library", name, nothing, gives_message(call), says) for name, call, says in CALLS]


def try_case(case: Case, folder: Path) -> Result:
    """Prepares a case in an empty folder, runs it and judges the answer."""
    began = time.perf_counter()
    copy_project(folder, case.finished)
    flaws: list[str] = []
    said = ""
    with inside(folder), contextlib.redirect_stderr(io.StringIO()):
        case.breaks()
        before = half_written(folder)
        try:
            case.invoke()
        except LeftError as left:
            said = str(left)
        except (ValueError, TypeError, OSError) as error:
            said = str(error)
            if case.area != "library" and not isinstance(error, ValueError | OSError):
                flaws.append(f"raises {type(error).__name__}")
        except AssertionError as error:
            flaws.append(f"the result is another: {error}")
        except Exception as error:
            flaws.append(f"raises {type(error).__name__}: {error}\n{_last_lines(error)}")
    if case.says and not said and not flaws:
        flaws.append("nothing was said")
    if not case.says and said:
        flaws.append(f"legal input is refused: {said}")
    flaws += [f"does not say {text!r}" for text in case.says if said and not re.search(text, said)]
    if "Traceback" in said:
        flaws.append("shows a traceback")
    flaws += [f"left half written: {path}" for path in half_written(folder) if path not in before]
    return Result(case, flaws, said, time.perf_counter() - began)


def half_written(folder: Path) -> list[str]:
    """Lists what a run left in its folder that is not whole."""
    wrong = [str(path.relative_to(folder)) for path in folder.rglob("*.partial")]
    wrong += [str(path.relative_to(folder)) for path in folder.rglob(".rehearsal-*")]
    for path in folder.glob("run*/**/metrics.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            wrong.append(str(path.relative_to(folder)))
    for path in folder.glob("run*/report.html"):
        if path.is_file() and not path.read_bytes().rstrip().endswith(b"</html>"):
            wrong.append(str(path.relative_to(folder)))
    for path in folder.glob("run*/**/*.pt"):
        if not zipfile.is_zipfile(path):
            wrong.append(str(path.relative_to(folder)))
    return wrong


def _last_lines(error: Exception) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-2:])


class Arguments(NamedTuple):
    """Tries bad input."""

    area: str = ""
    """Only the cases of this area."""
    name: str = ""
    """Only the cases whose name contains this."""


def main(arguments: Arguments) -> None:
    """Tries the cases and prints what came of them; ends with an error if any was not answered well."""
    tried, well = Counter[str](), Counter[str]()
    for case in cases():
        if arguments.area not in ("", case.area) or arguments.name not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = try_case(case, Path(folder))
        tried[case.area] += 1
        well[case.area] += not result.flaws
        if result.flaws:
            print(
                f"{case.area}: {case.name}: {'; '.join(result.flaws)}\n  said: {result.said.strip()}\n"
            )
    print(f"{'area':16}{'tried':>8}{'well':>8}{'failed':>8}")
    for area, count in tried.items():
        print(f"{area:16}{count:8}{well[area]:8}{count - well[area]:8}")
    total, good = tried.total(), well.total()
    print(f"{'together':16}{total:8}{good:8}{total - good:8}")
    if good < total:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
