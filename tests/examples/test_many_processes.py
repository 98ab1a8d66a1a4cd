"""Two processes do the work of one: each image once, and with the same weights in the end."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import Config, parse
from cpsl.data import HardLabelStore
from cpsl.engine import Process, load
from cpsl.models import DeepLabV2
from networks import save_model
from pseudo_labels import _my_share

ROOT = Path(__file__).parents[2]
TARGETS, EVALUATED = 3, 1  # not divisible by two, and fewer than two
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SETTINGS = """
device = "cpu"
workers = 0
[views]
full_size = [64, 128]
crop = [48, 96]
width = 130
scale = [0.8, 1.2]
[model]
backbone = "resnet_tiny"
feature_dim = 8
[self_label]
iterations = 4
batch_size = 2
learning_rate = 1e-2
prototype_multiplier = 50
bank_size = 256
samples_per_image = 32
sampling = "uniform"
cutmix_probability = 0
teacher_momentum = 0.9
distribution_momentum = 0.9
[distill]
iterations = 2
batch_size = 2
learning_rate = 1e-2
student = "previous"
confidence_threshold = 0.06
"""


def streets(folder: Path) -> str:
    text = ""
    for name, layout, split, count in (
        ("source", "gta5", "train", 4),
        ("target", "cityscapes", "train", TARGETS),
        ("evaluation", "cityscapes", "val", EVALUATED),
    ):
        root = folder / "streets" / layout
        text += f'[{name}]\ndataset = "{layout}"\nroot = "{root}"\nsplit = "{split}"\n'
        text += f"streets = {count}\nstreets_size = [64, 128]\n"
    return text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns the folders of a run of one process and of a run of two."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "settings.toml"
    general, rest = SETTINGS.split("[views]")
    path.write_text(f"{general}{streets(folder)}[views]{rest}", encoding="utf-8")
    torch.manual_seed(0)
    words = ["--output", "unused", "--source.images", "a", "--target.images", "b"]
    model = DeepLabV2(19, "resnet_tiny", 8)
    # Logits far enough apart that rounding does not decide which class is the largest.
    torch.nn.init.normal_(model.head.classify.weight, std=0.5)
    save_model(folder / "start.pt", model, parse(Config, words))
    program = [str(Path(__file__).with_name("without_chance.py")), "--config", str(path)]
    program += ["--given.warmup", str(folder / "start.pt"), "--output"]
    for name, launch in (("one", []), ("two", LAUNCH)):
        done = subprocess.run(
            [sys.executable, *launch, *program, str(folder / name)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return {"one": folder / "one", "two": folder / "two"}


def test_each_image_is_handled_once(runs: dict[str, Path]) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        notes = [runs[name] / f"written.{rank}" for rank in range(ranks)]
        written = [note.read_text().split() for note in notes]
        assert all(written), "each rank has work"
        times = Counter(path for of_rank in written for path in of_rank)
        assert set(times.values()) == {1}
        stores = Counter(str(Path(path).parents[1]) for path in times)
        assert stores == {
            "pseudo_labels/soft": TARGETS,
            "warmup/predictions": EVALUATED,
            "self_label/predictions": EVALUATED,
            "distill_1/labels": TARGETS,
            "distill_1/predictions": EVALUATED,
        }


def test_what_is_stored_of_the_images_is_the_same(runs: dict[str, Path]) -> None:
    start = {name: load(run / "pseudo_labels" / "start.pt") for name, run in runs.items()}
    torch.testing.assert_close(start["two"], start["one"])
    pictures = sorted(path.relative_to(runs["one"]) for path in runs["one"].rglob("*.png"))
    assert len(pictures) == 2 * TARGETS + 3 * EVALUATED
    for path in pictures:
        if path.parts[0] in ("warmup", "pseudo_labels"):
            assert (runs["one"] / path).read_bytes() == (runs["two"] / path).read_bytes()
            continue
        one, two = (
            HardLabelStore(run / path.parent).read(path.stem) for run in (runs["one"], runs["two"])
        )
        assert (one == two).float().mean() > 0.999


@pytest.mark.parametrize("stage", ["self_label", "distill_1"])
def test_a_stage_ends_with_the_same_weights(runs: dict[str, Path], stage: str) -> None:
    before = load(runs["one"] / ("warmup" if stage == "self_label" else "self_label") / "model.pt")
    names = ["model.pt"] + (["teacher.pt"] if stage == "self_label" else [])
    for name in names:
        one, two = (load(runs[run] / stage / name)["model"] for run in ("one", "two"))
        learned = one["head.classify.weight"] - before["model"]["head.classify.weight"]
        assert learned.abs().max() > 1e-3
        torch.testing.assert_close(two, one, atol=2e-4, rtol=1e-3)
    metrics = {
        run: json.loads((runs[run] / stage / "metrics.json").read_text()) for run in ("one", "two")
    }
    # Rounding decides the class of a few pixels; the mIoU is in percent, and rare classes have few pixels.
    for key, close in (
        ("confidence", 1e-3),
        ("changed", 1e-3),
        ("class_frequency", 1e-3),
        ("miou", 0.2),
    ):
        assert metrics["two"][key] == pytest.approx(metrics["one"][key], abs=close), key


def test_prototypes_and_class_distribution_end_the_same(runs: dict[str, Path]) -> None:
    start = load(runs["one"] / "pseudo_labels" / "start.pt")
    one, two = (load(runs[run] / "self_label" / "clustering.pt") for run in ("one", "two"))
    moved = torch.nn.functional.normalize(start["prototypes"], dim=1) - one["prototypes"]
    assert moved.norm(dim=1).max() > 1e-3
    for key in ("prototypes", "ema_prototypes", "aligner.distribution"):
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
    assert len(two["bank.valid"]) == len(one["bank.valid"]) // 2


@given(items=st.lists(st.integers()), ranks=st.integers(1, 8))
def test_shares_are_disjoint_and_complete(items: list[int], ranks: int) -> None:
    device = torch.device("cpu")
    numbered = list(enumerate(items))
    shares = [
        list(_my_share(numbered, Process(device, rank, ranks), "share")) for rank in range(ranks)
    ]
    assert sorted(item for share in shares for item in share) == numbered
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
