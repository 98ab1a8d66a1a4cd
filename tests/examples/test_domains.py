from itertools import islice
from pathlib import Path

import pytest
import torch

from config import Config, parse
from cpsl.data import SourceBatch, TargetBatch
from cpsl.engine import Process
from domains import draw_streets, source_batches, target_batches

HERE = Process(torch.device("cpu"))


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    sides = {"source": ("gta5", "game"), "target": ("cityscapes", "real")}
    options = ["--output", str(tmp_path), "--workers", "0", "--views.width", "130"]
    options += ["--views.full-size", "64", "128", "--views.crop", "32", "48"]
    for name, (dataset, folder) in sides.items():
        options += [f"--{name}.dataset", dataset, f"--{name}.root", str(tmp_path / folder)]
        options += [f"--{name}.streets", "2", f"--{name}.streets-size", "64", "128"]
    return options


def test_the_device_finishes_batches_as_workers_would(settings: list[str]) -> None:
    def batches(*options: str) -> list[SourceBatch | TargetBatch]:
        config = parse(Config, [*settings, *options])
        draw_streets(config)
        made = (each(config, "warmup", HERE, 2, 0) for each in (source_batches, target_batches))
        return [batch for both in made for batch in islice(both, 3)]

    for there, here in zip(batches(), batches("--views.on-device", "True"), strict=True):
        assert there.names == here.names
        if isinstance(there, SourceBatch):
            assert torch.equal(there.label, here.label)
            images = there.image, here.image
        else:
            assert torch.equal(there.strong_view.matrix, here.strong_view.matrix)
            images = there.strong, here.strong
        difference = (images[0].int() - images[1].int()).abs()
        assert (difference > 1).float().mean() < 0.005
        assert difference.float().mean() < 0.2
