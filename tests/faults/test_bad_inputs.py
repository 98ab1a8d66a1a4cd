"""Bad input ends in one message, legal input in its result, and nothing is left half written."""

from pathlib import Path

import pytest

from healthy import run_program
from inputs import Case, cases, try_case
from random_breaks import try_at_random

CASES = cases()


def test_cases_have_names_of_their_own() -> None:
    names = [(case.area, case.name) for case in CASES]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.area}: {case.name}")
def test_bad_input_is_answered_well(case: Case, tmp_path: Path) -> None:
    result = try_case(case, tmp_path)
    assert not result.flaws, result.said


@pytest.mark.parametrize("seed", range(8))
def test_whatever_breaks_is_named_or_does_no_harm(seed: int, tmp_path: Path) -> None:
    trial = try_at_random(seed, tmp_path)
    assert not trial.lost, f"{trial.broken}: {trial.said}"


def legal(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "metrics.json").write_text("{")


@pytest.mark.parametrize(
    ("act", "says", "flaw"),
    [
        (lambda: None, ("no such words",), "nothing was said"),
        (lambda: [][0], (), "raises IndexError"),
        (lambda: int("x"), ("no such words",), "does not say"),
        (lambda: int("x"), (), "legal input is refused"),
        (lambda: legal(Path()), (), "left half written: run/metrics.json"),
    ],
)
def test_a_bad_answer_is_noticed(act, says, flaw, tmp_path: Path) -> None:
    result = try_case(Case("data", "an answer", lambda: None, act, says), tmp_path)
    assert any(flaw in found for found in result.flaws)


def test_a_program_that_breaks_is_noticed(tmp_path: Path) -> None:
    ended = run_program("to_release.py", "--weights", str(tmp_path), "--output", "x")
    assert ended.code
    assert ended.error is None
