"""Assignments of all pixels extend those of the bank, and labels move the prototypes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl import ClassBalancedPrototypeClustering, class_potentials, sinkhorn

K, D = 4, 6
SEEDS = st.integers(0, 10_000)


@given(seed=SEEDS, epsilon=st.floats(0.02, 1), iterations=st.integers(1, 30))
def test_potentials_are_those_of_sinkhorn(seed: int, epsilon: float, iterations: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, marginal = torch.randn(30, K, generator=generator), torch.rand(K, generator=generator)
    options = {"epsilon": epsilon, "iterations": iterations}
    potentials = class_potentials(scores, marginal, **options)
    expected = sinkhorn(scores, marginal, **options)
    torch.testing.assert_close((scores / epsilon + potentials).softmax(dim=1), expected, atol=1e-4, rtol=1e-3)


def test_padding_and_absent_classes_have_no_potential() -> None:
    scores = torch.randn(9, K)
    padded = torch.cat([scores, torch.full((3, K), torch.nan), torch.full((2, K), -torch.inf)])
    torch.testing.assert_close(class_potentials(padded), class_potentials(scores))
    assert torch.equal(class_potentials(scores[:0]), torch.zeros(K))
    excluded = class_potentials(scores, torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert excluded.isinf().tolist() == [False, False, True, True]


def filled(seed: int, temperature: float = 0.2) -> ClassBalancedPrototypeClustering:
    """Returns a clustering whose bank holds the pixels of one batch."""
    torch.manual_seed(seed)
    clustering = ClassBalancedPrototypeClustering(
        K, D, bank_size=400, samples_per_image=200, sampling="uniform", temperature=temperature
    )
    clustering.initialize(torch.randn(K, D), torch.tensor([0.6, 0.25, 0.1, 0.05]))
    clustering.update(clustering(torch.randn(2, D, 10, 20)))
    return clustering


@given(seed=SEEDS)
def test_assignments_of_the_bank_follow_the_class_distribution(seed: int) -> None:
    clustering = filled(seed)
    pixels = clustering.bank.features.t().reshape(1, D, 20, 20)
    assigned = clustering.assign(pixels, iterations=200)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(1, 20, 20))
    torch.testing.assert_close(
        assigned.mean(dim=(0, 2, 3)), clustering.aligner.distribution, atol=1e-3, rtol=0
    )


@given(seed=SEEDS)
def test_each_pixel_is_assigned_by_itself(seed: int) -> None:
    clustering, features = filled(seed), torch.randn(3, D, 5, 7)
    assigned = clustering.assign(features)
    torch.testing.assert_close(clustering.assign(7 * features[1:2, :, 2:3, 1:]), assigned[1:2, :, 2:3, 1:])
    state = clustering.state_dict()
    clustering.assign(features)
    assert all(torch.equal(state[key], value) for key, value in clustering.state_dict().items())


def test_an_empty_bank_leaves_the_similarities() -> None:
    clustering, features = ClassBalancedPrototypeClustering(K, D, bank_size=8), torch.randn(1, D, 2, 2)
    cosines = torch.einsum("bdhw,kd->bkhw", features / features.norm(dim=1), clustering.prototypes)
    torch.testing.assert_close(clustering.assign(features), (cosines / 0.08).softmax(dim=1))


def test_prototypes_move_towards_the_pixels_of_their_label() -> None:
    torch.manual_seed(0)
    clustering = ClassBalancedPrototypeClustering(
        2, 2, bank_size=8, samples_per_image=4, prototype_update="labels", momentum=0.0
    )
    clustering.initialize(torch.eye(2), torch.tensor([0.5, 0.5]))
    features = torch.tensor([[3.0, 3.0, 0.0, 0.0], [1.0, 1.0, -2.0, -2.0]]).reshape(1, 2, 2, 2)
    clustering.update(clustering(features, torch.tensor([[[1, 1], [0, 0]]])))
    expected = torch.tensor([[0.0, -1.0], [0.9487, 0.3162]])
    torch.testing.assert_close(clustering.prototypes.detach(), expected, atol=1e-4, rtol=0)
