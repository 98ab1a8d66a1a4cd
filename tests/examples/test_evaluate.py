import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from config import Config, parse
from cpsl.data import CITYSCAPES_16, Cityscapes, HardLabelStore, write_streets
from cpsl.engine import Process
from cpsl.metrics import ConfusionMatrix
from cpsl.models import DeepLabV2, SegmentationOutput, save_release_checkpoint
from evaluate import evaluate, evaluating

HERE = Process(torch.device("cpu"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, layout="cityscapes", style="real", split="val", count=3, size=(64, 128))
    return root


def settings(root: Path, classes: str = "cityscapes-19", *options: str) -> Config:
    words = ["--output", str(root / "run"), "--device", "cpu", "--classes", classes]
    words += ["--source.images", "a", "--target.dataset", "cityscapes", "--target.root", str(root)]
    words += ["--evaluation.dataset", "cityscapes", "--evaluation.root", str(root)]
    words += ["--evaluation.split", "val", "--views.full-size", "64", "128", *options]
    return parse(Config, words)


class Colors(nn.Module):
    """Tells classes by colours, at stride 4: no mirror image or size changes what it sees there."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(4 * torch.randn(classes, 3, 1, 1, generator=generator))

    def forward(self, image: Tensor) -> SegmentationOutput:
        small = F.interpolate(image, scale_factor=0.25, mode="area") - 0.5
        logits = F.conv2d(small, self.weight)
        return SegmentationOutput(logits, logits)


@torch.no_grad()
def test_the_figures_are_those_of_the_equations(streets: Path) -> None:
    model, config, dataset = Colors(16), settings(streets, "cityscapes-16"), None
    dataset = Cityscapes(streets, "val", CITYSCAPES_16)
    confusion = ConfusionMatrix(16)
    for image, label, _ in (dataset[i] for i in range(3)):
        logits = model(image[None] / 255).logits
        upsampled = F.interpolate(logits, (64, 128), mode="bilinear", align_corners=True)
        confusion.update(upsampled.argmax(dim=1)[0], label)
    metrics = evaluate(model, config, HERE)
    assert metrics["miou"] == pytest.approx(100 * float(confusion.miou), abs=1e-4)
    # The classes of SYNTHIA without wall, fence and pole, which are the fourth to sixth.
    of_13 = confusion.iou[[0, 1, 2, *range(6, 16)]].nanmean()
    assert metrics["miou_13"] == pytest.approx(100 * float(of_13), abs=1e-4)
    assert "miou_13" not in evaluate(Colors(19), settings(streets), HERE)


@torch.no_grad()
def test_labels_can_be_compared_at_another_size(streets: Path) -> None:
    config = settings(streets, "cityscapes-19", "--views.evaluation-size", "32", "64")
    model, confusion, dataset = Colors(19), ConfusionMatrix(19), Cityscapes(streets, "val")
    for image, label, _ in (dataset[i] for i in range(3)):
        logits = model(image[None] / 255).logits
        small = F.interpolate(logits, (32, 64), mode="bilinear", align_corners=True)
        nearest = Image.fromarray(label.numpy()).resize((64, 32), Image.Resampling.NEAREST)
        confusion.update(small.argmax(dim=1)[0], torch.from_numpy(np.array(nearest)))
    assert evaluate(model, config, HERE)["miou"] == pytest.approx(
        100 * float(confusion.miou), abs=1e-4
    )


def test_a_model_in_training_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2))
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


def test_changes_since_the_stage_before_are_counted(streets: Path, tmp_path: Path) -> None:
    config, first = settings(streets), HardLabelStore(tmp_path / "first")
    assert evaluate(Colors(19), config, HERE, [first])["changed"] is None
    assert evaluate(Colors(19), config, HERE, before=first)["changed"] == 0


def test_a_release_checkpoint_is_evaluated_from_the_command_line(
    streets: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_release_checkpoint(
        tmp_path / "stage3.pkl", DeepLabV2(19, "resnet101", 8, output_norm=True)
    )
    words = ["--weights", tmp_path / "stage3.pkl", "--output", tmp_path / "run", "--device", "cpu"]
    words += ["--source.images", "a", "--target.images", "b", "--views.full-size", "64", "128"]
    words += ["--evaluation.dataset", "cityscapes", "--evaluation.root", streets]
    words += ["--evaluation.split", "val", "--flip", "True", "--scales", "0.5", "1"]
    words += ["--label-ids", tmp_path / "ids", "--colors", tmp_path / "colors"]
    program = [sys.executable, ROOT / "examples" / "evaluate.py", *words]
    done = subprocess.run(
        list(map(str, program)), capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mIoU" in done.stdout
    written = sorted(path.name for path in (tmp_path / "ids").rglob("*.png"))
    assert written == [f"streets_{i:06d}_000000.png" for i in range(3)]
    ids = np.array(Image.open(next((tmp_path / "ids").rglob("*.png"))))
    assert ids.shape == (64, 128)
    assert set(np.unique(ids)) <= {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}
    assert Image.open(next((tmp_path / "colors").rglob("*.png"))).mode == "RGB"
