from itertools import islice
from pathlib import Path

import pytest
import torch

from cpsl.app.command_line import parse
from cpsl.app.datasets import draw_streets, source_batches, target_batches
from cpsl.data import SourceBatch, TargetBatch
from cpsl.training import Process

PROCESS = Process(torch.device("cpu"))


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    sides = {"source": ("gta5", "game"), "target": ("cityscapes", "real")}
    options = ["--output", str(tmp_path), "--workers", "0", "--views.width", "130"]
    options += ["--views.full-size", "64", "128", "--views.crop", "32", "48"]
    for name, (dataset, folder) in sides.items():
        options += [f"--{name}.dataset", dataset, f"--{name}.root", str(tmp_path / folder)]
        options += [f"--{name}.streets", "2", f"--{name}.streets-size", "64", "128"]
    return options


def test_deferred_operations_on_the_device_agree_with_those_of_the_workers(settings: list[str]) -> None:
    def batches(*options: str) -> list[SourceBatch | TargetBatch]:
        config = parse([*settings, *options])
        draw_streets(config)
        made = (each(config, "warmup", PROCESS, 2, 0) for each in (source_batches, target_batches))
        return [batch for both in made for batch in islice(both, 3)]

    for workers, device in zip(batches(), batches("--views.on-device"), strict=True):
        assert workers.names == device.names
        if isinstance(workers, SourceBatch):
            assert torch.equal(workers.label, device.label)
            images = workers.image, device.image
        else:
            assert torch.equal(workers.strong_view.matrix, device.strong_view.matrix)
            images = workers.strong, device.strong
        # Torchvision's operations agree with Pillow's within a gray level on average.
        assert (images[0].int() - images[1].int()).abs().float().mean() < 1
