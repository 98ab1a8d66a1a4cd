from pathlib import Path
from time import sleep

import pytest
import torch
from PIL import Image

from cpsl.app import dry_run
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.datasets import evaluation_dataset
from cpsl.training import Process


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_time_of_an_image_does_not_depend_on_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    (tmp_path / "images").mkdir()
    for index in range(images):
        Image.new("RGB", (32, 16)).save(tmp_path / "images" / f"{index}.png")

    def evaluate(model: object, config: Config, process: Process) -> None:
        sleep(0.2 * len(evaluation_dataset(config)))

    monkeypatch.setattr(dry_run, "evaluate", evaluate)
    words = [
        "--target.images",
        str(tmp_path / "images"),
        "--init-from.online",
        "model.pt",
        "--classes",
        "a",
        "b",
    ]
    words += ["--model.network", "deeplabv2:resnet_tiny", "--output", str(tmp_path / "run")]
    (part,) = dry_run.dry_run(parse(words), Process(torch.device("cpu")))
    assert (part.name, part.times) == ("evaluation", images)
    assert 0.19 < part.seconds < 0.38
