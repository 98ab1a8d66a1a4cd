"""Bad input ends in one message, legal input in its result, and nothing is left half written."""

import io
import sys
from pathlib import Path

import pytest
import torch

from cpsl.engine import Process, logger, start_logging
from healthy import Ended, copy_project, run_program
from inputs import Case, cases, try_case
from random_breaks import lost, try_at_random

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


def test_a_trial_that_is_lost_is_noticed(tmp_path: Path) -> None:
    copy_project(tmp_path, finished=True)
    broken = Path("run/warmup/model.pt")
    assert not lost(Ended(0, "", None), broken, tmp_path)
    assert not lost(Ended(1, "error: run/warmup/model.pt cannot be read", None), broken, tmp_path)
    assert "traceback" in lost(Ended(1, "", KeyError("model")), broken, tmp_path)
    assert "traceback" in lost(Ended(1, "Traceback: model", None), broken, tmp_path)
    assert "does not name" in lost(Ended(1, "error: something", None), broken, tmp_path)
    path = tmp_path / "run" / "distill_2" / "model.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"]["head.classify.weight"][0, 0] += 1
    torch.save(saved, path)
    assert "other weights" in lost(Ended(0, "", None), broken, tmp_path)
    (tmp_path / "run" / "metrics.json").write_text('{"warmup": {"miou": NaN}}')
    assert "not finite" in lost(Ended(0, "", None), broken, tmp_path)


def test_letters_that_a_terminal_does_not_know_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    start_logging(tmp_path, Process(torch.device("cpu")))
    logger.info("mIoU – of straße")
    sys.stdout.flush()
    logger.handlers.clear()
    assert written.getvalue() == b"mIoU \\u2013 of stra\\xdfe\n"
    assert "straße" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "Traceback" not in capsys.readouterr().err


def test_a_program_that_breaks_is_noticed(tmp_path: Path) -> None:
    ended = run_program("to_release.py", "--weights", str(tmp_path), "--output", "x")
    assert ended.code
    assert ended.error is None
