import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cpsl.contrast import prototype_contrast
from cpsl.losses import (
    CrossEntropyLoss,
    DistillationLoss,
    PrototypeConsistencyLoss,
    SymmetricCrossEntropyLoss,
    cross_entropy,
    discriminator_loss,
    distillation,
    generator_loss,
    prototype_consistency,
    symmetric_cross_entropy,
)
from cpsl.prototypes import prototype_similarity

WITH_LABELS = [cross_entropy, symmetric_cross_entropy, prototype_contrast]


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(2, 5, 4, 6, requires_grad=True)
    labels = torch.randint(5, (2, 4, 6))
    labels[torch.rand(labels.shape) < 0.3] = 255
    return logits, labels


@pytest.mark.parametrize("loss", WITH_LABELS)
@given(seed=st.integers(0, 10_000))
def test_ignored_pixels_have_neither_influence_nor_gradient(loss, seed: int) -> None:
    logits, labels = batch(seed)
    value = loss(logits, labels)
    value.backward()
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    changed = torch.where(ignored, torch.randn_like(logits) * 50, logits.detach())
    torch.testing.assert_close(loss(changed, labels), value.detach())


@pytest.mark.parametrize("loss", WITH_LABELS)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_pixels_does_not_matter(loss, seed: int) -> None:
    logits, labels = batch(seed)
    order = torch.randperm(24)
    shuffled = loss(
        logits.flatten(2)[:, :, order].unflatten(2, (4, 6)), labels.flatten(1)[:, order].unflatten(1, (4, 6))
    )
    torch.testing.assert_close(shuffled, loss(logits, labels))


@pytest.mark.parametrize("loss", WITH_LABELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_loss_and_gradient_are_zero_if_all_pixels_are_ignored(loss, dtype: torch.dtype) -> None:
    logits, labels = batch(0)
    value = loss(logits, torch.full_like(labels, 255).to(dtype))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", WITH_LABELS)
@given(scale=st.sampled_from([1.0, 1e2, 1e4]), seed=st.integers(0, 10_000))
def test_gradients_are_finite_for_extreme_logits(loss, scale: float, seed: int) -> None:
    logits, labels = batch(seed)
    value = loss(logits * scale, labels)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@given(seed=st.integers(0, 10_000))
def test_weights_of_one_change_nothing(seed: int) -> None:
    logits, labels = batch(seed)
    weighted = cross_entropy(logits, labels, weights=torch.ones(labels.shape))
    torch.testing.assert_close(weighted, cross_entropy(logits, labels))


@given(seed=st.integers(0, 10_000))
def test_pixels_of_weight_zero_have_neither_loss_nor_gradient(seed: int) -> None:
    logits, labels = batch(seed)
    weights = (torch.rand(labels.shape) < 0.5).float()
    value = cross_entropy(logits, labels, weights=weights)
    value.backward()
    assert (logits.grad[(weights == 0)[:, None].expand_as(logits)] == 0).all()
    # They still count in the mean: half of the weights are not half of the pixels.
    kept = labels.masked_fill(weights == 0, 255)
    count, all_pixels = (kept != 255).sum(), (labels != 255).sum().clamp_min(1)
    torch.testing.assert_close(value, cross_entropy(logits, kept) * count / all_pixels)
    assert cross_entropy(logits, labels, weights=torch.zeros(labels.shape)) == 0


@given(seed=st.integers(0, 10_000), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_the_loss_is_linear_in_the_weights(seed: int, a: float, b: float) -> None:
    logits, labels = batch(seed)
    first, second = torch.rand(2, *labels.shape)
    losses = [cross_entropy(logits, labels, weights=weights) for weights in (first, second)]
    combined = cross_entropy(logits, labels, weights=a * first + b * second)
    torch.testing.assert_close(combined, a * losses[0] + b * losses[1], rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 10_000))
def test_weights_of_ignored_pixels_do_not_count(seed: int) -> None:
    logits, labels = batch(seed)
    weights = torch.rand(labels.shape)
    changed = torch.where(labels == 255, 100 * torch.rand(labels.shape), weights)
    losses = [cross_entropy(logits, labels, weights=each) for each in (weights, changed)]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match=r"weights.*\(2, 4, 6\).*\(2, 4\)"):
        cross_entropy(logits, labels, weights=weights[..., 0])


@given(seed=st.integers(0, 10_000), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_weights_of_ignored_pixels_may_be_non_finite(seed: int, value: float) -> None:
    logits, labels = batch(seed)
    logits.requires_grad_()
    weights = torch.ones(labels.shape).masked_fill(labels == 255, value)
    loss = cross_entropy(logits, labels, weights=weights)
    [gradient] = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss, cross_entropy(logits, labels))


@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 2), beta=st.floats(0, 2))
def test_symmetric_cross_entropy_equals_its_equation(seed: int, alpha: float, beta: float) -> None:
    logits, labels = batch(seed)
    if (labels == 255).all():
        return
    valid = labels != 255
    p = logits.detach().movedim(1, -1)[valid].softmax(dim=1)
    y = F.one_hot(labels[valid], 5).float()
    ce = -(y * p.log()).sum(dim=1).mean()
    rce = -(p.clamp_min(1e-7) * y.clamp_min(1e-4).log()).sum(dim=1).mean()
    got = symmetric_cross_entropy(logits, labels, ce_weight=alpha, rce_weight=beta)
    torch.testing.assert_close(got, alpha * ce + beta * rce)


def test_symmetric_cross_entropy_agrees_with_the_authors_code(golden) -> None:
    vectors = golden("symmetric_ce")
    logits, labels = torch.from_numpy(vectors["logits"]), torch.from_numpy(vectors["labels"])
    ce = cross_entropy(logits, labels).item()
    rce = symmetric_cross_entropy(logits, labels, ce_weight=0).item()
    sce = symmetric_cross_entropy(logits, labels).item()
    for got, name in ((ce, "ce"), (rce, "rce"), (sce, "sce")):
        assert got == pytest.approx(float(vectors[name]), rel=1e-4)


@given(seed=st.integers(0, 10_000))
def test_distillation_is_the_divergence_over_pixels_and_classes(seed: int) -> None:
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4, requires_grad=True)
    valid = torch.rand(2, 3, 4) < 0.6
    got = distillation(student, teacher, valid)
    t, s = teacher.softmax(dim=1), student.softmax(dim=1)
    each = (t * (t.log() - s.log())).sum(dim=1)[valid]
    expected = each.sum() / max(5 * len(each), 1)
    torch.testing.assert_close(got, expected.detach())
    assert not got.requires_grad  # the teacher gets no gradient
    assert distillation(teacher, teacher).abs() < 1e-6


def test_distillation_without_valid_pixels_is_zero() -> None:
    student = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = distillation(student, torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert (student.grad == 0).all()


def test_consistency_agrees_with_the_authors_code(golden) -> None:
    vectors = {name: torch.from_numpy(array) for name, array in golden("consistency").items()}
    teacher, student = (
        prototype_similarity(vectors[name], vectors["prototypes"]) for name in ("teacher", "student")
    )
    temperature = float(vectors["temperature"])
    got = prototype_consistency(teacher, student, vectors["valid"] > 0, temperature=temperature)
    assert got.item() == pytest.approx(float(vectors["loss"]), rel=1e-4)


def test_modules_compute_the_functions_with_their_hyper_parameters() -> None:
    logits, labels = batch(0)
    other, valid = torch.randn(2, 5, 4, 6), labels != 255
    others = labels.masked_fill(~valid, -1)
    for got, wanted in [
        (CrossEntropyLoss(ignore_index=-1)(logits, others), cross_entropy(logits, others, -1)),
        (
            CrossEntropyLoss()(logits, labels, weights=valid.float()),
            cross_entropy(logits, labels, weights=valid.float()),
        ),
        (
            SymmetricCrossEntropyLoss(0.3, 0.7, ignore_index=-1)(logits, others),
            symmetric_cross_entropy(logits, others, ce_weight=0.3, rce_weight=0.7, ignore_index=-1),
        ),
        (
            PrototypeConsistencyLoss(temperature=0.3)(other, logits, valid),
            prototype_consistency(other, logits, valid, temperature=0.3),
        ),
        (DistillationLoss()(logits, other, valid), distillation(logits, other, valid)),
    ]:
        assert torch.equal(got, wanted)


def test_adversarial_losses_are_least_squares() -> None:
    source, target = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    torch.testing.assert_close(generator_loss(target), ((target - 1) ** 2).mean())
    expected = ((source - 1) ** 2).mean() + (target**2).mean()
    torch.testing.assert_close(discriminator_loss(source, target), expected)


@pytest.mark.parametrize("loss", WITH_LABELS)
def test_autocast_and_compilation_change_nothing(loss) -> None:
    logits, labels = batch(1)
    exact = loss(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, labels), exact)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, labels), exact)


@pytest.mark.parametrize("loss", WITH_LABELS)
def test_labels_on_another_grid_are_refused(loss) -> None:
    with pytest.raises(ValueError, match=r"labels must be \(1, 4, 4\), got shape \(1, 4, 5\)"):
        loss(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 5))


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher must be \(1, 3, 4, 4\), got shape \(1, 3, 4, 5\)"):
        distillation(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
    with pytest.raises(ValueError, match="valid must be"):
        distillation(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), torch.ones(1, 3) > 0)
