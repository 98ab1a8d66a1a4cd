"""Runs that are killed at random moments and in the middle of writing end like an undisturbed one."""

from pathlib import Path

import pytest
import torch

from kills import Trial, fingerprints, trials


def test_killed_runs_end_like_an_undisturbed_one(tmp_path: Path) -> None:
    tried: list[Trial] = list(trials(tmp_path, seed=0, go_on=lambda number: number < 2))
    assert [trial.problem for trial in tried] == ["", ""]
    assert sum(len(trial.kills) for trial in tried) >= 2


@pytest.mark.parametrize("change", ["weight", "missing", "partial"])
def test_another_end_is_noticed(tmp_path: Path, change: str) -> None:
    weights = {"model": {"w": torch.ones(3)}, "classes": ["a"]}
    torch.save(weights, tmp_path / "model.pt")
    before = fingerprints(tmp_path)
    torch.save(weights, tmp_path / "model.pt")  # the same numbers in a new file
    assert fingerprints(tmp_path) == before
    if change == "weight":
        weights["model"]["w"][1] += 1e-7
        torch.save(weights, tmp_path / "model.pt")
    elif change == "missing":
        (tmp_path / "model.pt").unlink()
    else:
        (tmp_path / ".report.html.1.partial").touch()
    assert fingerprints(tmp_path) != before
