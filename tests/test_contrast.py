"""The contrastive losses; tests/test_losses.py has the properties that all losses with labels share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.contrast import PixelContrastLoss, PrototypeContrastLoss, pixel_contrast, prototype_contrast
from cpsl.prototypes import prototype_similarity

K, D = 4, 6


def pixels(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    labels = torch.randint(K, (2, 3, 5))
    labels[torch.rand(labels.shape) < 0.3] = 255
    return torch.randn(2, D, 3, 5), labels, torch.randn(K, D)


def test_contrast_agrees_with_the_authors_code(golden) -> None:
    vectors = {name: torch.from_numpy(array) for name, array in golden("contrast").items()}
    got = pixel_contrast(
        vectors["features"],
        vectors["labels"][:, 0].long(),
        vectors["bank"],
        vectors["bank_labels"][:, 0].long(),
        temperature=float(vectors["temperature"]),
    )
    assert got.item() == pytest.approx(float(vectors["loss"]), rel=1e-4)


@given(seed=st.integers(0, 10_000))
def test_contrast_skips_pixels_without_positives_and_empty_rows(seed: int) -> None:
    torch.manual_seed(seed)
    features, labels = torch.randn(12, 4, requires_grad=True), torch.randint(3, (12,))
    bank, bank_labels = torch.randn(9, 4), torch.randint(2, (9,))
    labels[0], bank_labels[0] = 255, 255
    valid = torch.rand(9) < 0.7
    value = pixel_contrast(features, labels, bank, bank_labels, valid)
    usable = valid & (bank_labels != 255)
    kept = (labels != 255) & (labels[:, None] == bank_labels[usable]).any(dim=1)
    value.backward()
    assert features.grad.isfinite().all()
    if not kept.any():
        assert value == 0
        return
    assert (features.grad[~kept] == 0).all()
    alone = pixel_contrast(features[kept], labels[kept], bank[usable], bank_labels[usable])
    torch.testing.assert_close(value, alone)


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bank must be \(M, 3\), got shape \(2, 4\)"):
        pixel_contrast(torch.rand(2, 3), torch.zeros(2), torch.rand(2, 4), torch.zeros(2))
    features, labels, prototypes = pixels(0)
    with pytest.raises(ValueError, match=r"weights.*\(2, 3, 5\).*\(2, 3\)"):
        prototype_contrast(prototype_similarity(features, prototypes), labels, torch.ones(2, 3))


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 2))
def test_prototype_contrast_equals_its_equation(seed: int, temperature: float) -> None:
    features, labels, prototypes = pixels(seed)
    cosines = prototype_similarity(features, prototypes).double()
    weights = torch.rand(labels.shape)
    weights[labels == 255] = torch.nan  # is not read
    total = counted = 0.0
    for k in range(K):
        of_class = labels == k
        if of_class.any():
            balance = of_class.sum().item() ** -0.5
            log_p = (cosines / temperature).log_softmax(dim=1)[:, k][of_class]
            total -= balance * (weights[of_class] * log_p).sum().item()
            counted += balance * of_class.sum().item()
    got = prototype_contrast(cosines, labels, weights, temperature=temperature)
    assert got.item() == pytest.approx(total / max(counted, 1), rel=1e-5)


@given(seed=st.integers(0, 10_000), rate=st.floats(0.01, 1))
def test_a_step_down_the_gradient_moves_features_to_the_prototypes_of_their_classes(
    seed: int, rate: float
) -> None:
    features, labels, prototypes = pixels(seed)
    features.requires_grad_()

    def loss() -> torch.Tensor:
        return prototype_contrast(prototype_similarity(features, prototypes), labels, temperature=0.5)

    before = loss()
    before.backward()
    with torch.no_grad():
        gradient = features.grad
        assert gradient is not None
        features -= rate * 0.1 * gradient / gradient.norm().clamp_min(1e-6)
    assert loss() <= before


def test_frequent_classes_count_by_the_root_of_their_frequency() -> None:
    """The influence of class 0 is that of nine pixels of class 1 if it has 81 times as many."""
    similarity = torch.zeros(1, 2, 1, 82, requires_grad=True)
    labels = torch.zeros(1, 1, 82, dtype=torch.long)
    labels[..., -1] = 1
    prototype_contrast(similarity, labels, temperature=1.0).backward()
    assert similarity.grad is not None
    frequent, rare = similarity.grad[0, 0, 0, :81].abs().sum(), similarity.grad[0, 0, 0, 81].abs()
    assert (frequent / rare).item() == pytest.approx(9)


@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_the_length_of_features_and_prototypes_does_not_matter(seed: int, factor: float) -> None:
    features, labels, prototypes = pixels(seed)
    one = prototype_contrast(prototype_similarity(features, prototypes), labels)
    other = prototype_contrast(prototype_similarity(factor * features, prototypes / factor), labels)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_modules_compute_the_functions_with_their_hyper_parameters() -> None:
    torch.manual_seed(0)
    features, classes = torch.randn(12, 5), torch.randint(3, (12,))
    bank, bank_classes, full = torch.randn(9, 5), torch.randint(3, (9,)), torch.rand(9) < 0.7
    similarity, labels, weights = torch.rand(2, K, 3, 5), torch.randint(K, (2, 3, 5)), torch.rand(2, 3, 5)
    for got, wanted in [
        (
            PixelContrastLoss(0.3, ignore_index=1)(features, classes, bank, bank_classes, full),
            pixel_contrast(features, classes, bank, bank_classes, full, temperature=0.3, ignore_index=1),
        ),
        (
            PrototypeContrastLoss(0.3, ignore_index=K)(similarity, labels, weights),
            prototype_contrast(similarity, labels, weights, temperature=0.3, ignore_index=K),
        ),
    ]:
        assert torch.equal(got, wanted)
