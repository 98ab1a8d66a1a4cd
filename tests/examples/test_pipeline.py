"""The programs as a user calls them, on data that is made here."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import self_label
from config import Config, parse
from cpsl import prototype_consistency
from cpsl.data import draw_street
from cpsl.engine import load, read_scalars
from cpsl.models import DeepLabV2, load_release_checkpoint
from networks import save_model
from stage import begin_run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STAGES = ["source_only", "warmup", "self_label", "distill_1", "distill_2"]
TINY = """
workers = 0
checkpoint_every = 2
[views]
full_size = [64, 128]
crop = [48, 96]
width = 130
scale = [0.8, 1.2]
[model]
backbone = "resnet_tiny"
feature_dim = 8
[source_only]
start = "random"
iterations = 3
batch_size = 2
freeze_batch_norm = false
[warmup]
start = "source_only"
iterations = 3
batch_size = 2
freeze_batch_norm = false
discriminator_width = 4
[self_label]
iterations = 4
batch_size = 2
bank_size = 256
samples_per_image = 32
[distill]
iterations = 3
batch_size = 2
student = "previous"
"""


def streets(folder: Path) -> str:
    text = ""
    for name, layout, split in (
        ("source", "gta5", "train"),
        ("target", "cityscapes", "train"),
        ("evaluation", "cityscapes", "val"),
    ):
        root = folder / "streets" / layout
        text += f'[{name}]\ndataset = "{layout}"\nroot = "{root}"\nsplit = "{split}"\n'
        text += "streets = 4\nstreets_size = [64, 128]\n"
    return text


def settings(folder: Path, domains: str) -> Path:
    path = folder / "settings.toml"
    general, rest = TINY.split("[views]")
    path.write_text(f"{general}{domains}[views]{rest}", encoding="utf-8")
    return path


def command(config: Path, run: Path, *options: str) -> list[str]:
    program = str(ROOT / "examples" / "adapt.py")
    return [sys.executable, program, "--config", str(config), "--output", str(run), *options]


def adapt(config: Path, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, run, *options), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns the settings and the folder of a small run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("demo")
    config, run = settings(folder, streets(folder)), folder / "run"
    done = adapt(config, run)
    assert done.returncode == 0, done.stdout + done.stderr
    return config, run


def test_all_stages_end_with_metrics_and_a_report(demo: tuple[Path, Path]) -> None:
    _, run = demo
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == STAGES
    for values in metrics.values():
        assert set(values) == {"miou", "iou", "seconds"}
        assert 0 <= values["miou"] <= 100
        assert len(values["iou"]) == 19
        assert values["seconds"] > 0
    report = (run / "report.html").read_text()
    assert "Distillation 2" in report
    assert report.count("<figcaption>Drawn pixels and their assignments") == 4
    assert report.count("<figcaption>Similarity to the best prototype") == 4


def test_what_is_finished_is_skipped(demo: tuple[Path, Path]) -> None:
    config, run = demo
    report = (run / "report.html").read_bytes()
    again = adapt(config, run)
    assert again.returncode == 0
    assert again.stdout.count("finished before") == 6
    assert (run / "report.html").read_bytes() == report


def program(name: str, config: Path, run: Path, *options: str) -> str:
    words = [sys.executable, str(ROOT / "examples" / name), "--config", str(config)]
    done = subprocess.run(
        [*words, "--output", str(run), *options],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_stage_is_a_program_too(demo: tuple[Path, Path], tmp_path: Path) -> None:
    config, undisturbed = demo
    program("warmup.py", config, tmp_path, "--stage", "source_only")
    program("warmup.py", config, tmp_path)
    program("pseudo_labels.py", config, tmp_path)
    program("self_label.py", config, tmp_path)
    program("distill.py", config, tmp_path)
    program("distill.py", config, tmp_path, "--stage", "distill_2")
    for stage in STAGES:
        ended, wanted = (
            load(folder / stage / "model.pt")["model"] for folder in (tmp_path, undisturbed)
        )
        torch.testing.assert_close(ended, wanted, rtol=0, atol=0)


def test_any_stage_starts_from_a_given_model(demo: tuple[Path, Path], tmp_path: Path) -> None:
    config, undisturbed = demo
    given = undisturbed / "self_label" / "model.pt"
    done = adapt(config, tmp_path / "run", "--given.self-label", str(given))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())) == STAGES[2:]
    assert f"self_label: the model is {given}" in done.stdout
    ended, wanted = (
        load(folder / "distill_1" / "model.pt")["model"]
        for folder in (tmp_path / "run", undisturbed)
    )
    torch.testing.assert_close(ended, wanted, rtol=0, atol=0)
    assert "Self-labeling" in (tmp_path / "run" / "report.html").read_text()


def test_one_file_turns_the_release_on(demo: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = demo
    run, release = tmp_path / "run", ROOT / "examples" / "configs" / "release.toml"
    # Last, so that it wins; but for the steps between evaluations, of which there are too few here.
    done = adapt(config, run, "--config", str(release), "--evaluate-every", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(json.loads((run / "metrics.json").read_text())) == STAGES
    for stage in STAGES:
        curve = [row["miou"] for row in read_scalars(run / stage) if "miou" in row]
        metrics = json.loads((run / stage / "metrics.json").read_text())
        assert len(curve) == 2
        assert metrics["miou"] == pytest.approx(max(curve))
    # Ignored pixels of stored labels have the release's number.
    labels = [Image.open(path) for path in (run / "distill_1" / "labels").rglob("*.png")]
    assert {picture.getextrema()[1] for picture in labels} == {250}
    report = (run / "report.html").read_text()
    assert "the best of its evaluations" in report
    assert "Drawn pixels and their assignments" in report


def test_a_model_goes_back_to_the_release(demo: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = demo
    words = [
        sys.executable,
        str(ROOT / "examples" / "to_release.py"),
        "--output",
        "a.pkl",
        "--weights",
    ]
    done = subprocess.run(
        [*words, str(run / "distill_2" / "model.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode != 0
    assert "ResNet-101" in done.stderr
    assert "Traceback" not in done.stderr
    config = parse(Config, ["--output", "r", "--source.images", "a", "--target.images", "b"])
    model = DeepLabV2(19, "resnet101", 8)
    save_model(tmp_path / "model.pt", model, config)
    subprocess.run([*words, str(tmp_path / "model.pt")], check=True, cwd=tmp_path)
    again = load_release_checkpoint(tmp_path / "a.pkl").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_other_settings_in_the_same_folder_are_refused(demo: tuple[Path, Path]) -> None:
    config, run = demo
    other = adapt(config, run, "--self-label.iterations", "5")
    assert other.returncode != 0
    assert "self_label.iterations: 4 then, 5 now" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_killed_run_ends_with_the_same_weights(demo: tuple[Path, Path], tmp_path: Path) -> None:
    config, undisturbed = demo
    run, chance = tmp_path / "run", random.Random(time.time_ns())
    for stage in ("source_only", "self_label", "distill_2"):
        process = subprocess.Popen(
            command(config, run), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while not (run / stage / "checkpoint.pt").exists():
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
    done = adapt(config, run)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in STAGES:
        ended, wanted = (
            load(folder / stage / "model.pt")["model"] for folder in (run, undisturbed)
        )
        torch.testing.assert_close(ended, wanted, rtol=0, atol=0)
        assert read_scalars(run / stage) == read_scalars(undisturbed / stage)


def test_a_loss_that_is_not_finite_is_told_and_left_out(
    demo: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, undisturbed = demo
    config = parse(Config, ["--config", str(file), "--output", str(tmp_path)])
    for part in ("warmup", "pseudo_labels"):
        shutil.copytree(undisturbed / part, tmp_path / part)
    losses = []

    def broken_in_step_2(*words: Any, **options: Any) -> torch.Tensor:
        losses.append(prototype_consistency(*words, **options))
        return losses[-1] / (len(losses) not in (2, 3))  # its repetition is the third call

    monkeypatch.setattr(self_label, "prototype_consistency", broken_in_step_2)
    with begin_run(config) as process:
        self_label.self_label(config, process)
    # The repetition sees the same views and random numbers; momentum has moved the weights a little.
    torch.testing.assert_close(losses[1], losses[2], rtol=0.01, atol=0)
    told = (tmp_path / "log.txt").read_text()
    assert "self_label: step 2 was left out: loss_consistency is not finite" in told
    assert "the gradient that reaches student" in told
    assert "images: 0000" in told
    assert "streets/streets_0000" in told
    model = load(tmp_path / "self_label" / "model.pt")["model"]
    assert all(value.isfinite().all() for value in model.values())


def own_folders(folder: Path) -> str:
    """Writes two folders as a practitioner has them: nested, JPEG, ids of their own, no target labels."""
    for index in range(4):
        image, label = draw_street(index, "game", (64, 128))
        for part, name in (("images", "jpg"), ("labels", "png")):
            (folder / "source" / part / "a b").mkdir(parents=True, exist_ok=True)
            path = folder / "source" / part / "a b" / f"ü{index}.{name}"
            array = (
                image.permute(1, 2, 0).numpy()
                if part == "images"
                else (label == 0).byte().numpy() * 7
            )
            Image.fromarray(array).save(path)
        image, _ = draw_street(index, "real", (60, 120))
        (folder / "target").mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "target" / f"{index}.png")
    return (
        f'[source]\nimages = "{folder}/source/images"\nlabels = "{folder}/source/labels"\n'
        f'ids = {{ 7 = 0, 0 = 1 }}\n[target]\nimages = "{folder}/target"\n'
    )


def test_own_folders_without_target_labels(tmp_path: Path) -> None:
    config = settings(tmp_path, own_folders(tmp_path))
    config.write_text('classes = ["road", "else"]\n' + config.read_text())
    done = adapt(config, tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert all(values["miou"] is None for values in metrics.values())
    assert metrics["distill_2"]["iou"] == {"road": None, "else": None}
    assert "No target labels" in (tmp_path / "run" / "report.html").read_text()


def test_problems_are_all_listed_before_a_run(tmp_path: Path) -> None:
    config = settings(tmp_path, own_folders(tmp_path))
    config.write_text('classes = ["road", "else"]\n' + config.read_text())
    (tmp_path / "target" / "2.png").write_bytes(b"")
    Image.new("L", (128, 64), 99).save(tmp_path / "source" / "labels" / "a b" / "ü1.png")
    done = adapt(config, tmp_path / "run", "--check", "True", "--warmup.start", "nowhere.pth")
    assert done.returncode != 0
    for text in ("2.png", "ü1.png", "99", "nowhere.pth", "3 problem"):
        assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_says_what_a_run_would_take(demo: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = demo
    done = adapt(config, tmp_path / "run", "--check", "True", "--evaluate-every", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no problems" in done.stdout
    rows = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    for stage in STAGES:
        seconds, times, _, memory = rows[stage][1:5]
        assert float(seconds) > 0
        assert int(times) == (4 if stage == "self_label" else 3)
        assert 0.1 < float(memory) < 4
    # Four images after each of five stages, and two or one evaluations on the way.
    assert int(rows["evaluation"][2]) == 4 * (5 + 1 + 1 + 2 + 1 + 1)
    assert "GB are free" in done.stdout
    # It leaves nothing behind but the log.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hand-on", "best"], "evaluate_every above 0"),
        (["--given.warmup", "no.pkl"], "given.warmup: there is no file no.pkl"),
        (
            ["--self-label.repeat-backbone-steps", "True", "--self-label.optimizer", "adamw"],
            'self_label.repeat_backbone_steps needs the optimizer "sgd"',
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    demo: tuple[Path, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    config, _ = demo
    done = adapt(config, tmp_path / "run", *options)
    assert done.returncode != 0
    assert message in done.stderr
    assert "begins" not in done.stdout


def test_weights_that_do_not_fit_are_found_by_the_check(
    demo: tuple[Path, Path], tmp_path: Path
) -> None:
    config, _ = demo
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "simclr.pth")
    torch.save({"model": {}}, tmp_path / "broken.pkl")
    options = ["--distill.student", str(tmp_path / "simclr.pth"), "--check", "True"]
    done = adapt(config, tmp_path / "run", *options, "--given.warmup", str(tmp_path / "broken.pkl"))
    assert done.returncode != 0
    assert "distill.student" in done.stdout
    assert "does not fit this backbone" in done.stdout
    assert "given.warmup" in done.stdout
    assert "2 problem(s)" in done.stderr


def test_what_would_stop_a_later_stage_stops_the_run_at_once(tmp_path: Path) -> None:
    config = settings(tmp_path, '[source]\nimages = "nowhere"\n[target]\nimages = "nowhere"\n')
    options = ["--accumulate", "2", "--self-label.batch-size", "3", "--distill.student", "no.pth"]
    done = adapt(config, tmp_path / "run", *options)
    assert done.returncode != 0
    for text in ("source: there is no folder nowhere", "self_label.batch_size 3", "no.pth"):
        assert text in done.stderr
    assert "begins" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [(), ("--check", "True")], ids=["run", "check"])
def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    config = settings(tmp_path, '[source]\nimages = "nowhere"\n[target]\nimages = "nowhere"\n')
    done = adapt(config, config / "run", *options)
    assert done.returncode != 0
    assert "settings.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_photographs_in_the_layouts_of_the_data_sets(real: Path, tmp_path: Path) -> None:
    domains = (
        f'[source]\ndataset = "gta5"\nroot = "{real}/gta5"\n'
        f'[target]\ndataset = "cityscapes"\nroot = "{real}/cityscapes"\n'
        f'[evaluation]\ndataset = "cityscapes"\nroot = "{real}/cityscapes"\nsplit = "val"\n'
    )
    done = adapt(settings(tmp_path, domains), tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["distill_2"]["miou"] is not None
    assert (tmp_path / "run" / "report.html").exists()


def test_two_processes_share_the_work(tmp_path: Path, demo: tuple[Path, Path]) -> None:
    config, _ = demo
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        launch + command(config, tmp_path / "run", "--device", "cpu")[1:],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())) == STAGES


def test_a_stopped_run_of_two_processes_goes_on_with_one(
    demo: tuple[Path, Path], tmp_path: Path
) -> None:
    config, given = demo
    run = tmp_path / "run"
    options = ["--given.warmup", str(given / "warmup" / "model.pt"), "--device", "cpu"]
    options += ["--self-label.iterations", "200", "--checkpoint-every", "1000"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        launch + command(config, run, *options)[1:],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not read_scalars(run / "self_label"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.terminate()
    told, _ = process.communicate(timeout=60)
    assert "the same command goes on from here" in told, told
    stopped = load(run / "self_label" / "checkpoint.pt")
    assert stopped["iteration"] < 200
    assert len(stopped["state_of_ranks"]) == 2
    done = adapt(config, run, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"goes on after iteration {stopped['iteration']}" in done.stdout
    assert "distill_2" in json.loads((run / "metrics.json").read_text())
