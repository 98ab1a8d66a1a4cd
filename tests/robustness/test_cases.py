"""Bad input ends in one message, legal input in its result, and nothing is left half written."""

import io
import sys
from pathlib import Path

import pytest
import torch

from all_cases import CASES
from case import Case, flaws
from cpsl.training import Process, logger, start_logging
from project import RefusedError, copy_project, run
from random_breaks import lost, try_at_random

pytestmark = pytest.mark.filterwarnings("ignore")


def test_cases_have_different_names() -> None:
    names = [(case.kind, case.name) for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_bad_input_is_named(case: Case, tmp_path: Path) -> None:
    assert not flaws(case, tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_a_broken_file_is_named_or_does_no_harm(seed: int, tmp_path: Path) -> None:
    done, problem = try_at_random(seed, tmp_path)
    assert not problem, done


def leave_damaged_metrics() -> None:
    Path("run").mkdir()
    Path("run", "metrics.json").write_text("{")


@pytest.mark.parametrize(
    ("act", "names", "flaw"),
    [
        (lambda: None, "x", "is accepted"),
        (lambda: [][0], "list", "raises IndexError"),
        (lambda: int("x"), "y", "does not name y"),
        (lambda: int("x"), (), "raises ValueError"),
        (leave_damaged_metrics, (), "leaves run/metrics.json incomplete"),
    ],
)
def test_a_bad_answer_is_detected(act, names: str | tuple[str, ...], flaw: str, tmp_path: Path) -> None:
    (found,) = flaws(Case("data", "an answer", (), names, act), tmp_path)
    assert found.startswith(flaw)


def test_a_lost_run_is_detected(tmp_path: Path) -> None:
    copy_project(tmp_path, finished=True)
    broken = Path("run/warmup/model.pt")
    assert not lost(None, broken, tmp_path)
    assert not lost(RefusedError("run/warmup/model.pt"), broken, tmp_path)
    assert "traceback" in lost(KeyError("model"), broken, tmp_path)
    assert "traceback" in lost(RefusedError("Traceback: model"), broken, tmp_path)
    assert "not name" in lost(RefusedError("error: something"), broken, tmp_path)
    path = tmp_path / "run" / "distill_2" / "model.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"]["head.classify.weight"][0, 0] += 1
    torch.save(saved, path)
    assert "other weights" in lost(None, broken, tmp_path)
    (tmp_path / "run" / "metrics.json").write_text('{"warmup": {"miou": NaN}}')
    assert "not finite" in lost(None, broken, tmp_path)


def test_a_refused_command_raises(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=tmp_path.name):
        run(f"export --weights {tmp_path} --output x.pkl")


def test_letters_unknown_to_the_terminal_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    start_logging(tmp_path, Process(torch.device("cpu")))
    logger.info("mIoU – of straße")
    sys.stdout.flush()
    logger.handlers.clear()
    assert written.getvalue() == b"mIoU \\u2013 of stra\\xdfe\n"
    assert "straße" in (tmp_path / "log.txt").read_text(encoding="utf-8")
