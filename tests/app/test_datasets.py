from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl._internal.workers import usable_cores
from cpsl.app.command_line import parse, read_layers
from cpsl.app.config import Config
from cpsl.app.datasets import (
    draw_streets,
    file_workers,
    micro_batches,
    open_dataset,
    source_batches,
    target_batches,
)
from cpsl.app.settings import UsageError, to_toml
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


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8))
def test_micro_batches_divide_a_batch_evenly_or_not_at_all(batch_size: int, steps: int, ranks: int) -> None:
    config = replace(Config(), gradient_accumulation_steps=steps)
    process = Process(torch.device("cpu"), 0, ranks)
    try:
        parts, images = micro_batches(config, batch_size, process)
    except ValueError:
        assert batch_size % ranks or batch_size // ranks % steps
        return
    assert parts * images * ranks == batch_size
    assert images >= 1
    assert parts == min(steps, batch_size // ranks)


@pytest.mark.parametrize("memory", ["one_gpu_16gb", "one_gpu_24gb", "one_gpu_80gb"])
@pytest.mark.parametrize(
    "recipe", [None, "gpu", "gta5_to_cityscapes", "synthia_to_cityscapes", "online_mit_b5", "online_dinov2"]
)
def test_the_recipes_of_one_gpu_suit_all_recipes(recipe: str | None, memory: str) -> None:
    config = read_layers([memory] if recipe is None else [recipe, memory])
    for stage in config.stages:
        micro_batches(config, config.settings_of(stage).batch_size, PROCESS)


def test_files_are_read_and_written_on_all_cores_unless_other_processes_are_ruled_out() -> None:
    config = read_layers(["cpu"])
    assert config.workers == 1
    assert file_workers(config, 25_000) == usable_cores()
    assert file_workers(config, 3) == 0
    assert file_workers(replace(config, workers=0), 25_000) == 0


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


def write_pictures(folder: Path) -> Path:
    """Writes large images and colored labels in a layout that needs settings, and the settings."""
    for i in range(2):
        for part, color in (("images/{}_image.jpg", "#204060"), ("annotations/{}_annotation.png", "#ff0000")):
            path = folder / part.format(i)
            path.parent.mkdir(exist_ok=True, parents=True)
            Image.new("RGB", (128, 64), color).save(path)
    settings = folder / "settings.toml"
    settings.write_text(f"""
        classes = ["ground", "car"]
        output = '{folder}/run'
        workers = 0
        views = {{ full_size = [32, 64], crop = [16, 32], width = 64, color_transfer = 0 }}
        [source]
        images = '{folder}/images'
        labels = '{folder}/annotations'
        image_pattern = "*_image.jpg"
        label_pattern = "*_annotation.png"
        tolerance = 9
        cache = '{folder}/cache'
        [source.ids]
        "#000000" = "ground"
        "#fc0303" = "car"
        [target]
        images = '{folder}/images'
    """)
    return settings


def test_labels_are_described_by_settings_alone(tmp_path: Path) -> None:
    config = parse(["--config", str(write_pictures(tmp_path))])
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config), encoding="utf-8")
    assert parse(["--config", str(again)]) == config
    dataset = open_dataset(config, config.source)
    assert dataset.names == ["0_image", "1_image"]
    label = dataset[1].label
    assert label is not None
    assert label.unique().tolist() == [1]
    batch = next(source_batches(config, "source_only", PROCESS, 2, 0))
    assert batch.label.unique().tolist() == [1]
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--source.image-pattern", "image.png"], r"source\.image_pattern.*star"),
        (["--source.ids", "#ff", "0"], r"source\.ids.*#ff"),
        (["--source.tolerance", "256"], r"source\.tolerance"),
        (["--source.first-id", "-1"], r"source\.first_id"),
    ],
)
def test_wrong_descriptions_of_labels_are_named(tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(["--config", str(write_pictures(tmp_path)), *options])


def test_settings_that_a_data_set_does_not_read_are_refused(tmp_path: Path) -> None:
    config = parse(["--config", str(write_pictures(tmp_path))])
    other = replace(config.source, dataset="gta5", root=tmp_path)
    with pytest.raises(ValueError, match='ids is a setting of dataset = "folder", not of "gta5"'):
        open_dataset(config, other)
    inside = replace(config.source, cache=tmp_path / "images" / "cache")
    with pytest.raises(ValueError, match=r"images/cache is inside"):
        open_dataset(config, inside)
