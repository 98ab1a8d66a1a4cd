"""Titles of the curves and pictures in TensorBoard."""

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cpsl.methods
from app.conftest import Run
from app.tiny import STAGES
from cpsl.app.curves import TITLES
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
        assert all(tag.startswith(f"{number} {stage}/") for tag in (*curves, *pictures))
        assert len(pictures) == 1
        assert "image, its" in pictures[0] or "labels" in pictures[0]
