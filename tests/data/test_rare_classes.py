"""Rare-class sampling follows DAFormer's equation, and is a function of seed and position."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from cpsl.data import (
    LabelSpace,
    RareClassSampling,
    Sample,
    SeededSampler,
    SourceViews,
    WeakView,
    count_classes,
    rare_class_probabilities,
)
from cpsl.data.rare_classes import MIN_SHARE

COUNTS = arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(0, 5000)).map(
    torch.from_numpy
)
SOME_COUNTS = COUNTS.filter(lambda counts: bool(counts.any()))


class Labels:
    """Labels (N, H, W) with gray images."""

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.labels = labels
        self.names = [str(index) for index in range(len(labels))]
        self.label_space = LabelSpace(tuple(map(str, range(num_classes))), ((0, 0, 0),) * num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        return torch.full((3, *self.labels[index].shape), 99, dtype=torch.uint8)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image(index), self.labels[index], self.names[index])


@given(counts=SOME_COUNTS, temperature=st.floats(0.05, 2))
def test_classes_follow_the_equation(counts: Tensor, temperature: float) -> None:
    frequencies = counts.double().sum(dim=0) / counts.sum()
    exponentials = torch.where(frequencies > 0, ((1 - frequencies) / temperature).exp(), 0)
    sampling = RareClassSampling(counts, temperature)
    expected = (exponentials / exponentials.sum()).float()
    torch.testing.assert_close(sampling.probabilities, expected, atol=1e-6, rtol=1e-4)


def test_samples_have_the_probabilities() -> None:
    counts = torch.tensor([[900, 100, 0], [990, 0, 10], [500, 480, 20], [1000, 0, 0]])
    sampling = RareClassSampling(counts, temperature=0.3, weights=[1, 1, 3, 1])
    items = [sampling(0, position) for position in range(4000)]
    classes = torch.bincount(torch.tensor([item.rare_class for item in items]), minlength=3) / len(items)
    images = torch.bincount(torch.tensor([item.index for item in items]), minlength=4) / len(items)
    torch.testing.assert_close(classes, sampling.probabilities, atol=0.03, rtol=0)
    torch.testing.assert_close(images, sampling.image_probabilities, atol=0.03, rtol=0)
    # Of the images of the last class, the third has three times the weight of the second.
    last = [item.index for item in items if item.rare_class == 2]
    assert 2 < last.count(2) / last.count(1) < 4.5


@given(counts=SOME_COUNTS, seed=st.integers(0, 99))
def test_images_contain_their_class(counts: Tensor, seed: int) -> None:
    sampling = RareClassSampling(counts, temperature=0.5)
    assert float(sampling.image_probabilities.sum()) == pytest.approx(1, abs=1e-5)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    for position in range(20):
        item = sampling(seed, position)
        share = shares[item.index, item.rare_class]
        assert share > 0
        assert share >= MIN_SHARE or (shares[:, item.rare_class] < MIN_SHARE).all()


@given(counts=SOME_COUNTS, start=st.integers(0, 20), seed=st.integers(0, 9))
def test_samples_depend_on_seed_and_position_alone(counts: Tensor, start: int, seed: int) -> None:
    sampling = RareClassSampling(counts, temperature=0.5)

    def batches(size: int, **options: int) -> SeededSampler:
        return SeededSampler(len(counts), size, seed, sampling=sampling, **options)

    whole = list(islice(batches(2), start + 3))
    assert list(islice(batches(2, start=start), 3)) == whole[start:]
    ranks = [list(islice(batches(1, rank=rank, world_size=2), start + 3)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole
    seeds = [item.seed for batch in whole for item in batch]
    assert len(set(seeds)) == len(seeds)


@given(
    labels=arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 255])).map(torch.from_numpy),
    threads=st.integers(1, 3),
)
def test_counts_are_those_of_each_label(labels: Tensor, threads: int) -> None:
    counts = count_classes(Labels(labels, 3), threads=threads)
    expected = [[int((label == index).sum()) for index in range(3)] for label in labels]
    assert counts.tolist() == expected


def test_a_missing_label_is_named() -> None:
    class Unlabeled(Labels):
        def __getitem__(self, index: int) -> Sample:
            return Sample(self.image(index), None, f"street {index}")

    with pytest.raises(ValueError, match=r"0: .*label"):
        count_classes(Unlabeled(torch.zeros(2, 4, 4, dtype=torch.uint8), 1))


def test_crops_show_the_class() -> None:
    """The class covers a corner, which most crops miss."""
    labels = torch.zeros(1, 64, 128, dtype=torch.uint8)
    labels[:, :12, :12] = 1
    dataset = Labels(labels, 2)
    weak = WeakView(full_size=(64, 128), crop=(24, 24), width=128, scale=(1.0, 1.0), flip=False)
    views, sampling = SourceViews(dataset, weak), RareClassSampling(count_classes(dataset), 0.01)
    rare, plain = 0, 0
    for position in range(200):
        item = sampling(0, position)
        assert item.rare_class == 1
        batch = views[item]
        rare += bool((batch.label == 1).any())
        plain += bool((views[type(item)(item.index, item.seed)].label == 1).any())
        assert torch.equal(batch.label, views[item].label)
    # One crop of about 18 shows the corner; ten trials miss it in half of the cases.
    assert plain < 30
    assert rare > 3 * plain


@pytest.mark.parametrize(
    ("counts", "options", "named"),
    [
        (torch.zeros(2, 3), {}, "no class"),
        (torch.ones(2), {}, r"\(2,\)"),
        (torch.ones(2, 3), {"temperature": 0.0}, "0.0"),
        (torch.ones(2, 3), {"weights": [1.0]}, "2"),
        (torch.ones(2, 3), {"weights": [1.0, -1.0]}, "negative"),
    ],
)
def test_degenerate_inputs_are_refused(counts: Tensor, options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RareClassSampling(counts, **options)


def test_the_temperature_goes_from_the_rarest_class_to_all() -> None:
    frequencies = torch.tensor([0.7, 0.25, 0.05])
    cold, hot = (rare_class_probabilities(frequencies, t) for t in (1e-3, 1e3))
    torch.testing.assert_close(cold, torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(hot, torch.full((3,), 1 / 3), atol=1e-3, rtol=0)
