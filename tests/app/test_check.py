import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.conftest import Run
from app.test_adapt import write_folders
from app.tiny import STAGES, cpsl
from cpsl.app.check import SHOWN, _report, validate
from cpsl.app.command_line import parse
from cpsl.training import Process

PROCESS = Process(torch.device("cpu"))


@pytest.mark.parametrize("count", [1, SHOWN, SHOWN + 1, 3 * SHOWN])
def test_only_the_first_problems_of_a_domain_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    problems = [f"source: {index}.png" for index in range(count)] + ["evaluation: a.png"]
    logging.getLogger("cpsl").propagate = True
    _report(problems, tmp_path / "problems.txt")
    logged = [record.getMessage() for record in caplog.records]
    assert logged[: min(count, SHOWN) + 1] == [*problems[: min(count, SHOWN)], problems[-1]]
    assert (tmp_path / "problems.txt").exists() == (count > SHOWN)
    if count > SHOWN:
        assert str(count - SHOWN) in logged[-1]
        assert (tmp_path / "problems.txt").read_text().splitlines() == problems


def test_a_check_reports_the_cost_of_a_run_and_removes_its_files(finished: Run, tmp_path: Path) -> None:
    words = ["--config", finished.config, "--output", tmp_path / "runs" / "run"]
    ended = cpsl("check", *words, "--evaluate-every", "2")
    assert ended.code == 0, ended.text
    assert "no problems" in ended.text
    rows = {line.split("  ")[0]: line.split() for line in ended.text.splitlines()}
    for stage in STAGES:
        seconds, times, _, memory = rows[stage][1:5]
        assert float(seconds) > 0
        assert int(times) == (4 if stage == "self_label" else 3)
        assert 0.1 < float(memory) < 8
    # Four images after each of five stages, and one evaluation during each but two during self-labeling.
    assert int(rows["evaluation"][2]) == 4 * (5 + 1 + 1 + 2 + 1 + 1)
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_data_and_weights_are_listed(tmp_path: Path) -> None:
    words = [*write_folders(tmp_path), "--output", tmp_path / "run", "--config", "cpu"]
    words += ["--method", "paper"]
    words += ["--views.full-size", 64, 128, "--views.crop", 32, 64, "--views.width", 130]
    (tmp_path / "target" / "2.png").write_bytes(b"")
    Image.new("L", (128, 64), 99).save(tmp_path / "source" / "labels" / "a b" / "ü1.png")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "simclr.pth")
    torch.save({"model": {}}, tmp_path / "broken.pkl")
    words += ["--distill.student", tmp_path / "simclr.pth", "--workers", 0]
    ended = cpsl("check", *words, "--init-from.warmup", tmp_path / "broken.pkl")
    assert ended.code == 1
    for text in ("2.png", "ü1.png", "99", "distill.student", "init_from.warmup", "4 problem"):
        assert text in ended.text
    assert "Traceback" not in ended.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--select-checkpoint", "best"], ["select_checkpoint", "evaluate_every"]),
        (["--init-from.warmup", "no.pkl"], ["init_from.warmup", "no.pkl"]),
        (["--warmup.start", "no.pth"], ["warmup.start", "no.pth", "pretrained"]),
        (["--distill.student", "no.pth"], ["distill.student", "no.pth"]),
        (["--model.weights", "no.pth"], ["model.weights", "no.pth"]),
        (["--model.weights", "no.pth"], ["model.weights", "not read", "random", 'start = "pretrained"']),
        (["--model.network", "math:pi"], ["model.network", "math:pi"]),
        (
            ["--authors.repeat-backbone-steps", "--self-label.optimizer.name", "adamw"],
            ["authors.repeat_backbone_steps", "self_label.optimizer.name"],
        ),
        (
            ["--gradient-accumulation-steps", "2", "--self-label.batch-size", "3"],
            ["self_label.batch_size", "3", "gradient_accumulation_steps"],
        ),
        (["--target.root", "nowhere"], ["target", "nowhere"]),
        (["--source.dataset", "folder"], ["source", "images"]),
        (["--target.weight", "2"], ["target", "weight"]),
        (["--classes", "road", "road"], ["classes", "road"]),
    ],
)
def test_settings_that_would_stop_a_run_are_found_first(
    finished: Run, tmp_path: Path, options: list[str], named: list[str]
) -> None:
    config = parse(["--config", str(finished.config), "--output", str(tmp_path / "run"), *options])
    problems = "\n".join(validate(config, PROCESS))
    assert all(text in problems for text in named), problems


def test_a_network_that_cannot_be_built_is_a_problem(tmp_path: Path) -> None:
    words = [*write_folders(tmp_path), "--output", tmp_path / "run", "--config", "cpu", "--workers", 0]
    words += ["--source-only.start", "random", "--model.arguments", '{"decoder": "heavy"}']
    ended = cpsl("check", *words)
    assert ended.code == 1
    assert "model.network" in ended.text
    assert "1 problem" in ended.text


def test_an_output_among_the_images_is_a_problem(tmp_path: Path) -> None:
    words = [str(word) for word in write_folders(tmp_path)]
    config = parse([*words, "--output", str(tmp_path / "target" / "run")])
    (problem,) = (p for p in validate(config, PROCESS) if "output" in p)
    assert "target.images" in problem


@pytest.mark.parametrize("command", ["adapt", "check"])
def test_problems_end_the_command_before_the_first_stage(finished: Run, tmp_path: Path, command: str) -> None:
    words = ["--config", finished.config, "--output", tmp_path / "run"]
    ended = cpsl(command, *words, "--source.root", tmp_path / "nowhere", "--source.streets", 0)
    assert ended.code == 1
    assert "nowhere" in ended.text
    assert "stage 1" not in ended.text
    ended = cpsl(command, *words[:2], "--output", finished.config / "run")
    assert ended.code == 1
    assert "settings.toml" in ended.text
    assert "Traceback" not in ended.text
