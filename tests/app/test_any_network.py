"""Networks of other libraries and of one's own, from the settings to the exported program."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from app.tiny import SETTINGS, STAGES, cpsl, streets, write_settings
from cpsl import Segmenter
from cpsl.app.command_line import parse
from cpsl.app.networks import build_model, describe_network
from cpsl.training import load, start_process

MODEL = '[model]\nnetwork = "deeplabv2:resnet_tiny"\nfeature_dim = 8\n'
OWN = "small_networks:build_patches"


def settings(folder: Path, model: str) -> Path:
    assert MODEL in SETTINGS
    return write_settings(folder, streets(folder), SETTINGS.replace(MODEL, f"[model]\n{model}\n"))


def predict(segmenter: Segmenter, image: torch.Tensor) -> torch.Tensor:
    """The prediction by the equation, for a half-pixel network."""
    with torch.no_grad():
        logits = segmenter.network(image[None] / 255).logits
    return F.interpolate(logits, image.shape[1:], mode="bilinear", align_corners=False)[0].argmax(dim=0)


@pytest.mark.parametrize(
    ("model", "library"),
    [
        (f'network = "{OWN}"\narguments = {{ features = 6 }}', "torch"),
        ('network = "lite0"\nfeature_dim = 8', "timm"),
        ('network = "smp:Linknet/resnet18"', "segmentation_models_pytorch"),
    ],
    ids=["own", "lite0", "smp"],
)
def test_a_run_with_another_network(tmp_path: Path, model: str, library: str) -> None:
    pytest.importorskip(library)
    config, run = settings(tmp_path, model), tmp_path / "run"
    own = ["--network", OWN] if OWN in model else []
    ended = cpsl("adapt", "--config", config, "--output", run)
    assert ended.code == 0, ended.text
    assert set(json.loads((run / "metrics.json").read_text())) == set(STAGES)
    assert (run / "report.html").stat().st_size > 10_000
    stages = [load(run / stage / "model.pt")["model"] for stage in STAGES]
    for before, after in pairwise(stages):
        assert any(not torch.equal(value, after[key]) for key, value in before.items())

    # The model in other commands, at the size of its training, where nothing is resized but its maps.
    weights = run / "distill_2" / "model.pt"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    predicted = tmp_path / "predicted"
    words = ["--weights", weights, "--input", tmp_path / "image.png", "--output", predicted, *own]
    ended = cpsl("predict", *words)
    assert ended.code == 0, ended.text
    labels = torch.from_numpy(np.array(Image.open(predicted / "labels" / "image.png")))
    build = None if not own else parse_builder()
    segmenter = Segmenter.load(weights, build=build)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert (labels == predict(segmenter, image)).float().mean() > 0.999
    ended = cpsl("export", "--weights", weights, "--output", tmp_path / "model.pt2", *own)
    assert ended.code == 0, ended.text
    program = torch.export.load(tmp_path / "model.pt2").module()
    logits = program(image[None])[0]
    assert (logits.argmax(dim=0) == labels).float().mean() > 0.999
    if own:  # the other commands do not import what a file names
        ended = cpsl("predict", *words[:-2])
        assert ended.code == 1
        assert OWN in ended.text


@pytest.mark.parametrize("command", ["predict", "export"])
def test_the_option_for_custom_networks_refuses_names_of_libraries(tmp_path: Path, command: str) -> None:
    words = ["--weights", tmp_path / "m.pt", "--output", tmp_path / "out.pt2", "--network", "timm:typo"]
    ended = cpsl(command, *words, *(["--input", tmp_path] if command == "predict" else []))
    assert ended.code == 1
    assert "timm:typo" in ended.text
    assert "MODULE:FUNCTION" in ended.text


def parse_builder() -> object:
    from small_networks import build_patches

    return build_patches


def test_the_check_describes_the_network(tmp_path: Path) -> None:
    config = settings(tmp_path, f'network = "{OWN}"\narguments = {{ features = 6 }}')
    ended = cpsl("check", "--config", config, "--output", tmp_path / "run")
    assert ended.code == 0, ended.text
    line = next(line for line in ended.text.splitlines() if "network: " in line)
    grid = "6 feature channels on a 12x24 grid for crops of 48x96 (stride 4)"
    for words in (OWN, grid, "half-pixel", "multiples of 4"):
        assert words in line
    assert "source_only.start: random weights" in ended.text


def test_the_described_stride_is_that_of_the_resized_crop(tmp_path: Path) -> None:
    config = parse(["--config", str(settings(tmp_path, f'network = "{OWN}"')), "--views.crop", "50", "95"])
    with start_process("cpu") as process:
        line = describe_network(config, process)
    assert "8 feature channels on a 13x24 grid for crops of 50x95, resized to 52x96 (stride 4)" in line


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ('network = "nowhere_at_all:build"', ["model.network", "nowhere_at_all"]),
        ('network = "small_networks:nothing"', ["model.network", "nothing"]),
        ('network = "resnet101"', ["model.network", "resnet101", "MODULE:FUNCTION"]),
        (f'network = "{OWN}"\nfeature_dim = 8', [OWN, "feature_dim", "features"]),
        ('network = "deeplabv2:resnet_tiny"\narguments = { color = 1 }', ["color", "feature_dim"]),
        ('network = "timm:resnet"', ["resnet"]),
        ('network = "transformers:mask2former"', ["mask2former"]),
    ],
)
def test_a_wrong_network_ends_before_the_training(tmp_path: Path, model: str, named: list[str]) -> None:
    ended = cpsl("adapt", "--config", settings(tmp_path, model), "--output", tmp_path / "run")
    assert ended.code != 0
    assert "Traceback" not in ended.text
    for words in named:
        assert words in ended.text
    assert not (tmp_path / "run" / "source_only" / "checkpoint.pt").exists()


def test_a_network_that_cannot_be_rebuilt_is_refused_at_the_start() -> None:
    config = parse(
        ["--output", "r", "--source.images", "a", "--target.images", "b", "--classes", "road", "sky"]
    )
    counted = iter(range(4, 99))

    def build(num_classes: int) -> torch.nn.Module:
        from small_networks import Patches

        return Patches(num_classes, features=next(counted))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cpsl.app.networks.custom_builder", lambda name: build)
        with pytest.raises(ValueError, match=r"cannot be saved.*encode"):
            build_model(config, "random")
