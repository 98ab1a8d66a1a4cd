"""BatchNorm statistics of the target are kept, unless the predictions then tell less about the pixels."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cpsl.app import target_statistics
from cpsl.app.config import Config, Online, Views
from cpsl.app.domain import Domain
from cpsl.app.stages import MIXED_VIEWS
from cpsl.app.target_statistics import BATCHES, LARGEST_LOSS, mix_target_statistics
from cpsl.data import write_streets
from cpsl.methods.step import to_float
from cpsl.models import DeepLabV2, adapt_batch_norm
from cpsl.training import Process

BATCH = torch.randint(256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the images of the target; returns the processes that asked for them."""
    processes: list[Any] = []

    def batches(config: Config, stage: str, process: Process, *_: Any, **__: Any) -> Iterator[Any]:
        processes.append(process)
        while True:
            yield SimpleNamespace(weak=BATCH)

    monkeypatch.setattr(target_statistics, "target_batches", batches)
    return processes


def mixed(config: Config, network: DeepLabV2, process: Process | None = None) -> DeepLabV2:
    network = copy.deepcopy(network)
    mix_target_statistics(network, MIXED_VIEWS, config, process or Process(torch.device("cpu")))
    return network


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("keeps", [True, False])
def test_statistics_are_kept_unless_the_predictions_tell_less(
    keeps: bool, asked: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([0.5, 0.5 * (1 - LARGEST_LOSS) + (0.001 if keeps else -0.001)])
    monkeypatch.setattr(target_statistics, "_information", lambda *_: next(values))
    network = DeepLabV2(3, "resnet_tiny", 8).train()
    with caplog.at_level("INFO", logger="cpsl"):
        found = mixed(Config(), network)
    wanted = copy.deepcopy(network)
    if keeps:
        adapt_batch_norm(wanted, [to_float(BATCH)] * BATCHES, Config().online.target_statistics)
    assert equal(found, wanted)
    assert equal(found, network) != keeps
    assert found.training
    assert [all(text in line for text in ("0.500", "0.484")) for line in caplog.messages] == [True] * (
        not keeps
    )


def test_predictions_tell_most_if_they_are_certain_and_of_several_classes() -> None:
    network = DeepLabV2(3, "resnet_tiny", 8)
    uncertain = target_statistics._information(network, [BATCH])
    nn.init.normal_(network.head.classify.weight, std=100.0)
    assert uncertain < 0.1 < target_statistics._information(network, [BATCH]) <= 1
    assert network.training


@pytest.mark.parametrize(
    "online", [{"target_statistics": 0.0}, {"start": "pretrained"}, {"start": "random"}], ids=str
)
def test_without_share_or_source_network_nothing_is_measured(
    online: dict[str, Any], asked: list[Any]
) -> None:
    network = DeepLabV2(3, "resnet_tiny", 8)
    config = Config()
    assert equal(mixed(replace(config, online=replace(config.online, **online)), network), network)
    assert not asked


@pytest.mark.parametrize("parts", [1, 4])
def test_accumulation_does_not_change_the_number_of_images(
    parts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_streets(tmp_path, layout="cityscapes", style="real", count=2, size=(64, 128))
    measured: list[int] = []

    def measure(network: Any, images: Any) -> float:
        measured.append(sum(map(len, images)))
        return 1.0

    monkeypatch.setattr(target_statistics, "_information", measure)
    config = Config(
        target=Domain(dataset="cityscapes", root=tmp_path),
        views=Views(full_size=(64, 128), crop=(32, 64)),
        online=Online(batch_size=4),
        workers=0,
        gradient_accumulation_steps=parts,
    )
    mixed(config, DeepLabV2(3, "resnet_tiny", 8))
    assert measured == [4 * BATCHES, 4 * BATCHES]


def test_each_rank_measures_the_same_images(asked: list[Any]) -> None:
    network = DeepLabV2(3, "resnet_tiny", 8)
    mixed(Config(), network, Process(torch.device("cpu"), rank=1, world_size=2))
    (process,) = asked
    assert (process.rank, process.world_size) == (0, 1)
