"""Runs that are killed at random moments and while they write end like an undisturbed one."""

import random
from pathlib import Path

import pytest
import torch

from kills import WAYS, Victims, results


@pytest.mark.parametrize("method", ["paper", "online"])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    kills, problem = Victims(tmp_path, method).kill(0, random.Random(1), most=len(WAYS))
    assert not problem
    assert kills


@pytest.mark.parametrize("change", ["weight", "missing", "partial"])
def test_another_result_is_detected(tmp_path: Path, change: str) -> None:
    path = tmp_path / "run" / "model.pt"
    path.parent.mkdir()
    model = {"model": {"w": torch.ones(3)}, "classes": ["a"]}
    torch.save(model, path)
    before = results(tmp_path)
    torch.save(model, path)
    assert results(tmp_path) == before
    if change == "weight":
        model["model"]["w"][1] += 1e-7
        torch.save(model, path)
    elif change == "missing":
        path.unlink()
    else:
        path.with_name(".report.html.1.partial").touch()
    assert results(tmp_path) != before
