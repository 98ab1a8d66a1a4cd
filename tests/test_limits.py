"""Classes of pseudo labels grow up to their limits; everything within the limits is left alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpsl import ShareLimits

SEEDS = st.integers(0, 10_000)
K = 4


def random_probabilities(seed: int, favored: Tensor | None = None, sharpness: float = 2.0) -> Tensor:
    """Returns probabilities (2, K, 24, 30); `favored` (K,) is added to the scores."""
    generator = torch.Generator().manual_seed(seed)
    scores = sharpness * torch.randn(2, K, 24, 30, generator=generator)
    if favored is not None:
        scores = scores + favored[:, None, None]
    return scores.softmax(dim=1)


def shares_of(labels: Tensor) -> Tensor:
    return torch.bincount(labels.flatten(), minlength=K) / labels.numel()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, start_updates=st.integers(1, 3), growing=st.integers(0, K - 1))
def test_a_class_that_runs_away_is_held_at_its_limit(seed: int, start_updates: int, growing: int) -> None:
    limits = ShareLimits(torch.full((K,), 0.2), margin=0.02, start_updates=start_updates, momentum=0.5)
    start = random_probabilities(seed)
    for _ in range(start_updates):
        limits.update(start, limits(start).argmax(dim=1))
    assert torch.equal(limits.factors, torch.ones(K))
    favored = torch.zeros(K)
    favored[growing] = 2.5
    later = random_probabilities(seed + 1, favored)
    assert shares_of(later.argmax(dim=1))[growing] > 0.5
    for _ in range(200):
        limits.update(later, limits(later).argmax(dim=1))
    shares = shares_of(limits(later).argmax(dim=1))
    assert limits.limits()[growing] < 0.35
    assert shares[growing] == pytest.approx(limits.limits()[growing].item(), abs=0.02)


@given(seed=SEEDS)
def test_within_the_limits_nothing_changes(seed: int) -> None:
    """Shares may change freely: each class may have all pixels here."""
    limits = ShareLimits(torch.ones(K), margin=1.0, start_updates=0)
    for step in range(3):
        p = random_probabilities(seed + step)
        torch.testing.assert_close(limits(p), p)
        limits.update(p, limits(p).argmax(dim=1))
    assert torch.equal(limits.factors, torch.ones(K))


@given(seed=SEEDS, updates=st.integers(1, 4))
def test_limits_widen_with_the_difference_of_source_and_start(seed: int, updates: int) -> None:
    source = torch.tensor([7.0, 1.0, 1.0, 1.0])
    limits = ShareLimits(source, margin=0.03, start_updates=updates)
    batches = [random_probabilities(seed + step, sharpness=1.0) for step in range(updates)]
    for p in [*batches, random_probabilities(seed + 9, torch.arange(K).float())]:
        limits.update(p, p.argmax(dim=1))
    squares = torch.stack([p.square().sum(dim=(0, 2, 3)) for p in batches])
    start = (squares / squares.sum(dim=1, keepdim=True)).mean(dim=0)
    variation = (source / 10 - start).clamp_min(0).sum()  # what one has more is what the other lacks
    torch.testing.assert_close(limits.limits(), (1 + variation) * torch.maximum(source / 10, start) + 0.03)


@given(suspicion=st.floats(0.01, 0.45))
def test_a_class_that_is_only_suspected_hardly_counts(suspicion: float) -> None:
    """The start is then nearer to the most probable classes than to the mean probabilities."""
    limits = ShareLimits(torch.ones(2), start_updates=1)
    p = torch.tensor([1 - suspicion, suspicion]).expand(1, 4, 4, 2).movedim(3, 1)
    limits.update(p, p.argmax(dim=1))
    assert 0 < limits.start[1] < suspicion
    certain = ShareLimits(torch.ones(2), start_updates=1)
    certain.update(p.round(), p.argmax(dim=1))
    assert certain.start.tolist() == [1, 0]


@given(seed=SEEDS)
def test_a_class_that_falls_below_its_limit_recovers(seed: int) -> None:
    limits = ShareLimits(torch.ones(K), margin=0.0, start_updates=0, momentum=0.0)
    p = random_probabilities(seed)
    limits.update(p, torch.zeros(2, 24, 30, dtype=torch.long))
    held = limits.factors[0].item()
    assert held < 1
    for _ in range(3):
        limits.update(p, torch.full((2, 24, 30), 3))
    assert limits.factors[0] > held
    assert 0.05 <= limits.factors.min() < 1


@given(seed=SEEDS)
def test_pixels_without_a_prediction_or_label_do_not_count(seed: int) -> None:
    p = random_probabilities(seed)
    damaged, labels = p.clone(), p.argmax(dim=1)
    damaged[0, :, :3] = torch.nan
    damaged[0, :, 3:5] = 0
    labels[0, :5] = 255
    rest, all_pixels = ShareLimits(torch.ones(K)), ShareLimits(torch.ones(K))
    kept = torch.cat([p[:1, :, 5:].flatten(2), p[1:].flatten(2)], dim=2)[..., None]
    rest.update(kept, kept.argmax(dim=1))
    all_pixels.update(damaged, labels)
    torch.testing.assert_close(rest.state_dict(), all_pixels.state_dict())
    assert torch.equal(all_pixels(damaged)[0, :, 3:5], damaged[0, :, 3:5])
    before = {name: value.clone() for name, value in all_pixels.state_dict().items()}
    all_pixels.update(p, torch.full_like(labels, 255))
    torch.testing.assert_close(before, all_pixels.state_dict(), rtol=0, atol=0)


def test_a_skipped_step_changes_nothing() -> None:
    limits = ShareLimits(torch.ones(K), start_updates=0)
    p = random_probabilities(0)
    limits.update(p, p.argmax(dim=1))
    before = {name: value.clone() for name, value in limits.state_dict().items()}
    limits.update(p, torch.zeros(2, 24, 30, dtype=torch.long), applied=torch.tensor(False))
    torch.testing.assert_close(before, limits.state_dict(), rtol=0, atol=0)
    limits.update(p, torch.zeros(2, 24, 30, dtype=torch.long), applied=torch.tensor(True))
    assert limits.updates == 2
    assert limits.factors[0] < 1


def test_the_buffers_stay_float32() -> None:
    limits = ShareLimits(torch.ones(K)).half()
    assert {limits.start.dtype, limits.shares.dtype, limits.factors.dtype} == {torch.float32}


@given(largest=st.integers(1, 60_000), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_counts_in_half_precision_do_not_overflow(largest: int, dtype: torch.dtype) -> None:
    counts = torch.tensor([largest, largest, 60_000, 0]).to(dtype)
    source = ShareLimits(counts).source
    assert source.dtype == torch.float32
    torch.testing.assert_close(source, counts.float() / counts.float().sum())


def test_wrong_values_are_named() -> None:
    for source in (torch.zeros(K), torch.tensor([0.5, -0.5, 1.0]), torch.ones(2, K)):
        with pytest.raises(ValueError, match="class distribution"):
            ShareLimits(source)
    for option, value in {"margin": -0.1, "momentum": 2.0}.items():
        with pytest.raises(ValueError, match=f"{option}.*{value}"):
            ShareLimits(torch.ones(K), **{option: value})
    limits, p = ShareLimits(torch.ones(K)), random_probabilities(0)
    with pytest.raises(ValueError, match="probabilities"):
        limits.update(p[:, :3], p.argmax(dim=1))
    with pytest.raises(ValueError, match="labels"):
        limits.update(p, p.argmax(dim=1)[:, ::2])
    with pytest.raises(ValueError, match="probabilities"):
        limits(p[:, :3])


@given(seed=SEEDS, margin=st.sampled_from([0.0, 0.005]), start_updates=st.integers(0, 2))
def test_a_class_that_neither_domain_has_makes_nothing_undefined(
    seed: int, margin: float, start_updates: int
) -> None:
    limits = ShareLimits(torch.tensor([1.0, 1.0, 1.0, 0.0]), margin=margin, start_updates=start_updates)
    absent = torch.zeros(K)
    absent[-1] = -torch.inf
    for step in range(start_updates + 3):
        p = random_probabilities(seed + step, absent)
        limits.update(p, limits(p).argmax(dim=1))
        assert limits.factors.isfinite().all()
        assert limits(p).isfinite().all()


def test_a_negative_number_of_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="start_updates"):
        ShareLimits(torch.ones(K), start_updates=-1)
