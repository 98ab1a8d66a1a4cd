"""Thresholds of the classes maximize the expected Dice coefficient, and balance labels accordingly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl import DiceThresholds

SEEDS = st.integers(0, 10_000)


def random_probabilities(seed: int, classes: int = 3, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(2, classes, 12, 17, generator=generator)).softmax(dim=1)


def expected_dice(p: Tensor, threshold: float) -> float:
    labeled = p >= threshold
    return float(2 * p[labeled].sum() / (labeled.sum() + p.sum()))


@given(seed=SEEDS, sharpness=st.floats(0.1, 10))
def test_no_other_threshold_has_a_larger_expected_dice(seed: int, sharpness: float) -> None:
    p = random_probabilities(seed, sharpness=sharpness)
    thresholds = DiceThresholds(3, momentum=0)
    thresholds.update(p)
    for k, threshold in enumerate(thresholds.compute().tolist()):
        of_class = p[:, k].flatten()
        best = max(expected_dice(of_class, t / 50) for t in range(1, 50))
        assert expected_dice(of_class, threshold) >= best - 0.02  # histograms round probabilities to 0.01
        assert 0.05 <= threshold <= 0.5


@given(seed=SEEDS)
def test_calibrated_labels_have_a_higher_dice_than_those_of_the_most_probable_class(seed: int) -> None:
    """A rare class that is never the most probable one is labeled nevertheless."""
    generator = torch.Generator().manual_seed(seed)
    rare = torch.rand(1, 1, 100, 100, generator=generator) * 0.45
    p = torch.cat([1 - rare, rare], dim=1)
    truth = torch.rand(1, 100, 100, generator=generator) < rare[:, 0]
    thresholds = DiceThresholds(2, momentum=0)
    thresholds.update(p)
    labels = thresholds(p).argmax(dim=1).bool()
    assert not p.argmax(dim=1).any()
    dice = 2 * (labels & truth).sum() / (labels.sum() + truth.sum())
    assert dice > 0.3


@given(seed=SEEDS, classes=st.integers(2, 5))
def test_certain_predictions_remain_as_they_are(seed: int, classes: int) -> None:
    p = random_probabilities(seed, classes, sharpness=1000.0)
    thresholds = DiceThresholds(classes, momentum=0)
    thresholds.update(p)
    assert torch.equal(thresholds(p).argmax(dim=1), p.argmax(dim=1))


@given(seed=SEEDS)
def test_batches_of_all_pixels_count_alike(seed: int) -> None:
    p = random_probabilities(seed)
    once, twice = DiceThresholds(3, momentum=0), DiceThresholds(3, momentum=0)
    once.update(p)
    twice.update(torch.cat([p, p]))
    torch.testing.assert_close(once.compute(), twice.compute())


@given(seed=SEEDS)
def test_pixels_without_a_prediction_do_not_count(seed: int) -> None:
    p = random_probabilities(seed)
    damaged = p.clone()
    damaged[0, :, :3] = torch.nan
    damaged[0, :, 3:5] = 0
    rest, all_pixels = DiceThresholds(3, momentum=0), DiceThresholds(3, momentum=0)
    rest.update(torch.cat([p[:1, :, 5:].flatten(2), p[1:].flatten(2)], dim=2)[..., None])
    all_pixels.update(damaged)
    assert torch.equal(rest.histograms, all_pixels.histograms)
    assert torch.equal(all_pixels(damaged)[0, :, 3:5], damaged[0, :, 3:5])


def test_the_first_batch_has_full_weight_and_later_ones_that_of_the_momentum() -> None:
    first, second = random_probabilities(0), random_probabilities(1)
    thresholds = DiceThresholds(3, momentum=0.75)
    thresholds.update(first)
    before = thresholds.histograms.clone()
    assert before.sum() == first.numel()
    thresholds.update(second, applied=torch.tensor(False))
    assert torch.equal(thresholds.histograms, before)
    thresholds.update(second, applied=torch.tensor(True))
    alone = DiceThresholds(3, momentum=0)
    alone.update(second)
    torch.testing.assert_close(thresholds.histograms, 0.75 * before + 0.25 * alone.histograms)


def test_before_the_first_pixel_nothing_changes() -> None:
    p = random_probabilities(2)
    torch.testing.assert_close(DiceThresholds(3)(p), p)


def test_the_histograms_stay_float32_or_become_float64() -> None:
    assert DiceThresholds(3).half().histograms.dtype == torch.float32
    single, double = DiceThresholds(3), DiceThresholds(3).double()
    for thresholds in (single, double):
        thresholds.update(random_probabilities(0))
    assert torch.equal(double.histograms, single.histograms.double())
    torch.testing.assert_close(double(random_probabilities(1)), single(random_probabilities(1)))


def test_more_pixels_are_counted_than_float32_can_count_one_by_one() -> None:
    thresholds = DiceThresholds(1)
    thresholds.update(torch.ones(1, 1, 4097, 4098))  # above 2**24
    assert thresholds.histograms.sum() == 4097 * 4098


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        DiceThresholds(4).update(random_probabilities(0, classes=3))
    with pytest.raises(ValueError, match="momentum"):
        DiceThresholds(4, momentum=2)
