from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.scores import (
    LabelFreeScores,
    Scores,
    agreement,
    mean_entropy,
    mutual_information,
    soft_neighborhood_density,
)
from cpsl.training import start_process
from ranks import start_ranks

K, H, W = 4, 5, 6
SEEDS = st.integers(0, 10_000)
SHARPNESS = st.sampled_from([0.0, 0.3, 3.0, 200.0])
BAD = st.sampled_from([torch.nan, torch.inf, -torch.inf])


def random_logits(seed: int, sharpness: float = 3.0, images: int = 3) -> Tensor:
    return sharpness * torch.randn(images, K, H, W, generator=torch.Generator().manual_seed(seed))


def flat(scores: Scores) -> Tensor:
    """Returns all numbers of a result."""
    compared = [value for pair in scores.agreements.values() for value in pair]
    return torch.cat([value.reshape(-1).double() for value in (*scores[:6], *compared, *scores[7:])])


def naive_density(pixels: Tensor, temperature: float = 0.05) -> float:
    """Computes the density of probabilities (n, K) pixel by pixel."""
    n, total = len(pixels), 0.0
    unit = pixels / pixels.norm(dim=1, keepdim=True)
    for i in range(n):
        others = torch.stack([unit[i] @ unit[j] for j in range(n) if j != i]) / temperature
        q = (others - others.max()).exp()
        q = q / q.sum()
        total -= float((q * (q + 1e-300).log()).sum())
    return total / n


@given(seed=SEEDS, sharpness=SHARPNESS)
def test_scores_match_their_equations(seed: int, sharpness: float) -> None:
    logits = random_logits(seed, sharpness)
    p = logits.double().softmax(dim=1).movedim(1, -1).reshape(-1, K)
    entropies = torch.special.entr(p).sum(dim=1)
    largest = torch.tensor(float(K), dtype=torch.float64).log()
    marginal = torch.special.entr(p.mean(dim=0)).sum()
    expected = entropies.mean() / largest
    torch.testing.assert_close(mean_entropy(logits).double(), expected, atol=1e-5, rtol=1e-5)
    information = (marginal - entropies.mean()) / largest
    torch.testing.assert_close(mutual_information(logits).double(), information, atol=1e-5, rtol=1e-5)
    densities = [naive_density(image) for image in p.reshape(3, -1, K)]
    density = float(soft_neighborhood_density(logits))
    assert density == pytest.approx(sum(densities) / 3, abs=1e-4)


@given(seed=SEEDS, sharpness=SHARPNESS)
def test_scores_lie_in_their_ranges(seed: int, sharpness: float) -> None:
    logits = random_logits(seed, sharpness)
    slack = 1e-5
    assert -slack <= mean_entropy(logits) <= 1 + slack
    assert 0 <= mutual_information(logits) <= 1 - mean_entropy(logits) + slack
    assert -slack <= soft_neighborhood_density(logits, samples_per_image=9) <= torch.tensor(8.0).log() + slack
    labels, divergence, miou = agreement(logits, random_logits(seed + 1, sharpness))
    assert 0 <= labels <= 1
    assert 0 <= miou <= 1
    assert divergence >= 0


@given(seed=SEEDS, sharpness=SHARPNESS)
def test_a_prediction_agrees_with_itself(seed: int, sharpness: float) -> None:
    logits = random_logits(seed, sharpness)
    labels, divergence, miou = agreement(logits, logits + 7)  # a constant does not change probabilities
    assert labels == 1
    assert miou == 1
    assert divergence == pytest.approx(0, abs=1e-5)


def test_agreement_matches_its_equations() -> None:
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    q = torch.tensor([[0.6, 0.4], [0.8, 0.2]])
    maps = (x.log().t().reshape(1, 2, 1, 2) for x in (p, q))
    labels, divergence, miou = agreement(*maps)
    assert labels == 0.5
    assert miou == pytest.approx((1 / 2 + 0 / 1) / 2)  # class 0: one pixel of two, class 1: none of one
    torch.testing.assert_close(divergence, (p * (p / q).log()).sum() / 2)


@given(seed=SEEDS, cut=st.integers(0, 6))
def test_batches_add_up(seed: int, cut: int) -> None:
    logits, other = random_logits(seed, images=6), random_logits(seed + 1, images=6)
    once, parts = (LabelFreeScores(K, torch.rand(K), ["other"], samples_per_image=9) for _ in range(2))
    parts.reference.copy_(once.reference)
    once.update(logits, {"other": other})
    for part in (slice(cut), slice(cut, None)):
        parts.update(logits[part], {"other": other[part]})
    torch.testing.assert_close(flat(parts.compute()), flat(once.compute()), atol=1e-5, rtol=1e-5)
    assert once.compute().pixels == 6 * H * W


@given(seed=SEEDS, value=BAD, share=st.sampled_from([0.1, 0.5, 0.95]))
def test_non_finite_pixels_are_ignored_and_counted(seed: int, value: float, share: float) -> None:
    logits, other = random_logits(seed, images=1), random_logits(seed + 1, images=1)
    bad = torch.rand(1, H, W, generator=torch.Generator().manual_seed(seed)) < share
    bad[0, 0, :2] = False  # a density needs two pixels
    logits[:, seed % K][bad] = value
    scores, of_the_rest = (LabelFreeScores(K, torch.ones(K), ["other"]) for _ in range(2))
    scores.update(logits, {"other": other})
    rest, rest_of_other = (x[0][:, ~bad[0]].reshape(1, K, 1, -1) for x in (logits, other))
    of_the_rest.update(rest, {"other": rest_of_other})
    result, expected = scores.compute(), of_the_rest.compute()
    torch.testing.assert_close(flat(result)[:-1], flat(expected)[:-1], atol=1e-5, rtol=1e-5)
    assert result.non_finite == bad.sum()
    assert result.pixels == (~bad).sum()
    other[:, 0][bad] = value
    torch.testing.assert_close(
        agreement(random_logits(seed, images=1), other),
        agreement(*(x[0][:, ~bad[0]].reshape(1, K, 1, -1) for x in (random_logits(seed, images=1), other))),
    )


def test_scores_without_pixels_are_nan() -> None:
    scores = LabelFreeScores(K, torch.ones(K), ["other"])
    scores.update(torch.full((2, K, H, W), torch.nan), {"other": torch.zeros(2, K, H, W)})
    scores.update(torch.zeros(0, K, H, W))
    result = scores.compute()
    assert flat(result)[:-2].isnan().all()
    assert (result.pixels, result.non_finite) == (0, 2 * H * W)


def test_a_collapsed_network_is_consistent_and_dense_but_has_no_information() -> None:
    collapsed = torch.zeros(1, K, H, W)
    collapsed[:, 2] = 50
    assert mean_entropy(collapsed) == pytest.approx(0, abs=1e-6)
    assert mutual_information(collapsed) == pytest.approx(0, abs=1e-6)
    assert soft_neighborhood_density(collapsed) == pytest.approx(torch.tensor(float(H * W - 1)).log())
    two = torch.zeros(1, K, H, W)
    two[:, 2, :, :3] = two[:, 1, :, 3:] = 50
    assert mutual_information(two) == pytest.approx(0.5, abs=1e-5)


def test_sampling_is_deterministic_and_leaves_the_random_state() -> None:
    logits = random_logits(0)
    state = torch.random.get_rng_state()
    first = soft_neighborhood_density(logits, samples_per_image=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert soft_neighborhood_density(logits, samples_per_image=7) == first


@given(seed=SEEDS, sharpness=SHARPNESS)
def test_autocast_changes_nothing(seed: int, sharpness: float) -> None:
    results = []
    for enabled in (False, True):
        scores = LabelFreeScores(K, torch.ones(K), ["other"])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            scores.update(random_logits(seed, sharpness), {"other": random_logits(seed + 1)})
        results.append(flat(scores.compute()))
    assert torch.equal(*results)


@pytest.mark.parametrize("images", [0, 1])
def test_memory_of_the_density_is_bounded(images: int) -> None:
    with torch.profiler.profile(profile_memory=True) as profile:
        soft_neighborhood_density(torch.zeros(images, 2, 256, 256), samples_per_image=64)
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 10e6  # all pairs of pixels would be 17 GB


def test_half_precision_keeps_the_sums() -> None:
    scores = LabelFreeScores(K).to(torch.bfloat16)
    for _ in range(300):
        scores.update(torch.zeros(1, K, H, W, dtype=torch.bfloat16))
    assert scores.compute().pixels == 300 * H * W
    assert scores.compute().entropy == 1


def test_reset_discards_all_batches() -> None:
    scores, once = LabelFreeScores(K, comparisons=["a"]), LabelFreeScores(K, comparisons=["a"])
    scores.update(random_logits(0), {"a": random_logits(1)})
    scores.reset()
    for each in (scores, once):
        each.update(random_logits(2), {"a": random_logits(3)})
    torch.testing.assert_close(flat(scores.compute()), flat(once.compute()), equal_nan=True)
    assert scores.compute().class_divergence.isnan()  # there is no reference


def test_wrong_arguments_are_named() -> None:
    scores = LabelFreeScores(K, comparisons=["flip"])
    with pytest.raises(ValueError, match="logits"):
        scores.update(torch.zeros(1, K + 1, H, W))
    with pytest.raises(ValueError, match=r"teacher.*flip"):
        scores.update(torch.zeros(1, K, H, W), {"teacher": torch.zeros(1, K, H, W)})
    with pytest.raises(ValueError, match="flip"):
        scores.update(torch.zeros(1, K, H, W), {"flip": torch.zeros(1, K, H, W + 1)})
    with pytest.raises(ValueError, match="class distribution"):
        LabelFreeScores(K, torch.ones(K + 1))
    with pytest.raises(ValueError, match="samples_per_image"):
        LabelFreeScores(K, samples_per_image=1)
    with pytest.raises(ValueError, match="temperature"):
        soft_neighborhood_density(random_logits(0), temperature=0)


def score_share(rank: int, ranks: int, folder: Path) -> None:
    with start_process("cpu"):
        scores = LabelFreeScores(K, torch.arange(1.0, K + 1), ["other"])
        share = slice(0, 1) if rank == 0 else slice(1, 5)
        scores.update(random_logits(0, images=5)[share], {"other": random_logits(1, images=5)[share]})
        torch.save(flat(scores.compute()), folder / f"{rank}.pt")


def test_two_ranks_compute_what_one_computes(tmp_path: Path) -> None:
    start_ranks(score_share, 2, tmp_path)
    scores = LabelFreeScores(K, torch.arange(1.0, K + 1), ["other"])
    scores.update(random_logits(0, images=5), {"other": random_logits(1, images=5)})
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), flat(scores.compute()))
