"""Two processes compute the result of one: each image once, and the same weights."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.tiny import TORCHRUN, run, streets, write_settings
from cpsl import prototypes
from cpsl.app import pseudo_labels
from cpsl.app.command_line import parse
from cpsl.app.datasets import share_of_rank
from cpsl.app.networks import save_model
from cpsl.data import HardLabelStore
from cpsl.models import DeepLabV2
from cpsl.training import Process, load
from small_networks import Colors

TARGETS, EVALUATED = 3, 1  # not divisible by two, and fewer than two
SETTINGS = """
method = "paper"
device = "cpu"
workers = 0
[views]
full_size = [64, 128]
crop = [48, 96]
width = 130
scale = [0.8, 1.2]
[model]
network = "deeplabv2:resnet_tiny"
feature_dim = 8
[self_label]
iterations = 4
batch_size = 2
prototype_multiplier = 50
bank_size = 256
samples_per_image = 32
sampling = "uniform"
cutmix_probability = 0
teacher_momentum = 0.9
distribution_momentum = 0.9
[self_label.optimizer]
learning_rate = 1e-2
[distill]
iterations = 2
batch_size = 2
student = "previous"
confidence_threshold = 0.06
[distill.optimizer]
learning_rate = 1e-2
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns the folders of a run of one process and of a run of two."""
    folder = tmp_path_factory.mktemp("runs")
    domains = streets(folder, 4, TARGETS, EVALUATED)
    config = write_settings(folder, domains, SETTINGS)
    torch.manual_seed(0)
    model = DeepLabV2(19, "resnet_tiny", 8)
    # With well separated logits, rounding does not decide about the largest.
    torch.nn.init.normal_(model.head.classify.weight, std=0.5)
    save_model(folder / "start.pt", model, parse(["--output", "unused"]))
    program = [Path(__file__).with_name("fixed_randomness.py"), "--config", config]
    program += ["--init-from.warmup", folder / "start.pt", "--output"]
    for name, launch in (("one", [sys.executable]), ("two", TORCHRUN)):
        ended = run(*launch, *program, folder / name)
        assert ended.code == 0, ended.text
    return {"one": folder / "one", "two": folder / "two"}


def test_each_image_is_processed_once(runs: dict[str, Path]) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        notes = [runs[name] / f"written.{rank}" for rank in range(ranks)]
        written = [note.read_text().split() for note in notes]
        assert all(written), "a rank has no images"
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


def test_stored_label_maps_agree(runs: dict[str, Path]) -> None:
    start = {name: load(run / "pseudo_labels" / "start.pt") for name, run in runs.items()}
    torch.testing.assert_close(start["two"], start["one"])
    pictures = sorted(path.relative_to(runs["one"]) for path in runs["one"].rglob("*.png"))
    assert len(pictures) == 2 * TARGETS + 3 * EVALUATED
    for path in pictures:
        if path.parts[0] in ("warmup", "pseudo_labels"):
            assert (runs["one"] / path).read_bytes() == (runs["two"] / path).read_bytes()
            continue
        one, two = (HardLabelStore(run / path.parent).read(path.stem) for run in (runs["one"], runs["two"]))
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
    metrics = {run: json.loads((runs[run] / stage / "metrics.json").read_text()) for run in ("one", "two")}
    # Rounding decides the class of a few pixels. The mIoU is in percent, and rare classes have few pixels.
    for key, close in (("confidence", 1e-3), ("changed", 1e-3), ("class_frequency", 1e-3), ("miou", 0.2)):
        assert metrics["two"][key] == pytest.approx(metrics["one"][key], abs=close), key
    one, two = (metrics[run]["scores"] for run in ("one", "two"))
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=2e-3), name


def test_prototypes_and_class_distribution_agree(runs: dict[str, Path]) -> None:
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
    shares = [list(share_of_rank(numbered, Process(device, rank, ranks), "share")) for rank in range(ranks)]
    assert sorted(item for share in shares for item in share) == numbered
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_without_target_images_sums_on_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL refuses tensors in main memory."""
    devices = []

    def reduce(tensor: torch.Tensor, group: object = None) -> torch.Tensor:
        devices.append(tensor.device.type)
        return tensor

    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 16)).save(tmp_path / "images" / "a.png")
    words = ["--target.images", str(tmp_path / "images"), "--output", str(tmp_path / "run")]
    for module in (prototypes, pseudo_labels):
        monkeypatch.setattr(module, "all_reduce_sum", reduce)
    monkeypatch.setattr(pseudo_labels, "build_model", lambda *_: Colors(2))
    monkeypatch.setattr(Process, "barrier", lambda _: None)
    process = Process(torch.device("meta"), rank=1, world_size=2)
    pseudo_labels.describe_target(parse([*words, "--classes", "a", "b"]), process)
    assert set(devices) == {"meta"}
    assert len(devices) == 3  # features, images, pixels
