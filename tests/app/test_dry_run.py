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


def test_the_largest_table_fits_80_columns() -> None:
    stages = ("labels for distill_1", "source_only", "self_label", "evaluation")
    parts = [dry_run.Part(stage, 9.99, 90_000, 99 * 10**9, 999 * 10**9) for stage in stages]
    lines = dry_run.table(parts).splitlines()
    assert max(map(len, lines)) <= 80
    assert "s per step" in lines[0]
