"""`cpsl adapt` with the online method: its results, interruptions, several processes."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from app.conftest import Run
from app.tiny import COMMAND, ENVIRONMENT, TORCHRUN, cpsl, run, streets, write_settings
from cpsl.app.config import METHODS
from cpsl.training import load, read_scalars

ONLINE = METHODS["online"]


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns a finished run; the tests must not change it."""
    folder = tmp_path_factory.mktemp("online")
    config = write_settings(folder, streets(folder))
    config.write_text(config.read_text().replace('method = "paper"', 'method = "online"'))
    ended = cpsl("adapt", "--config", config, "--output", folder / "run")
    assert ended.code == 0, ended.text
    return Run(config, folder / "run", ended.text)


@pytest.fixture
def words(adapted: Run, tmp_path: Path) -> list[object]:
    """Returns the words of a command whose run has finished the source-only stage."""
    shutil.copytree(adapted.folder / "source_only", tmp_path / "run" / "source_only")
    return ["adapt", "--config", adapted.config, "--output", tmp_path / "run"]


def assert_equal_results(run: Path, other: Path) -> None:
    for file in ("model.pt", "clustering.pt"):
        found, expected = (load(folder / "online" / file) for folder in (run, other))
        found, expected = (state.get("model", state) for state in (found, expected))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert read_scalars(run / "online") == read_scalars(other / "online")


def test_the_run_ends_with_a_model_metrics_and_a_report(adapted: Run) -> None:
    metrics = metrics_of(adapted.folder)
    assert tuple(metrics) == ONLINE
    for values in metrics.values():
        assert 0 <= values["miou"] <= 100
        assert set(values["scores"]) == set(metrics["online"]["scores"])
    curves = {name for row in read_scalars(adapted.folder / "online") for name in row}
    assert curves >= {"loss_source", "loss_target", "loss_masked", "loss_contrast", "confident", "agreement"}
    report = (adapted.folder / "report.html").read_text()
    assert "Online self-labeling" in report
    models = [load(adapted.folder / name / "model.pt")["model"] for name in (".", *ONLINE)]
    assert any(all(torch.equal(models[0][k], v) for k, v in model.items()) for model in models[1:])
    assert any(not torch.equal(models[1][key], value) for key, value in models[2].items())
    assert all(value.isfinite().all() for value in models[2].values())


def test_the_model_predicts(adapted: Run, tmp_path: Path) -> None:
    (image, *_) = sorted((adapted.config.parent / "streets" / "cityscapes").rglob("*_leftImg8bit.png"))
    shutil.copytree(image.parent, tmp_path / "images")
    weights = adapted.folder / "online" / "model.pt"
    output = tmp_path / "out"
    ended = cpsl("predict", "--weights", weights, "--input", tmp_path / "images", "--output", output)
    assert ended.code == 0, ended.text
    with Image.open(output / "labels" / image.name) as label, Image.open(image) as picture:
        assert label.size == picture.size
        assert label.getextrema()[1] < 19


def test_a_run_killed_in_the_online_stage_ends_with_the_same_weights(
    adapted: Run, words: list[object], tmp_path: Path
) -> None:
    folder, chance = tmp_path / "run", random.Random(time.time_ns())
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (folder / "online" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.2))
    process.kill()
    process.communicate()
    ended = cpsl(*words)
    assert ended.code == 0, ended.text
    assert_equal_results(folder, adapted.folder)


def rewind(folder: Path) -> dict[str, Any]:
    """Removes the results of a stage and its checkpoints but that of the second of four steps."""
    checkpoints = {load(path)["iteration"]: path for path in folder.glob("checkpoint*.pt*")}
    kept = load(checkpoints[2])
    checkpoints.pop(2).rename(folder / "kept")
    for path in (*checkpoints.values(), folder / "metrics.json", folder / "model.pt"):
        path.unlink()
    (folder / "kept").rename(folder / "checkpoint.pt")
    return kept


def test_a_run_resumes_within_the_initial_steps(adapted: Run, words: list[object], tmp_path: Path) -> None:
    shutil.copytree(adapted.folder / "online", tmp_path / "run" / "online")
    rewind(tmp_path / "run" / "online")
    ended = cpsl(*words)
    assert ended.code == 0, ended.text
    assert "resumes after iteration 2" in ended.text
    assert_equal_results(tmp_path / "run", adapted.folder)


def test_two_processes_train_one_model_and_one_process_resumes(words: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(*TORCHRUN, "-m", "cpsl", *words, timeout=600)
    assert ended.code == 0, ended.text
    assert tuple(metrics_of(folder)) == ONLINE
    first, second = (state["clustering"] for state in rewind(folder / "online")["state_of_ranks"])
    for key in ("prototypes", "ema_prototypes", "aligner.distribution"):
        assert torch.equal(first[key], second[key]), key
    assert not torch.equal(first["bank.features"], second["bank.features"])
    ended = cpsl(*words)
    assert ended.code == 0, ended.text
    assert "resumes after iteration 2" in ended.text


@pytest.mark.parametrize(
    "options",
    [
        ["--online.mixing", "cut", "--gradient-accumulation-steps", "2", "--views.on-device"],
        ["--online.no-clustering", "--online.mixing", "none", "--online.masked-weight", "0"],
        ["--online.start", "random", "--precision", "bfloat16", "--online.no-balanced"],
        ["--select-checkpoint", "score", "--evaluate-every", "2"],
    ],
    ids=["cut", "mean teacher", "random", "score"],
)
def test_variants_of_the_method_run(words: list[object], tmp_path: Path, options: list[str]) -> None:
    shutil.rmtree(tmp_path / "run" / "source_only")
    ended = cpsl(*words, *options, "--source-only.iterations", "1")
    assert ended.code == 0, ended.text
    folder = tmp_path / "run" / "online"
    assert (folder / "clustering.pt").exists() == ("--online.no-clustering" not in options)
    curves = {name for row in read_scalars(folder) for name in row}
    assert ("loss_masked" in curves) == ("--online.masked-weight" not in options)


def test_a_model_from_a_file_is_only_evaluated(adapted: Run, tmp_path: Path) -> None:
    model = adapted.folder / "online" / "model.pt"
    output = ["--output", tmp_path / "run"]
    ended = cpsl("adapt", "--config", adapted.config, *output, "--init-from.online", model)
    assert ended.code == 0, ended.text
    found, expected = metrics_of(tmp_path / "run"), metrics_of(adapted.folder)
    assert tuple(found) == ("online",)
    assert found["online"]["miou"] == pytest.approx(expected["online"]["miou"])
    assert found["online"]["seconds"] == 0
    assert not (tmp_path / "run" / "online" / "checkpoint.pt").exists()
    weights = [load(path)["model"] for path in (tmp_path / "run" / "model.pt", model)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_check_reports_the_cost_of_the_online_stage(adapted: Run, tmp_path: Path) -> None:
    ended = cpsl("check", "--config", adapted.config, "--output", tmp_path / "run")
    assert ended.code == 0, ended.text
    rows = {line.split("  ")[0]: line.split() for line in ended.text.splitlines()}
    assert float(rows["online"][1]) > 0
    assert int(rows["online"][2]) == 4
    assert "warmup" not in rows


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--init-from.warmup"], ["init_from.warmup", "online"]),
        (["--method", "paper", "--init-from.online"], ["init_from.online", "paper"]),
        (["--authors.rectify-features"], ["authors", "method", "paper"]),
        (["--online.start", "nowhere.pt"], ["online.start", "nowhere.pt", "source_only"]),
        (["--online.batch-size", "3", "--gradient-accumulation-steps", "2"], ["online.batch_size", "3"]),
    ],
)
def test_settings_that_do_not_fit_the_method_are_named(
    adapted: Run, tmp_path: Path, options: list[str], named: list[str]
) -> None:
    model = [adapted.folder / "model.pt"] if options[-1].startswith("--init-from") else []
    ended = cpsl("adapt", "--config", adapted.config, "--output", tmp_path / "run", *options, *model)
    assert ended.code == 1
    assert all(word in ended.text for word in named), ended.text
    assert not (tmp_path / "run" / "source_only" / "checkpoint.pt").exists()
