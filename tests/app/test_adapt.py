"""`cpsl adapt` on small data: all stages, interruptions, skipped steps, several processes."""

import html
import json
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from app.conftest import Run
from app.tiny import COMMAND, ENVIRONMENT, STAGES, TORCHRUN, cpsl, write_settings
from cpsl.app import adapt
from cpsl.app.selection import SCORE, SCORE_IN_WORDS, choose
from cpsl.app.titles import STAGE_TITLES
from cpsl.data.streets import draw_street
from cpsl.losses import prototype_consistency
from cpsl.methods import self_labeling
from cpsl.training import load, read_scalars


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def assert_equal_weights(run: Path, other: Path, stages: tuple[str, ...] = STAGES) -> None:
    for stage in stages:
        ended, expected = (load(folder / stage / "model.pt")["model"] for folder in (run, other))
        torch.testing.assert_close(ended, expected, rtol=0, atol=0)


def test_all_stages_end_with_metrics_and_a_report(finished: Run) -> None:
    metrics = metrics_of(finished.folder)
    assert tuple(metrics) == STAGES
    for values in metrics.values():
        assert set(values) == {"miou", "iou", "seconds", "scores", "collapses"}
        assert 0 <= values["miou"] <= 100
        assert len(values["iou"]) == 19
        assert values["seconds"] > 0
    report = (finished.folder / "report.html").read_text()
    assert "Distillation 2" in report
    assert report.count("<figcaption>Sampled pixels and their assignments") == 4
    assert report.count("<figcaption>Similarity to the nearest prototype") == 4
    assert f"cpsl predict --weights {finished.folder / 'model.pt'}" in finished.printed


def test_the_model_of_a_run_is_the_stage_with_the_best_score(finished: Run) -> None:
    chosen, reason = choose(metrics_of(finished.folder))
    files = (finished.folder / "model.pt", finished.folder / chosen / "model.pt")
    model, expected = (load(file)["model"] for file in files)
    torch.testing.assert_close(model, expected, rtol=0, atol=0)
    assert f"from {chosen}: {reason}" in finished.printed
    report = (finished.folder / "report.html").read_text()
    assert "Scores without labels" in report
    in_words = choose(metrics_of(finished.folder), STAGE_TITLES)[1]
    assert in_words in html.unescape(report)
    assert "_" not in in_words


def test_a_collapsed_stage_is_not_the_model_of_a_run(finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    for stage, score, collapses in (("self_label", 0.9, []), ("distill_1", 0.95, ["pole is lost"])):
        path = run / stage / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["scores"][SCORE], metrics["collapses"] = score, collapses
        path.write_text(json.dumps(metrics))
    ended = cpsl("adapt", "--config", finished.config, "--output", run)
    assert ended.code == 0, ended.text
    assert f"from self_label: its {SCORE_IN_WORDS} is the highest: 0.900" in ended.text
    assert "distill_1 is excluded (pole is lost)" in ended.text
    assert f"Its network: {run / 'distill_2' / 'model.pt'}" in ended.text
    model, expected = (load(file)["model"] for file in (run / "model.pt", run / "self_label" / "model.pt"))
    torch.testing.assert_close(model, expected, rtol=0, atol=0)
    assert "pole is lost" in (run / "report.html").read_text()


def test_finished_stages_are_skipped(finished: Run) -> None:
    report = (finished.folder / "report.html").read_bytes()
    ended = cpsl("adapt", "--config", finished.config, "--output", finished.folder)
    assert ended.code == 0
    assert ended.text.count("already finished") == 6
    assert (finished.folder / "report.html").read_bytes() == report


def test_other_settings_in_the_same_folder_are_rejected(finished: Run) -> None:
    words = ["--config", finished.config, "--output", finished.folder]
    ended = cpsl("adapt", *words, "--self-label.optimizer.learning-rate", "5")
    assert ended.code == 1
    assert "self_label.optimizer.learning_rate: 0.0001 then, 5.0 now" in ended.text


def test_a_stage_starts_from_a_model_in_a_file(finished: Run, tmp_path: Path) -> None:
    model, run = finished.folder / "self_label" / "model.pt", tmp_path / "run"
    words = ["--config", finished.config, "--output", run, "--init-from.self-label", model]
    ended = cpsl("adapt", *words)
    assert ended.code == 0, ended.text
    assert tuple(metrics_of(run)) == STAGES[2:]
    assert str(model) in ended.text
    assert_equal_weights(run, finished.folder, STAGES[2:])
    assert "Self-labeling" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "option", [("--evaluation.max-images", "1"), ("--views.evaluation-size", "16", "32")]
)
def test_other_settings_of_the_evaluation_give_the_figures_of_a_fresh_run(
    finished: Run, tmp_path: Path, option: tuple[str, ...]
) -> None:
    words = ["--config", finished.config, "--init-from.distill-2", finished.folder / "model.pt"]
    for run, options in (("a", ()), ("b", option), ("a", option)):
        ended = cpsl("adapt", *words, "--output", tmp_path / run, *options)
        assert ended.code == 0, ended.text
    fresh, again = (metrics_of(tmp_path / run)["distill_2"] for run in "ba")
    assert again == fresh
    assert "evaluated again" in ended.text
    assert "already finished" in cpsl("adapt", *words, "--output", tmp_path / "a", *option).text
    refused = cpsl("adapt", *words, "--output", tmp_path / "a", *option, "--views.crop", "32", "64")
    assert refused.code == 1
    assert "views.crop" in refused.text


def test_a_recipe_follows_the_authors_code(finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--config", finished.config, "--config", "authors", "--output", run]
    ended = cpsl("adapt", *words, "--evaluate-every", "2")
    assert ended.code == 0, ended.text
    assert tuple(metrics_of(run)) == STAGES
    for stage in STAGES:
        curve = [row["miou"] for row in read_scalars(run / stage) if "miou" in row]
        assert len(curve) == 2
        assert metrics_of(run)[stage]["miou"] == pytest.approx(max(curve))
    labels = [Image.open(path) for path in (run / "distill_1" / "labels").rglob("*.png")]
    assert {label.getextrema()[1] for label in labels} == {250}  # their ignore_index
    report = (run / "report.html").read_text()
    assert "Sampled pixels and their assignments" in report
    assert "the best of its evaluations by target labels" in report


def test_a_killed_run_ends_with_the_same_weights(finished: Run, tmp_path: Path) -> None:
    run, chance = tmp_path / "run", random.Random(time.time_ns())
    words = ["adapt", "--config", str(finished.config), "--output", str(run)]
    for stage in ("source_only", "self_label", "distill_2"):
        process = subprocess.Popen(
            [*COMMAND, *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while not (run / stage / "checkpoint.pt").exists():
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
    ended = cpsl(*words)
    assert ended.code == 0, ended.text
    assert_equal_weights(run, finished.folder)
    for stage in STAGES:
        assert read_scalars(run / stage) == read_scalars(finished.folder / stage)


def test_weights_are_selected_without_labels(finished: Run, tmp_path: Path) -> None:
    words = ["--config", finished.config, "--select-checkpoint", "score", "--evaluate-every", "2"]
    ended = cpsl("adapt", *words, "--output", tmp_path / "run")
    assert ended.code == 0, ended.text
    metrics = metrics_of(tmp_path / "run")
    for stage in STAGES:
        curve = [row[SCORE] for row in read_scalars(tmp_path / "run" / stage) if SCORE in row]
        assert len(curve) == 2
        if stage == "source_only":  # later ones have another candidate, their start, and may collapse
            assert metrics[stage]["scores"][SCORE] == pytest.approx(max(curve))
    for line in ("warmup: mIoU", "before the first iteration", "after 2 iterations"):
        assert line in ended.text
    assert "a score without target labels" in (tmp_path / "run" / "report.html").read_text()


def test_two_processes_are_stopped_and_one_resumes(finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["adapt", "--config", finished.config, "--output", run]
    words += ["--self-label.iterations", "60", "--checkpoint-every", "1000"]
    process = subprocess.Popen(
        [str(word) for word in (*TORCHRUN, "-m", "cpsl", *words)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not read_scalars(run / "self_label"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    checkpoint = load(run / "self_label" / "checkpoint.pt")
    assert checkpoint["iteration"] < 60, printed
    assert len(checkpoint["state_of_ranks"]) == 2
    ended = cpsl(*words)
    assert ended.code == 0, ended.text
    assert f"resumes after iteration {checkpoint['iteration']}" in ended.text
    assert tuple(metrics_of(run)) == STAGES


@pytest.fixture
def warmed_up(finished: Run, tmp_path: Path) -> list[object]:
    """Returns the options of a run whose next stage is self-labeling."""
    for part in ("source_only", "warmup", "pseudo_labels"):
        shutil.copytree(finished.folder / part, tmp_path / "run" / part)
    return ["--config", finished.config, "--output", tmp_path / "run"]


def break_steps(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Makes the consistency loss infinite in some steps, counted from 1."""
    steps = iter(range(1, 1000))

    def loss(*words: Any, **options: Any) -> torch.Tensor:
        return prototype_consistency(*words, **options) / (next(steps) not in broken)

    monkeypatch.setattr(self_labeling, "prototype_consistency", loss)


def test_a_non_finite_step_is_skipped_and_reported(
    warmed_up: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {2})
    ended = cpsl("adapt", *warmed_up, "--trace-non-finite")
    assert ended.code == 0, ended.text
    (line,) = (line for line in ended.text.splitlines() if "skipped" in line)
    for text in ("self_label", "step 2", "loss_consistency", "student", "streets/streets_0000"):
        assert text in line
    model = load(tmp_path / "run" / "self_label" / "model.pt")["model"]
    assert all(value.isfinite().all() for value in model.values())


def test_too_many_non_finite_steps_stop_the_run(
    warmed_up: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, set(range(3, 100)))
    ended = cpsl("adapt", *warmed_up, "--self-label.iterations", "20")
    assert ended.code == 1
    assert "trace_non_finite" in ended.text
    assert "self_label: stopped" in ended.text


def write_folders(folder: Path) -> list[object]:
    """Writes two folders as people have them, and returns their options: nested, JPEG, other label values."""
    for index in range(4):
        image, label = draw_street(index, "game", (64, 128))
        for part, suffix, array in (
            ("images", "jpg", image.permute(1, 2, 0).contiguous().numpy()),
            ("labels", "png", (label == 0).byte().numpy() * 7),
        ):
            path = folder / "source" / part / "a b" / f"ü{index}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        image, _ = draw_street(index, "real", (60, 120))
        (folder / "target").mkdir(exist_ok=True)
        array = image.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(folder / "target" / f"{index}.png")
    words: list[object] = ["--source.images", folder / "source" / "images"]
    words += ["--source.labels", folder / "source" / "labels", "--source.ids", 7, 0, 0, 1]
    return [*words, "--target.images", folder / "target", "--classes", "road", "else"]


def test_a_run_warns_of_an_evaluation_on_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "adapt", lambda *_: None)
    monkeypatch.setattr(adapt, "conclude", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    words = ["--config", "cpu", *write_folders(tmp_path), "--output", tmp_path / "run"]
    words += ["--evaluation.images", "source/images", "--evaluation.labels", "source/labels"]
    ended = cpsl("adapt", *words, "--evaluation.ids", 7, 0, 0, 1)
    assert ended.code == 0, ended.text
    assert "evaluation: 4 of 4 images are also images of source" in " ".join(ended.text.split())


def test_an_evaluation_label_with_an_unknown_value_ends_a_run_before_it_trains(tmp_path: Path) -> None:
    words = ["--config", "cpu", *write_folders(tmp_path), "--output", tmp_path / "run", "--workers", 0]
    for part in ("images", "labels"):
        shutil.copytree(tmp_path / "source" / part, tmp_path / "evaluation" / part)
        words += [f"--evaluation.{part}", tmp_path / "evaluation" / part]
    label = sorted((tmp_path / "evaluation" / "labels").rglob("*.png"))[-1]
    Image.new("L", Image.open(label).size, 9).save(label)
    ended = cpsl("adapt", *words, "--evaluation.ids", 7, 0, 0, 1, "--source-only.start", "random")
    assert ended.code == 1
    assert str(label) in ended.text
    assert "stage 1" not in ended.text


def test_a_run_says_what_its_labels_leave_out(finished: Run, tmp_path: Path) -> None:
    """Masks of 0 and 255: everything but the background is ignored."""
    run = tmp_path / "run"
    images, labels = tmp_path / "images", tmp_path / "labels"
    for index in range(2):
        for folder, mode in ((images, "RGB"), (labels, "L")):
            folder.mkdir(exist_ok=True)
            picture = Image.new(mode, (128, 64), 255 if mode == "L" else (9, 90, 9))
            picture.paste(0, (0, 0, 40, 40))
            picture.save(folder / f"{index}.png")
    words = ["--config", finished.config, "--output", run, "--classes", "cityscapes-19"]
    words += ["--evaluation.dataset", "folder", "--evaluation.images", images, "--evaluation.labels", labels]
    words += ["--evaluation.root", "None", "--evaluation.streets", 0, "--evaluation.split", "train"]
    ended = cpsl("adapt", *words, "--init-from.distill-2", finished.folder / "model.pt")
    assert ended.code == 0, ended.text
    before, _, after = " ".join(ended.text.split()).partition("stage 1 of 1")
    assert "evaluation: 80.5 % of the label pixels are ignored" in before
    assert "evaluation: all labeled pixels have the class road" in before
    assert "80 % of the label pixels are ignored" in after
    files = ["--images", images, "--labels", labels]
    evaluated = cpsl("evaluate", "--weights", run / "model.pt", *files)
    assert evaluated.code == 0, evaluated.text
    for printed in (after, evaluated.text):
        assert "Warning: 80 % of the label pixels are ignored" in printed
        assert printed.count("not in the labels, but predicted") == 1


def test_two_folders_by_options_alone(tmp_path: Path) -> None:
    words = ["--config", "cpu", *write_folders(tmp_path), "--output", tmp_path / "run"]
    for stage in ("source-only", "online"):
        words += [f"--{stage}.iterations", 1]
    ended = cpsl("adapt", *words, "--workers", 0, "--views.full-size", 128, 256, "--views.crop", 48, 96)
    assert ended.code == 0, ended.text
    assert "--views.full-size 60 120 --views.crop 48 96 --views.width 120" in ended.text
    metrics = metrics_of(tmp_path / "run")
    assert all(values["miou"] is None for values in metrics.values())
    assert metrics["online"]["iou"] == {"road": None, "else": None}
    report = (tmp_path / "run" / "report.html").read_text()
    assert "images, without labels" in report
    # Terminal and report name the same classes that are never predicted.
    sentence = re.compile(r"\d of 2 classes of the source (?:is|are) [\w ]+ predicted: [^(]*")
    in_terminal = sentence.findall(" ".join(ended.text.split()))
    assert in_terminal == sentence.findall(html.unescape(report))
    stage = tmp_path / "run" / choose(metrics)[0]
    shares = json.loads((stage / "metrics.json").read_text())["class_frequency"]
    assert in_terminal or min(shares) > 0


def test_photographs_in_the_layouts_of_the_data_sets(real: Path, tmp_path: Path) -> None:
    domains = (
        f'[source]\ndataset = "gta5"\nroot = "{real}/gta5"\n'
        f'[target]\ndataset = "cityscapes"\nroot = "{real}/cityscapes"\n'
        f'[evaluation]\ndataset = "cityscapes"\nroot = "{real}/cityscapes"\nsplit = "val"\n'
    )
    config = write_settings(tmp_path, domains)
    ended = cpsl("adapt", "--config", config, "--output", tmp_path / "run")
    assert ended.code == 0, ended.text
    assert metrics_of(tmp_path / "run")["distill_2"]["miou"] is not None
    assert (tmp_path / "run" / "report.html").exists()
