"""Several sources: how often each is sampled, and what happens to its images."""

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.tiny import SETTINGS, cpsl, write_settings
from cpsl import data
from cpsl.app import source_sampling as module
from cpsl.app.checking.settings import Opened, validate
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.datasets import draw_streets, open_dataset, source_batches
from cpsl.app.domain import Domain
from cpsl.app.source_sampling import named_sources, source_sampling, source_shares
from cpsl.data.sample import files_of
from cpsl.training import Process

PROCESS = Process(torch.device("cpu"))


def two_sources(folder: Path, few: int = 1) -> str:
    """Returns settings of a game and a few labeled target images as sources."""
    return f"""
[[source]]
dataset = "gta5"
root = "{folder / "game"}"
streets = 9
streets_size = [64, 128]
[[source]]
dataset = "cityscapes"
root = "{folder / "few"}"
streets = {few}
streets_size = [64, 128]
from_target = true
[target]
dataset = "cityscapes"
root = "{folder / "real"}"
streets = 4
streets_size = [64, 128]
"""


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    path = write_settings(tmp_path, two_sources(tmp_path))
    words = ["--config", str(path), "--output", str(tmp_path / "run")]
    draw_streets(parse(words))
    return words


def datasets(config: Config) -> dict[str, data.SegmentationDataset]:
    return {name: open_dataset(config, source) for name, source in named_sources(config).items()}


def test_shares_follow_weights_and_by_default_the_square_roots_of_the_numbers(settings: list[str]) -> None:
    lengths = {"source 1": 9, "source 2": 1}
    assert source_shares(parse(settings), lengths) == {"source 1": 0.75, "source 2": 0.25}
    weighted = weigh([0.5, 1.5])
    assert source_shares(weighted, lengths) == {"source 1": 0.25, "source 2": 0.75}


def weigh(weights: list[float | None]) -> Config:
    """Returns settings of sources with these weights."""
    first, *others = (Domain(images=Path("a"), weight=weight) for weight in weights)
    return replace(Config(), source=first, more_sources=tuple(others))


WEIGHT = st.floats(0.01, 100)


@given(weights=st.lists(st.none() | WEIGHT, min_size=1, max_size=4))
def test_all_sources_have_a_weight_or_none_has(weights: list[float | None]) -> None:
    """Otherwise a weight of 2 could halve the share that a source has without it."""
    config = weigh(weights)
    missing = [name for name, source in named_sources(config).items() if source.weight is None]
    problems = [problem for problem in validate(config, PROCESS, Opened({}, {})) if "weight" in problem]
    assert len(problems) == (0 < len(missing) < len(weights))
    for problem in problems:
        assert [name for name in named_sources(config) if name in problem] == missing


@given(
    sources=st.lists(st.tuples(WEIGHT, st.integers(1, 10_000)), min_size=2, max_size=4),
    factor=st.floats(1.01, 100),
)
def test_a_higher_weight_raises_the_share_of_its_source_only(
    sources: list[tuple[float, int]], factor: float
) -> None:
    (first, _), *others = sources
    before = weigh([first, *(weight for weight, _ in others)])
    after = weigh([first * factor, *(weight for weight, _ in others)])
    lengths = {name: length for name, (_, length) in zip(named_sources(before), sources, strict=True)}
    old, new = source_shares(before, lengths), source_shares(after, lengths)
    assert new["source 1"] > old["source 1"]
    assert all(new[name] < old[name] for name in lengths if name != "source 1")
    assert sum(new.values()) == pytest.approx(1)


def test_sources_are_sampled_by_their_shares(settings: list[str]) -> None:
    config = parse(settings)
    sampling = source_sampling(config, PROCESS, datasets(config))
    assert isinstance(sampling, data.MixedSampling)
    counts = Counter(sampling(0, position).index == 9 for position in range(300))
    assert counts[True] / 300 == pytest.approx(0.25, abs=0.06)
    single = parse(["--source.images", "a", "--output", "r"])
    assert source_sampling(single, PROCESS, {"source": datasets(config)["source 1"]}) is None


def test_names_are_unique_and_labeled_target_images_keep_their_colors(settings: list[str]) -> None:
    batches = {}
    for options in ([], ["--views.color-transfer", "0"], ["--views.on-device"]):
        config = parse([*settings, *options])
        batches[tuple(options)] = list(islice(source_batches(config, "warmup", PROCESS, 4, 0), 4))
    styled, plain, deferred = batches.values()
    names = Counter(name for batch in styled for name in batch.names)
    assert {name.split("/")[0] for name in names} == {"source 1", "source 2"}
    for with_transfer, without, on_device in zip(styled, plain, deferred, strict=True):
        assert with_transfer.names == without.names == on_device.names
        for index, name in enumerate(without.names):
            kept = torch.equal(with_transfer.image[index], without.image[index])
            assert kept == name.startswith("source 2")
            assert kept == torch.equal(on_device.image[index], without.image[index])


def test_a_resumed_run_does_not_read_labels_again(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse([*settings, "--views.rare-class-temperature", "0.05"])
    first = source_sampling(config, PROCESS, datasets(config))
    assert isinstance(first, data.RareClassSampling)

    def fail(*arguments: object) -> None:
        raise AssertionError("the labels are read again")

    monkeypatch.setattr(module.data, "count_classes", fail)
    second = source_sampling(config, PROCESS, datasets(config))
    assert isinstance(second, data.RareClassSampling)
    assert torch.equal(first.image_probabilities, second.image_probabilities)
    other = parse([*settings, "--views.rare-class-temperature", "0.05", "--source.max-images", "3"])
    with pytest.raises(AssertionError, match="again"):
        source_sampling(other, PROCESS, datasets(other))


@pytest.mark.parametrize("source", ["source 1", "source 2"])
def test_labels_that_changed_are_counted_again(settings: list[str], source: str) -> None:
    config = parse([*settings, "--views.rare-class-temperature", "0.05"])
    sources = datasets(config)
    before = module.count_source(config, PROCESS, source, sources[source])
    label = files_of(sources[source], 0)[1]
    assert label is not None
    with Image.open(label) as stored:
        changed = stored.copy()
    changed.paste(7, (0, 0, changed.width, changed.height))  # all road
    changed.save(label)
    after = module.count_source(config, PROCESS, source, sources[source])
    assert torch.equal(after, data.count_classes(sources[source]))
    assert not torch.equal(after, before)


def test_rare_classes_are_sampled_more_often(settings: list[str]) -> None:
    config = parse([*settings, "--source-only.batch-size", "4"])

    def labels(options: list[str]) -> torch.Tensor:
        batches = source_batches(parse([*settings, *options]), "warmup", PROCESS, 4, 0)
        present = [label.unique() for batch in islice(batches, 8) for label in batch.label]
        return torch.bincount(torch.cat(present).long(), minlength=256)[:19]

    counts = sum(data.count_classes(dataset).sum(dim=0) for dataset in datasets(config).values())
    rare = torch.tensor([math.inf if n == 0 else n for n in counts.tolist()]).argsort()[:6]
    even = labels([])[rare].sum()
    assert labels(["--views.rare-class-temperature", "0.01"])[rare].sum() > 1.1 * even


def test_a_run_with_several_sources_reports_each(tmp_path: Path) -> None:
    path = write_settings(tmp_path, two_sources(tmp_path), SETTINGS)
    words = ["--config", path, "--output", tmp_path / "run", "--views.source-jitter", "0.4"]
    words += ["--views.color-transfer", "0.5", "--views.rare-class-temperature", "0.1"]
    checked = cpsl("check", *words)
    assert checked.code == 0, checked.text
    shares = re.findall(r"^source \d: \d images, .* % of the samples$", checked.text, re.M)
    assert [line[:8] for line in shares] == ["source 1", "source 2"]
    ended = cpsl("adapt", *words)
    assert ended.code == 0, ended.text
    assert all(f"{line}\n" in ended.text for line in shares), ended.text
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for source, images in (("source 1", 9), ("source 2", 1)):
        assert f'<th scope="row">{source}</th><td>{images}</td>' in report
    assert "most of the sampled pixels of " in report
    again = cpsl("adapt", *words)
    assert again.code == 0, again.text


def test_the_source_with_a_problem_is_named(settings: list[str], tmp_path: Path) -> None:
    (broken,) = (tmp_path / "few").rglob("*_labelIds.png")
    broken.write_bytes(b"")
    ended = cpsl("check", *settings, "--target.streets", 0)
    assert ended.code == 1
    assert any(line.startswith("source 2: ") for line in ended.text.splitlines()), ended.text
    assert not any(line.startswith("source 1: streets") for line in ended.text.splitlines())
