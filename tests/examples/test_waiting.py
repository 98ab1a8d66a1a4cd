"""Inside a training step nothing waits for the device: no value is read, no shape depends on one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import cpsl.engine.loop
import cpsl.models.ema
import distill
import self_label
import warmup
from config import Config, parse
from cpsl.data import SourceBatch, TargetBatch
from cpsl.engine import Optimization, Process, TrainingLoop
from cpsl.engine.finite import FlagReader
from cpsl.geometry import View
from cpsl.models import DeepLabV2
from pseudo_labels import Start

K, CROP, FULL, GRID = 5, (48, 96), (64, 128), (16, 32)
RELEASE = Path(__file__).parents[2] / "examples" / "configs" / "release.toml"


def settings(folder: Path, *options: str) -> Config:
    words = ["--output", str(folder), "--source.images", "a", "--target.images", "b"]
    words += ["--classes", *"abcde", "--views.crop", *map(str, CROP)]
    words += ["--views.full-size", *map(str, FULL), "--self-label.bank-size", "128"]
    words += ["--self-label.samples-per-image", "16"]
    for stage in ("source-only", "warmup", "self-label", "distill"):
        words += [f"--{stage}.iterations", "2", f"--{stage}.batch-size", "2"]
    return parse(Config, [*words, *options])


def batches(device: torch.device, soft: bool) -> tuple[SourceBatch, TargetBatch]:
    whole = View.whole(FULL, 2, device)
    weak = whole.cropped(3, 5, CROP).flipped()
    strong = weak.rotated(10).with_cutout(torch.tensor([5.0, 5, 20, 20], device=device))

    def image(size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(256, (2, 3, *size), dtype=torch.uint8, device=device)

    label = torch.randint(K, (2, *CROP), dtype=torch.uint8, device=device)
    pseudo = torch.rand(2, K, *GRID, device=device).softmax(dim=1)
    if not soft:
        pseudo = torch.randint(K, (2, *FULL), dtype=torch.uint8, device=device)
    source = SourceBatch(image(CROP), label, ["a", "b"])
    target = TargetBatch(
        image(CROP), weak, image(CROP), strong, image(FULL), whole, pseudo, ["a", "b"]
    )
    return source, target


def train(
    stage: str, config: Config, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains two iterations of a stage on batches that lie on the device; what is written is left out."""
    module: ModuleType
    module, run = {
        "warmup": (warmup, warmup.warm_up),
        "self_label": (self_label, self_label.self_label),
        "distill_1": (distill, distill.distill),
    }[stage]
    source, target = batches(device, soft=stage == "self_label")

    def model(*_: Any, **__: Any) -> DeepLabV2:
        return DeepLabV2(K, "resnet_tiny", 8)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def forever(batch: Any) -> Callable[..., Iterator[Any]]:
        return lambda *_: repeat(batch)

    start = Start(torch.randn(K, 8, device=device), torch.full((K,), 1 / K, device=device))
    replaced: dict[str, Any] = {
        "build_model": model,
        "source_batches": forever(source),
        "target_batches": forever(target),
        "read_start": lambda *_: start,
        "save": nothing,
        "save_model": nothing,
        "label_target": nothing,
    }
    for name, instead in replaced.items():
        monkeypatch.setattr(module, name, instead, raising=False)
    monkeypatch.setattr("hand_on.save_model", nothing)
    for name in ("_save", "_write_scalars", "shows"):
        monkeypatch.setattr(TrainingLoop, name, nothing)
    options = {"stage": stage, "previous": "self_label"} if stage == "distill_1" else {}
    run(config, Process(device), **options)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch, fake_cuda: torch.device) -> torch.device:
    """Returns a CUDA device whose tensors have no values: whatever asks for one fails."""
    monkeypatch.setattr(cpsl.engine.loop, "reset_peak_memory", lambda _: None)
    monkeypatch.setattr(cpsl.engine.loop, "peak_memory", lambda _: 0)
    # Fetched without waiting, and read two iterations later.
    monkeypatch.setattr(FlagReader, "put", lambda *_: None)
    # Autograd and optimisers ask for a real device: those are left to the test that has one.
    monkeypatch.setattr(Optimization, "backward", lambda *_: None)
    # A copy of a fake tensor would belong to a copy of its mode.
    another = SimpleNamespace(deepcopy=lambda _: DeepLabV2(K, "resnet_tiny", 8))
    monkeypatch.setattr(cpsl.models.ema, "copy", another)
    # Modules are made on the device; moving parameters that have no values is not possible.
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    return fake_cuda


@pytest.mark.parametrize("stage", ["warmup", "self_label", "distill_1"])
@pytest.mark.parametrize("release", [False, True])
def test_a_training_step_waits_for_nothing(
    stage: str, release: bool, no_device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(tmp_path, *(["--config", str(RELEASE)] if release else []))
    train(stage, replace(config, evaluate_every=0, hand_on="last"), no_device, monkeypatch)
    with pytest.raises(DataDependentOutputException):
        torch.ones(1, device=no_device).item()


@pytest.mark.cuda
@pytest.mark.parametrize("stage", ["warmup", "self_label", "distill_1"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_makes_no_synchronisation(
    stage: str, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = torch.device("cuda", 0)
    config = settings(tmp_path, "--precision", precision)
    train(stage, config, device, monkeypatch)  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(stage, config, device, monkeypatch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
