from pathlib import Path

import pytest
import torch

from cpsl.app import selection
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.models import DeepLabV2
from cpsl.training import Process, TrainingLoop, load, read_scalars

PROCESS = Process(torch.device("cpu"))
MIOUS = {2: 10.0, 4: 30.0, 6: 20.0, 7: 25.0}  # by iteration of the evaluation


class StoppedError(Exception):
    pass


def settings(folder: Path, *options: str) -> Config:
    words = ["--output", str(folder), "--source.images", "a", "--target.images", "b"]
    return parse([*words, "--classes", "road", "sky", "--evaluate-every", "2", *options])


def train(config: Config, monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> None:
    """Trains a model whose bias counts the iterations."""
    model = DeepLabV2(2, "resnet_tiny", 8)
    bias = model.backbone.bn1.bias
    with torch.no_grad():
        bias.zero_()
    monkeypatch.setattr(selection, "evaluate", lambda *_: {"miou": MIOUS[round(float(bias[0].detach()))]})
    checkpoints = selection.CheckpointSelection(model, "warmup", config, PROCESS)
    loop = TrainingLoop(
        config.output / "warmup",
        "warmup",
        iterations=7,
        seed=0,
        process=PROCESS,
        state={"model": model, "selection": checkpoints},
        checkpoint_every=3,
    )
    for iteration in loop:
        if iteration == stop_at:
            raise StoppedError
        with torch.no_grad():
            bias.add_(1)
        checkpoints.update(loop, iteration)
    checkpoints.save()


@pytest.mark.parametrize(("which", "wanted"), [("best", 4), ("last", 7)])
@pytest.mark.parametrize("stop_at", [-1, 3, 4, 5])
def test_the_last_or_the_best_weights_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, wanted: int, stop_at: int
) -> None:
    config = settings(tmp_path, "--select-checkpoint", which)
    if stop_at >= 0:
        with pytest.raises(StoppedError):
            train(config, monkeypatch, stop_at)
    train(config, monkeypatch)
    bias = load(tmp_path / "warmup" / "model.pt")["model"]["backbone.bn1.bias"]
    assert bias[0] == wanted
    curve = {row["iteration"]: row["miou"] for row in read_scalars(tmp_path / "warmup")}
    assert curve == MIOUS


def test_nothing_is_evaluated_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings(tmp_path, "--evaluate-every", "0"), monkeypatch)
    assert read_scalars(tmp_path / "warmup") == []
