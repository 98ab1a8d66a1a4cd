import re
from logging import FileHandler
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from PIL import Image

from app.conftest import Run
from app.test_adapt import write_folders
from app.tiny import STAGES, cpsl
from cpsl.app import check
from cpsl.app.check import _check_data
from cpsl.app.checking.settings import open_domains, validate
from cpsl.app.command_line import parse
from cpsl.app.run import changed_settings
from cpsl.training import Process, logger

PROCESS = Process(torch.device("cpu"))


def test_a_check_reports_the_cost_of_a_run_and_keeps_pictures_alone(finished: Run, tmp_path: Path) -> None:
    words = ["--config", finished.config, "--output", tmp_path / "runs" / "run"]
    ended = cpsl("check", *words, "--evaluate-every", "2")
    assert ended.code == 0, ended.text
    assert "no problems" in ended.text
    assert "  cpsl adapt --" in ended.text.splitlines()[-1]  # what to do next
    rows = {line.split("  ")[0]: re.split(r" {2,}", line) for line in ended.text.splitlines()}
    for stage in STAGES:
        seconds, times, _, memory = rows[stage][1:5]
        assert float(seconds) > 0
        assert int(times) == (4 if stage == "self_label" else 3)
        assert 0.1 < float(memory) < 8
    header = ended.text.index("s per step")
    for line in ("network: ", "initial weights: "):  # for experts: after what was found in the data
        assert ended.text.index("target: ") < ended.text.index(line) < header
    # Four images after each of five stages, and one evaluation during each but two during self-labeling.
    assert int(rows["evaluation"][2]) == 4 * (5 + 1 + 1 + 2 + 1 + 1)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    folder = tmp_path / "runs" / "run" / "check"
    assert sorted(kept) == [folder / f"{name}.png" for name in ("evaluation", "source", "target")]
    assert all(str(path) in ended.text for path in kept)
    # A run that follows starts as in a new folder, whatever its settings.
    assert not changed_settings(parse([*map(str, words), "--seed", "9"]))


def test_the_log_is_closed_before_its_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not remove open files."""
    removed, opened = [], []

    class Watched(TemporaryDirectory[str]):
        def cleanup(self) -> None:
            removed.append(self.name)
            opened.extend(file for file in logger.handlers if isinstance(file, FileHandler))
            super().cleanup()

    monkeypatch.setattr(check, "TemporaryDirectory", Watched)
    ended = cpsl(
        "check", "--source.images", "absent", "--target.images", "absent", "--output", tmp_path / "run"
    )
    assert ended.code == 1
    assert removed
    assert not opened


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
    listed = (tmp_path / "run" / "check" / "problems.txt").read_text(encoding="utf-8").splitlines()
    assert str(tmp_path / "run" / "check" / "problems.txt") in ended.text
    assert len(listed) == 2
    assert "ü1.png" in listed[0]
    assert "2.png" in listed[1]


def test_one_fault_of_many_labels_is_one_problem(tmp_path: Path) -> None:
    words = [*write_folders(tmp_path), "--output", tmp_path / "run", "--workers", 0]
    labels = sorted((tmp_path / "source" / "labels").rglob("*.png"))
    for number, path in enumerate(labels):
        Image.new("L", Image.open(path).size, 40 + number).save(path)
    config = parse([str(word) for word in words])
    data = _check_data(config, PROCESS, open_domains(config))
    (problem,) = data.problems
    assert f"{len(labels)} of {len(labels)} labels" in problem
    assert all(f" {40 + number} (" in problem for number in range(len(labels)))
    assert sum(str(path) in problem for path in labels) == 2
    assert len(data.complete) == len(labels)
    assert all(str(path) in line for path, line in zip(labels, data.complete, strict=True))
    assert sorted(path.name for path in (tmp_path / "run" / "check").iterdir()) == ["target.png"]


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


@pytest.mark.parametrize("command", ["adapt", "check"])
@pytest.mark.parametrize("folder", ["target", "target/run", "source/images/run", "source/labels/a b/run"])
def test_nothing_is_written_among_images_and_labels(tmp_path: Path, command: str, folder: str) -> None:
    words = write_folders(tmp_path)
    files = sorted(tmp_path.rglob("*"))
    ended = cpsl(command, *words, "--output", tmp_path / folder)
    assert ended.code == 1
    assert re.search(rf"output {tmp_path / folder} is inside .*--output", ended.text)
    assert sorted(tmp_path.rglob("*")) == files


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


@pytest.mark.parametrize("option", ["source.images", "target.images", "model.network"])
def test_a_dry_run_that_cannot_start_is_not_announced(tmp_path: Path, option: str) -> None:
    words = [*write_folders(tmp_path), "--output", tmp_path / "run", "--config", "cpu", "--workers", 0]
    ended = cpsl("check", *words, f"--{option}", "absent")
    assert ended.code == 1
    assert "absent" in ended.text
    assert "dry run" not in ended.text
