"""Prototypes that move rectify labels better than still ones, on pixels with known classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier
from spheres import DOMAINS, Scores, Spheres, adapt, make_spheres


def draw(domain: tuple[float, float]) -> list[Spheres]:
    """Draws a target domain with three seeds."""
    return [make_spheres(*domain, seed, images=64, size=(10, 16)) for seed in range(3)]


def mean_scores(drawn: list[Spheres], steps: int, correction: float = 0.0, **options: str) -> Scores:
    rectifier = PseudoLabelRectifier(prior_correction=correction)
    scores = [adapt(spheres, rectifier, steps, bank_size=1024, **options) for spheres in drawn]
    return Scores(*torch.tensor(scores).mean(dim=0).tolist())


@pytest.mark.parametrize("update", ["assignments", "labels"])
@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_prototypes_moved_by_their_pixels_are_better_than_still_ones(
    domain: tuple[float, float], update: str
) -> None:
    drawn = draw(domain)
    still, moved = mean_scores(drawn, 0), mean_scores(drawn, 100, prototype_update=update)
    assert moved.miou > still.miou
    assert moved.rare > still.rare


@pytest.mark.parametrize("domain", DOMAINS[:2], ids=str)
def test_trained_prototypes_are_better_if_the_prior_is_counted_once(domain: tuple[float, float]) -> None:
    drawn = draw(domain)
    still, twice, once = mean_scores(drawn, 0), mean_scores(drawn, 100), mean_scores(drawn, 100, 1.0)
    assert once.miou > still.miou > twice.miou
    assert once.rare > still.rare > twice.rare


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6))
def test_the_full_prior_correction_counts_the_prior_once(seed: int, classes: int) -> None:
    """Two independent observations, each with a posterior that contains δ, give the posterior of both."""
    torch.manual_seed(seed)
    first, second = torch.randn(2, 3, classes, 4, 4)
    delta = torch.rand(classes) + 0.01
    delta /= delta.sum()
    prior = delta.log()[:, None, None]
    soft, similarity = (first + prior).softmax(dim=1), 0.08 * (second + prior)
    got = PseudoLabelRectifier(0.08, prior_correction=1).rectify(soft, similarity, delta)
    torch.testing.assert_close(got.probabilities, (first + second + prior).softmax(dim=1))


@given(seed=st.integers(0, 10_000), sharpness=st.floats(0.5, 2))
def test_soft_labels_estimate_the_distribution_that_counts_miss(seed: int, sharpness: float) -> None:
    """The labels of calibrated probabilities are drawn from them; the maxima favor frequent classes."""
    torch.manual_seed(seed)
    logits = torch.tensor([2.5, 1.0, 0.0, -0.5])[:, None, None] + sharpness * torch.randn(20, 4, 30, 30)
    soft = logits.softmax(dim=1)
    truth = torch.multinomial(soft.movedim(1, 3).flatten(0, 2), 1).flatten().bincount(minlength=4) / 18_000
    errors = []
    for given_soft in (soft, None):
        clustering = ClassBalancedPrototypeClustering(
            4, 2, bank_size=8, samples_per_image=8, distribution_momentum=0
        )
        output = clustering(torch.randn(20, 2, 30, 30), soft.argmax(dim=1), soft_labels=given_soft)
        clustering.update(output)
        errors.append(0.5 * (clustering.aligner.distribution - truth).abs().sum())
    assert errors[0] < 0.02
    assert errors[1] > 0.04
