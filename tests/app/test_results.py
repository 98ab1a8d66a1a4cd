"""The table of results in the terminal, and the commands to run next."""

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.conftest import Run
from app.tiny import cpsl, printed_commands
from cpsl.app.command_line import parse
from cpsl.app.config import METHODS
from cpsl.app.longer import longer_run, short_stages
from cpsl.app.results import next_steps, results_table, too_short, unkept_stage
from cpsl.app.run import changed_settings
from cpsl.app.run_record import record_session
from cpsl.training import Process

CLASSES = ("road", "traffic light", "bicycle")
percents = st.none() | st.floats(0, 100)


def stage_metrics(labeled: bool) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "miou": st.floats(0, 100) if labeled else st.none(),
            "iou": st.fixed_dictionaries({name: percents if labeled else st.none() for name in CLASSES}),
            "class_frequency": st.lists(st.floats(0, 1), min_size=3, max_size=3),
            "scores": st.fixed_dictionaries({"flip_miou": st.floats(0, 1), "entropy": st.floats(0, 1)}),
            "seconds": st.floats(1, 1e6),
        }
    )


@given(st.data(), st.sampled_from(sorted(METHODS)), st.booleans())
def test_a_table_fits_80_columns_and_shows_the_change(data: Any, method: str, labeled: bool) -> None:
    stages = METHODS[method]
    metrics = {stage: data.draw(stage_metrics(labeled)) for stage in stages}
    table = results_table(metrics, CLASSES)
    assert max(map(len, table.splitlines())) <= 80
    row = next(line for line in table.splitlines() if line.startswith("traffic light")).split()[2:]
    ends = [metrics[stages[end]] for end in (0, -1)]
    values = [end["iou"]["traffic light"] if labeled else 100 * end["class_frequency"][1] for end in ends]
    if None in values:
        assert row[-1] == "-"
    else:
        assert float(row[0]) == pytest.approx(values[0], abs=0.06)
        assert float(row[-1]) == pytest.approx(float(row[-2]) - float(row[0]), abs=1e-6)
    assert ("mIoU" in table) == labeled
    assert ("consistency (+)" in table) == (not labeled)


def test_a_class_without_labels_changes_no_comparison() -> None:
    """It counts 0 in the mIoU as soon as one pixel is predicted as it, which is no loss."""
    before = {"miou": 50.0, "iou": {"road": 40.0, "sky": 60.0, "car": None}, "seconds": 60}
    after = {"miou": 36.0, "iou": {"road": 46.0, "sky": 62.0, "car": 0.0}, "seconds": 60}
    table = results_table({"source_only": before, "online": after}, ("road", "sky", "car"))
    (row,) = [line.split() for line in table.splitlines() if "comparable mIoU" in line]
    assert row[-3:] == ["50.0", "54.0", "+4.0"]
    assert "not in the labels: car;" in table
    after["iou"]["car"] = None
    assert "comparable" not in results_table({"source_only": before, "online": after}, ("road", "sky", "car"))


def test_the_change_is_that_of_the_chosen_stage() -> None:
    metrics = {
        stage: {"miou": miou, "iou": {"road": miou}, "seconds": 60}
        for stage, miou in zip(METHODS["paper"], (10.0, 20.0, 40.0, 30.0, 30.0), strict=True)
    }
    heading, road, *_ = results_table(metrics, ("road",), "self_label").splitlines()
    assert heading.split("  ")[-4:] == ["self_label", "change", "distill_1", "distill_2"]
    assert road.split()[-4:] == ["40.0", "+30.0", "30.0", "30.0"]
    assert results_table(metrics, ("road",)).splitlines()[0].endswith("distill_2  change")
    assert "self_label compared with source_only" in results_table(metrics, ("road",), "self_label")
    assert "distill_2 compared with source_only" in results_table(metrics, ("road",), "source_only")
    alone = results_table({"source_only": metrics["source_only"]}, ("road",))
    assert "change" not in alone


def test_only_a_run_of_some_length_means_anything() -> None:
    domains = ["--source.images", "a", "--target.images", "b", "--online.iterations"]
    assert "online 99" in too_short(parse([*domains, "99"]))
    assert "trial" not in too_short(parse([*domains, "99"]))
    trial = too_short(parse([*domains, "100"]))
    assert "trial" in trial
    assert "1,000 of online" in trial
    assert not too_short(parse([*domains, "500"]))


def test_the_commands_after_a_run_work_as_printed(finished: Run) -> None:
    commands = [words for words in printed_commands(finished.printed) if len(words) > 1]
    assert [words[0] for words in commands] == ["adapt", "predict", "export"]
    for words in commands[1:]:  # the first is that of a longer run
        ended = cpsl(*words)
        assert ended.code == 0, ended.text
        written = Path(words[words.index("--output") + 1])
        assert written.exists()
        shutil.rmtree(written) if written.is_dir() else written.unlink()  # other tests share the run
    assert (finished.folder / "report.html").exists()
    (line,) = [line for line in finished.printed.splitlines() if "--logdir" in line]
    read = subprocess.run([*shlex.split(line), "--inspect"], capture_output=True, text=True, check=False)
    assert str(finished.folder) in read.stdout
    assert "too short" in finished.printed
    assert "cpsl adapt" in finished.printed.splitlines()[-1]


@pytest.mark.parametrize("typed", [True, False])
def test_the_command_of_a_longer_run_trains_enough_steps_in_a_new_folder(
    finished: Run, tmp_path: Path, typed: bool
) -> None:
    run = tmp_path / "my run"
    shutil.copytree(finished.folder, run)
    if not typed:  # as of earlier versions
        (run / "run.json").unlink()
    begun = replace(parse(["--config", str(finished.config)]), output=run)
    command, *words = shlex.split(longer_run(begun))
    again = parse(words)
    assert command == "adapt"
    assert not short_stages(again)
    assert not again.output.exists()
    assert changed_settings(replace(again, output=run)).count(".iterations") == 4
    assert (str(finished.config) in words) == typed
    assert f"--output {finished.folder}_longer" in finished.printed


@pytest.mark.parametrize("option", ["--online.iterations 20", "--online.iterations=20 --seed 3"])
def test_a_longer_run_has_the_steps_of_its_recipe(option: str, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    typed = [*option.split(), "--output", str(run)]
    record_session(run, ["demo", *typed], Process(torch.device("cpu")))
    begun = parse(typed, "demo", ("demo",))
    command, *words = shlex.split(longer_run(begun))
    assert command == "demo"
    again, recipe = parse(words, "demo", ("demo",)), parse([], "demo", ("demo",))
    assert replace(again, output=recipe.output) == replace(recipe, seed=begun.seed)
    assert not longer_run(recipe)


@pytest.mark.parametrize(("steps", "few"), [(499, True), (500, False)])
def test_a_run_of_few_steps_has_the_command_of_a_longer_one(steps: int, few: bool, tmp_path: Path) -> None:
    words = ["--config", "cpu", "--online.iterations", str(steps), "--output", str(tmp_path / "run")]
    record_session(tmp_path / "run", ["adapt", *words], Process(torch.device("cpu")))
    longer = longer_run(parse(words))
    assert bool(longer) == few
    if few:
        assert parse(shlex.split(longer)[1:]).online.iterations == 1000


def test_the_last_stage_is_named_if_it_is_not_the_model() -> None:
    config = parse(["--target.dataset", "gta5", "--target.root", "data", "--output", "runs/a"])

    def said(before: float | None, after: float | None, chosen: str = "source_only") -> str:
        mious = {"source_only": before, "online": after}
        return unkept_stage(
            config, {stage: {"miou": miou, "iou": {}} for stage, miou in mious.items()}, chosen
        )

    assert "runs/a/online/model.pt" in said(24.9, 29.9)
    assert "higher (29.9, not 24.9)" in said(24.9, 29.9)
    for ends in ((29.9, 24.9), (29.91, 29.94), (None, None)):
        assert "runs/a/online/model.pt" in said(*ends)
        assert "higher" not in said(*ends)
    assert said(24.9, 29.9, "online") == ""


@pytest.mark.parametrize(
    ("dataset", "folder"), [("cityscapes", "leftImg8bit/train"), ("gta5", "images"), ("synthia", "RGB")]
)
def test_the_images_of_a_data_set_are_those_of_the_target(dataset: str, folder: str) -> None:
    config = parse(["--target.dataset", dataset, "--target.root", "data", "--output", "runs/a b"])
    text = next_steps(config)
    assert f"--input data/{folder}" in text
    assert "'runs/a b/model.pt'" in text
