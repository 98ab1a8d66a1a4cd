import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.conftest import Run
from app.tiny import STAGES, cpsl
from cpsl.app import report
from cpsl.app.command_line import read_layers
from cpsl.app.evaluate import read_metrics
from cpsl.app.selection import choose
from cpsl.app.settings import UsageError
from cpsl.app.titles import STAGE_TITLES


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


def without_data(run: Path, moved: Path, *folders: str) -> Path:
    """Copies a run, and makes its settings name data that do not exist."""
    shutil.copytree(run, moved)
    config = moved / "config.toml"
    text = config.read_text()
    for folder in folders:
        assert f"/streets/{folder}" in text
        text = text.replace(f"/streets/{folder}", f"/streets/gone/{folder}")
    config.write_text(text)
    return moved


FIGURES = r">(?:\d[\d.,]* ?%?|[+−]\d+\.\d)<"
"""Figures in the cells of the report's tables."""


@pytest.mark.parametrize("gone", [("gta5",), ("cityscapes",), ("gta5", "cityscapes")])
def test_without_data_sets_the_report_keeps_all_figures(
    finished: Run, tmp_path: Path, gone: tuple[str, ...]
) -> None:
    moved = without_data(finished.folder, tmp_path / "moved", *gone)
    ended = cpsl("report", moved, "--device", "cpu")
    assert ended.code == 0, ended.text
    assert f"streets/gone/{gone[0]}" in ended.text
    old, new = ((run / "report.html").read_text() for run in (finished.folder, moved))
    assert "data that cannot be read any more" in new
    assert f"streets/gone/{gone[-1]}" in new
    assert "data that cannot be read any more" not in old
    figures = [re.findall(FIGURES, text) for text in (old, new)]
    assert len(figures[0]) > 100
    assert figures[0] == figures[1]
    photographs = new.count("Target image")
    assert photographs == (0 if "cityscapes" in gone else old.count("Target image"))
    assert new.count("Before: ") == old.count("Before: ")  # predictions


def test_the_network_at_the_top_of_a_run_is_enough_for_its_report(finished: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    chosen = choose(read_metrics(replace(read_layers([str(moved / "config.toml")]), output=moved)))[0]
    (moved / chosen / "model.pt").unlink()
    ended = cpsl("report", moved, "--device", "cpu")
    assert ended.code == 0, ended.text
    weights = r"[\d.]+ million weights"
    old, new = ((run / "report.html").read_text() for run in (finished.folder, moved))
    assert re.findall(weights, new) == re.findall(weights, old) != []


def test_an_older_run_without_its_data_sets_has_a_report(finished: Run, tmp_path: Path) -> None:
    moved = without_data(finished.folder, tmp_path / "moved", "gta5", "cityscapes")
    (moved / "report.json").unlink()
    ended = cpsl("report", moved, "--device", "cpu")
    assert ended.code == 0, ended.text
    new = (moved / "report.html").read_text()
    assert "Before: " in new
    assert "Target image" not in new
    for values in read_metrics(replace(read_layers([str(moved / "config.toml")]), output=moved)).values():
        assert f"<strong>{values['miou']:.1f}</strong>" in new
    assert not (moved / "report.json").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no picture")])
def test_without_one_photograph_the_others_stay(
    finished: Run, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    shutil.copytree(finished.folder.parent / "streets", tmp_path / "streets")
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    config = moved / "config.toml"
    config.write_text(config.read_text().replace(str(finished.folder.parent), str(tmp_path)))
    photograph = sorted((tmp_path / "streets" / "cityscapes").rglob("val/**/*_leftImg8bit.png"))[0]
    damage(photograph)
    ended = cpsl("report", moved, "--device", "cpu")
    assert ended.code == 0, ended.text
    old, new = ((run / "report.html").read_text() for run in (finished.folder, moved))
    assert new.count('alt="Target image') == old.count('alt="Target image') - 1
    name = photograph.stem.removesuffix("_leftImg8bit")
    assert re.search(rf"data that cannot be read any more[^<]*{name}", new)


def test_what_was_stored_for_other_stages_is_not_reported(finished: Run, tmp_path: Path) -> None:
    moved = without_data(finished.folder, tmp_path / "moved", "cityscapes")
    stored = json.loads((moved / "report.json").read_text())
    stored["key"][1] = "another"
    (moved / "report.json").write_text(json.dumps(stored))
    ended = cpsl("report", moved, "--device", "cpu")
    assert ended.code == 0, ended.text
    assert "Confusion matrices" not in (moved / "report.html").read_text()


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


def words_of(page: Path) -> str:
    return html.unescape(re.sub("<[^>]*>", "", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("ended", [1, 2, 4, 5])
def test_the_report_of_an_unfinished_run_offers_a_network_that_exists(
    finished: Run, tmp_path: Path, ended: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    for file in ("model.pt", "metrics.json", "report.html", "report.json"):
        (run / file).unlink()
    for stage in STAGES[ended:]:
        shutil.rmtree(run / stage)
    reported = cpsl("report", run, "--device", "cpu")
    assert reported.code == 0, reported.text
    assert f"{run} is not finished" in reported.text
    text = words_of(run / "report.html")
    offered = re.findall(r"--weights (\S+)", text)
    assert offered
    assert all(Path(file).is_file() for file in offered)
    assert str(run / "model.pt") not in text
    sentence = text.partition("This run is not finished.")[2].partition("The figures are")[0]
    assert all((STAGE_TITLES[stage] in sentence) == (stage in STAGES[ended:]) for stage in STAGES)
    assert f"cpsl adapt --config {run / 'config.toml'} --output {run}" in text
    assert "not finished" not in words_of(finished.folder / "report.html")


def test_a_run_without_a_finished_stage_has_no_report(finished: Run, tmp_path: Path) -> None:
    shutil.copy(finished.folder / "config.toml", tmp_path)
    ended = cpsl("report", tmp_path)
    assert ended.code == 2
    assert str(tmp_path) in ended.text


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{tmp_path.name}.*config\.toml"):
        report.main([str(tmp_path)])


def with_own_data(finished: Run, folder: Path) -> Path:
    """Copies a run with its data, as if it had run there."""
    before, now = finished.folder.parent.as_posix(), folder.as_posix()
    shutil.copytree(finished.folder.parent / "streets", folder / "streets")
    run = folder / "run"
    shutil.copytree(finished.folder, run)
    for name in ("config.toml", "data.json"):
        file = run / name
        file.write_text(file.read_text().replace(before, now))
    return run


@pytest.mark.parametrize(
    ("pattern", "domain"),
    [
        ("val/**/*labelIds.png", "evaluation"),
        ("val/**/*leftImg8bit.png", "evaluation"),
        ("gta5/labels/*.png", "source"),
        ("train/**/*leftImg8bit.png", "target"),
    ],
)
def test_nothing_is_computed_from_data_that_changed_since_the_run(
    finished: Run, tmp_path: Path, pattern: str, domain: str
) -> None:
    run = with_own_data(finished, tmp_path)
    untouched = cpsl("report", run, "--device", "cpu")
    assert untouched.code == 0, untouched.text
    assert "changed" not in untouched.text
    old, stored = (run / "report.html").read_text(), (run / "report.json").read_text()
    changed = sorted((tmp_path / "streets").rglob(pattern))[0]
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    ended = cpsl("report", run, "--device", "cpu")
    assert ended.code == 0, ended.text
    assert f"1 file of the {domain} changed since the run, such as {changed.as_posix()}" in ended.text
    assert (f"cpsl adapt --config {run}/config.toml --output {run}" in ended.text) == (domain == "evaluation")
    new = (run / "report.html").read_text()
    assert changed.as_posix() in new
    assert re.findall(FIGURES, new) == re.findall(FIGURES, old)
    assert (run / "report.json").read_text() == stored
    # The photographs and labels of the other images stay.
    omitted = int(domain == "evaluation")
    for kind in ('alt="Target image', 'alt="Labels, '):
        assert new.count(kind) == old.count(kind) - omitted > 0


def test_an_image_that_was_added_since_the_run_is_not_reported(finished: Run, tmp_path: Path) -> None:
    run = with_own_data(finished, tmp_path)
    for file in sorted((tmp_path / "streets" / "cityscapes").rglob("val/**/*_000001_*.png")):
        shutil.copy(file, file.with_name(file.name.replace("_000001_", "_000099_")))
    ended = cpsl("report", run, "--device", "cpu")
    assert ended.code == 0, ended.text
    assert "2 files of the evaluation changed" in ended.text
