import shutil
from pathlib import Path

import pytest
import torch

from app.conftest import Run
from app.tiny import cpsl
from cpsl.app import report
from cpsl.app.settings import UsageError


def test_the_report_is_written_from_a_run_that_was_moved(finished: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    (moved / "report.html").unlink()
    ended = cpsl("report", moved, "--device", "cpu")
    assert ended.code == 0, ended.text
    old, new = ((run / "report.html").read_text() for run in (finished.folder, moved))
    assert new.count("<img ") == old.count("<img ")
    assert "moved – cpsl report" in new
    # The same pixels are sampled.
    first = "Pixels sampled from"
    assert new.partition(first)[2].partition('"')[0] == old.partition(first)[2].partition('"')[0]


@pytest.mark.parametrize("part", ["self_label/clustering.pt", "distill_1/metrics.json"])
def test_a_damaged_file_of_the_run_is_named(finished: Run, tmp_path: Path, part: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    if part.endswith(".pt"):
        torch.save({"prototypes": torch.zeros(1)}, run / part)
    else:
        (run / part).write_text("{}")
    ended = cpsl("report", run, "--device", "cpu")
    assert ended.code == 1
    assert str(run / part) in ended.text
    assert "Traceback" not in ended.text


def test_a_run_without_a_finished_stage_has_no_report(finished: Run, tmp_path: Path) -> None:
    shutil.copy(finished.folder / "config.toml", tmp_path)
    ended = cpsl("report", tmp_path)
    assert ended.code == 2
    assert str(tmp_path) in ended.text


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{tmp_path.name}.*config\.toml"):
        report.main([str(tmp_path)])
