from pathlib import Path

import pytest
import torch

import hand_on
from config import Config, parse
from cpsl.engine import Process, TrainingLoop, load, read_scalars
from cpsl.models import DeepLabV2

HERE = Process(torch.device("cpu"))
MIOUS = {2: 10.0, 4: 30.0, 6: 20.0, 7: 25.0}  # of the evaluations after so many iterations


class StoppedError(Exception):
    pass


def settings(folder: Path, *options: str) -> Config:
    words = ["--output", str(folder), "--source.images", "a", "--target.images", "b"]
    return parse(Config, [*words, "--classes", "road", "sky", "--evaluate-every", "2", *options])


def train(config: Config, monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> None:
    """Trains a model whose bias counts the iterations."""
    model = DeepLabV2(2, "resnet_tiny", 8)
    bias = model.backbone.bn1.bias
    with torch.no_grad():
        bias.zero_()
    monkeypatch.setattr(
        hand_on, "evaluate", lambda *_: {"miou": MIOUS[round(float(bias[0].detach()))]}
    )
    chosen = hand_on.HandOn(model, "warmup", config, HERE)
    loop = TrainingLoop(
        config.output / "warmup",
        "warmup",
        iterations=7,
        seed=0,
        process=HERE,
        state={"model": model, "hand_on": chosen},
        checkpoint_every=3,
    )
    for iteration in loop:
        if iteration == stop_at:
            raise StoppedError
        with torch.no_grad():
            bias.add_(1)
        chosen.look(loop, iteration)
    chosen.save()


@pytest.mark.parametrize(("which", "wanted"), [("best", 4), ("last", 7)])
@pytest.mark.parametrize("stop_at", [-1, 3, 4, 5])
def test_the_last_or_the_best_weights_are_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, wanted: int, stop_at: int
) -> None:
    config = settings(tmp_path, "--hand-on", which)
    if stop_at >= 0:
        with pytest.raises(StoppedError):
            train(config, monkeypatch, stop_at)
    train(config, monkeypatch)
    bias = load(tmp_path / "warmup" / "model.pt")["model"]["backbone.bn1.bias"]
    assert bias[0] == wanted
    curve = {row["iteration"]: row["miou"] for row in read_scalars(tmp_path / "warmup")}
    assert curve == MIOUS


def test_nothing_is_evaluated_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings(tmp_path, "--evaluate-every", "0"), monkeypatch)
    assert read_scalars(tmp_path / "warmup") == []
