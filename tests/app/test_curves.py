"""Titles of the curves and pictures in TensorBoard."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cpsl.methods
from app.conftest import Run
from app.tiny import STAGES
from cpsl.app.curves import TITLES, result_by_title
from cpsl.app.reporting.charts import CURVES
from cpsl.training import read_scalars


def test_every_scalar_has_a_title_of_its_own(finished: Run) -> None:
    recorded = {name for stage in STAGES for row in read_scalars(finished.folder / stage) for name in row}
    assert recorded - {"iteration"} <= set(TITLES)
    source = "".join(path.read_text() for path in Path(cpsl.methods.__path__[0]).glob("*.py"))
    assert set(re.findall(r'"(loss_\w+)"', source)) <= set(TITLES)
    assert len(set(TITLES.values())) == len(TITLES)
    assert set(CURVES) <= set(TITLES)  # the report has no curves that nothing records


def test_tensorboard_groups_titles_by_stage(finished: Run) -> None:
    for number, stage in enumerate(STAGES, 1):
        events = EventAccumulator(str(finished.folder / stage)).Reload()
        curves, pictures = events.Tags()["scalars"], events.Tags()["images"]
        assert f"{number} {stage}/{TITLES['loss']}" in curves
        groups = (f"{number} {stage}/", f"{number} {stage}, result/")
        assert all(tag.startswith(groups) for tag in (*curves, *pictures))
        assert len(pictures) == 1
        assert "image, its" in pictures[0] or "labels" in pictures[0]


def test_tensorboard_has_the_result_of_each_stage(finished: Run) -> None:
    for number, stage in enumerate(STAGES, 1):
        metrics = json.loads((finished.folder / stage / "metrics.json").read_text())
        events, group = EventAccumulator(str(finished.folder / stage)).Reload(), f"{number} {stage}, result"
        expected = result_by_title(metrics)
        assert {tag for tag in events.Tags()["scalars"] if tag.startswith(group)} == {
            f"{group}/{title}" for title in expected
        }
        for title, value in expected.items():
            [point] = events.Scalars(f"{group}/{title}")
            assert point.value == pytest.approx(value)
            assert point.step == read_scalars(finished.folder / stage)[-1]["iteration"]


def test_the_learning_rate_has_a_curve_but_not_in_the_report(finished: Run) -> None:
    for stage in STAGES:
        rates = [row["learning_rate"] for row in read_scalars(finished.folder / stage)]
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] > 0
    titles = re.findall(r'<div class="curve">(.+)', (finished.folder / "report.html").read_text())
    assert "Loss on the source&#39;s labels" in titles
    assert not any("learning" in title and "rate" in title for title in titles)
