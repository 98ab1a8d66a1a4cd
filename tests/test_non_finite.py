"""A non-finite pixel gives the result of a pixel that is ignored."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl import (
    ClassBalancedPrototypeClustering,
    ClassMeanPrototypes,
    DistributionAligner,
    PseudoLabelRectifier,
    RunningClassMeans,
    distillation,
    pixel_contrast,
    prototype_consistency,
    sinkhorn,
)
from cpsl.authors import AuthorsClustering

K, D, B, H, W = 4, 6, 2, 5, 6
SEEDS, BAD = st.integers(0, 10_000), st.sampled_from([torch.nan, torch.inf, -torch.inf])
Build = Callable[..., ClassBalancedPrototypeClustering]


def spoiled(maps: Tensor, bad: Tensor, value: float) -> Tensor:
    """Returns maps (B, C, h, w) whose bad pixels (B, h, w) have the value in one or more channels."""
    channels = torch.rand(maps.shape[1]) < 0.4
    channels[torch.randint(maps.shape[1], ())] = True
    return maps.masked_fill(bad[:, None] & channels[:, None, None], value)


def batch(seed: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features, labels, and the pixels to spoil, which are never all of them."""
    torch.manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (B, H, W))]
    labels[0, 0, 0] = 0
    bad = torch.rand(B, H, W) < share
    bad[0, 0, 0] = False
    return torch.randn(B, D, H, W), labels, bad


def build(**options) -> ClassBalancedPrototypeClustering:
    return ClassBalancedPrototypeClustering(K, D, bank_size=50, samples_per_image=12, **options)


def authors(**options) -> AuthorsClustering:
    return AuthorsClustering(
        K,
        D,
        bank_size=24,
        samples_per_image=12,
        image_by_image=True,
        dot_product_bank_scores=True,
        logit_assignments=True,
        **options,
    )


def steps(clustering: ClassBalancedPrototypeClustering, *inputs: Tensor, **options: Tensor) -> dict:
    """Returns outputs, gradients and state after some steps."""
    torch.manual_seed(0)
    results = {}
    for step in range(3):
        clustering.prototypes.grad = None
        output = clustering(*inputs, **options)
        results |= {f"{step} {name}": value for name, value in output._asdict().items()}
        if output.loss.requires_grad:
            output.loss.backward()
            results[f"{step} gradient"] = clustering.prototypes.grad
        clustering.update(output, momentum=0.5)
    return results | dict(clustering.state_dict())


@pytest.mark.parametrize("prototype_update", ["gradient", "assignments"])
@pytest.mark.parametrize("sampling", ["class_proportional", "stratified"])
@given(value=BAD, share=st.floats(0, 1), seed=SEEDS)
def test_clustering_ignores_non_finite_features(
    sampling: str, prototype_update: str, value: float, share: float, seed: int
) -> None:
    features, labels, bad = batch(seed, share)
    clustering = build(sampling=sampling, prototype_update=prototype_update)
    other = copy.deepcopy(clustering)
    got = steps(clustering, spoiled(features, bad, value), labels)
    wanted = steps(other, features, labels.masked_fill(bad, 255))
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


@given(value=BAD, share=st.floats(0, 1), seed=SEEDS)
def test_soft_labels_are_not_counted_at_non_finite_pixels(value: float, share: float, seed: int) -> None:
    features, labels, bad = batch(seed, share)
    soft = torch.rand(B, K, H, W).softmax(dim=1)
    wanted = build()(features, labels, soft_labels=soft.masked_fill(bad[:, None], 0)).class_counts
    bad_features = spoiled(features, bad, value)
    assert torch.equal(build()(bad_features, labels, soft_labels=soft).class_counts, wanted)
    assert torch.equal(
        build()(features, labels, soft_labels=soft.masked_fill(bad[:, None], torch.nan)).class_counts, wanted
    )


@pytest.mark.parametrize("build", [build, authors])
@given(
    value=BAD,
    share=st.floats(0, 0.9),
    sampling=st.sampled_from(["uniform", "class_proportional"]),
    labeled=st.booleans(),
    seed=SEEDS,
)
def test_sampled_non_finite_features_have_no_influence(
    build: Build, value: float, share: float, sampling: str, labeled: bool, seed: int
) -> None:
    features, labels, bad = batch(seed, share)
    clustering = build(sampling=sampling)
    inputs = (spoiled(features, bad, value), labels if labeled else None)
    options = {"logits": torch.randn(B, K, H, W)} if build is authors else {}
    for _ in range(3):
        clustering.prototypes.grad = None
        output = clustering(*inputs, **options)
        output.loss.backward()
        finite = ~bad.flatten()[output.indices.flatten()]
        assert output.features.isfinite().all(dim=1).equal(finite)
        torch.testing.assert_close(output.assignments.sum(dim=1), finite.float())
        assert (output.labels[~finite] == 255).all()
        assert output.scores.isfinite().all()
        assert clustering.prototypes.grad.isfinite().all()
        clustering.update(output)
        assert clustering.bank.features.isfinite().all()
        assert clustering.aligner.distribution.isfinite().all()
    if build is authors or not finite.any():
        return
    # The result of the finite pixels alone.
    torch.testing.assert_close(
        output.loss.detach(),
        -(output.assignments * (output.scores / clustering.temperature).log_softmax(dim=1))[finite]
        .sum(dim=1)
        .mean()
        .detach(),
    )
    clustering = build()
    output = clustering(*inputs)
    finite = ~bad.flatten()[output.indices.flatten()]
    alone = sinkhorn(output.scores.detach()[finite], clustering.aligner.distribution)
    torch.testing.assert_close(output.assignments[finite], alone)


@pytest.mark.parametrize("build", [build, authors])
@pytest.mark.parametrize("sampling", ["uniform", "class_proportional"])
def test_a_batch_without_finite_features_has_loss_zero(build: Build, sampling: str) -> None:
    clustering = build(sampling=sampling)
    before = copy.deepcopy(clustering.state_dict())
    options = {"logits": torch.randn(B, K, H, W)} if build is authors else {}
    output = clustering(torch.full((B, D, H, W), torch.nan), torch.zeros(B, H, W).long(), **options)
    output.loss.backward()
    assert output.loss == 0
    assert (clustering.prototypes.grad == 0).all()
    assert output.marginal_error.isfinite()
    clustering.update(output, momentum=0.5)
    assert not clustering.bank.valid.any()
    for key in ("prototypes", "ema_prototypes", "aligner.distribution"):
        torch.testing.assert_close(clustering.state_dict()[key], before[key])


def test_non_finite_logits_of_the_authors_assignments_have_no_influence() -> None:
    clustering, (features, labels, _) = authors(), batch(0, 0)
    logits = torch.randn(B, K, H, W)
    logits[:, 1, 0] = torch.nan
    for _ in range(3):
        output = clustering(features, labels, logits=logits)
        output.loss.backward()
        clustering.update(output)
    assert clustering.prototypes.grad.isfinite().all()
    assert clustering.logit_bank is not None
    assert clustering.logit_bank.features.isfinite().all()


@given(value=BAD, share=st.floats(0, 1), in_logits=st.booleans(), seed=SEEDS)
def test_class_means_skip_non_finite_pixels(value: float, share: float, in_logits: bool, seed: int) -> None:
    features, labels, bad = batch(seed, share)
    running, ignored = RunningClassMeans(K, D), RunningClassMeans(K, D)
    running.update(spoiled(features, bad, value), labels)
    ignored.update(features, labels.masked_fill(bad, 255))
    assert all(map(torch.equal, running.compute(), ignored.compute()))

    means, logits = ClassMeanPrototypes(K, D, min_pixels=1), torch.randn(B, K, H, W)
    broken = logits.masked_fill(bad[:, None], torch.nan)
    means.update(features if in_logits else spoiled(features, bad, value), broken if in_logits else logits)
    got, best = means.compute(), logits.argmax(dim=1)
    for k in range(K):
        per_image = [features[i][:, (best[i] == k) & ~bad[i]] for i in range(B)]
        per_image = [pixels.mean(dim=1) for pixels in per_image if pixels.numel()]
        wanted = torch.stack(per_image).mean(dim=0) if per_image else torch.zeros(D)
        torch.testing.assert_close(got.prototypes[k], wanted)
        assert got.image_counts[k] == len(per_image)


def test_probabilities_that_are_not_finite_do_not_count() -> None:
    probabilities = torch.rand(1, K, H, W)
    one, other = DistributionAligner(K, 0.5), DistributionAligner(K, 0.5)
    other.update(probabilities[:, :, 1:])
    probabilities[0, 2, 0] = torch.nan
    one.update(probabilities)
    torch.testing.assert_close(one.distribution, other.distribution)


@pytest.mark.parametrize("loss", [distillation, prototype_consistency])
@given(value=BAD, share=st.floats(0, 1), masked=st.booleans(), seed=SEEDS)
def test_pixels_of_a_non_finite_teacher_are_not_valid(
    loss: Callable[..., Tensor], value: float, share: float, masked: bool, seed: int
) -> None:
    _, labels, bad = batch(seed, share)
    teacher, valid = torch.randn(B, K, H, W), (labels != 255) | torch.tensor(not masked)
    student, other = (torch.randn(B, K, H, W).requires_grad_() for _ in range(2))
    other.data.copy_(student)
    got = loss(spoiled(teacher, bad, value), student) if loss is prototype_consistency else None
    arguments = (spoiled(teacher, bad, value), student), (teacher, other)
    if loss is distillation:
        arguments = tuple((second, first) for first, second in arguments)
    got = loss(*arguments[0], valid if masked else None)
    wanted = loss(*arguments[1], valid & ~bad)
    got.backward()
    wanted.backward()
    assert got.isfinite()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(student.grad, other.grad)


@pytest.mark.parametrize("loss", [distillation, prototype_consistency])
def test_a_non_finite_student_makes_the_loss_non_finite(loss: Callable[..., Tensor]) -> None:
    one, other = torch.randn(B, K, H, W), torch.randn(B, K, H, W)
    broken = one.clone()
    broken[0, 1, 2, 3] = torch.nan
    student_first = loss is distillation
    assert loss(*((broken, other) if student_first else (other, broken))).isnan()
    features, labels = torch.randn(9, D), torch.arange(9) % 3
    features[4, 2] = torch.nan
    assert pixel_contrast(features, labels, torch.randn(9, D), labels).isnan()


@pytest.mark.parametrize("loss", [distillation, prototype_consistency])
def test_the_loss_of_an_empty_batch_is_zero(loss: Callable[..., Tensor]) -> None:
    empty = torch.empty(0, K, H, W, requires_grad=True)
    value = loss(empty, empty)
    value.backward()
    assert value == 0
    assert loss(empty, empty, torch.ones(0, H, W) > 0) == 0


@given(value=BAD, share=st.floats(0, 1), seed=SEEDS)
def test_contrast_skips_rows_of_the_bank_that_are_not_finite(value: float, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    labels, bank_labels, bad = torch.randint(3, (12,)), torch.randint(3, (9,)), torch.rand(9) < share
    features, other = (torch.randn(12, D).requires_grad_() for _ in range(2))
    other.data.copy_(features)
    bank = torch.randn(9, D)
    broken = bank.clone()
    broken[bad, torch.randint(D, ())] = value
    got = pixel_contrast(features, labels, broken, bank_labels)
    wanted = pixel_contrast(other, labels, bank, bank_labels, ~bad)
    got.backward()
    wanted.backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(features.grad, other.grad)


@given(value=BAD, share=st.floats(0, 1), seed=SEEDS)
def test_the_rectifier_ignores_non_finite_pixels(value: float, share: float, seed: int) -> None:
    features, _, bad = batch(seed, share)
    prototypes, soft = torch.randn(K, D), torch.rand(B, K, H, W).softmax(dim=1)
    rectifier = PseudoLabelRectifier(ignore_index=99)
    wanted = rectifier(soft * ~bad[:, None], features, prototypes)
    for got in (
        rectifier(soft, spoiled(features, bad, value), prototypes),
        rectifier(soft.masked_fill(bad[:, None], torch.nan), features, prototypes),
    ):
        assert all(map(torch.equal, got, wanted))
        assert (got.labels[bad] == 99).all()


def test_prototypes_that_are_not_finite_are_not_adopted_on_a_device() -> None:
    clustering = build()
    start, prototypes = clustering.prototypes.detach().clone(), torch.randn(K, D)
    prototypes[1, 2], prototypes[3, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="prototypes must be finite"):
        clustering.initialize(prototypes, torch.ones(K))
    # A compiled call reads no values, like a call on a GPU.
    torch.compile(clustering.initialize, fullgraph=True, backend="eager")(prototypes, torch.ones(K))
    assert torch.equal(clustering.prototypes[[1, 3]], start[[1, 3]])
    assert clustering.prototypes.isfinite().all()
    assert not torch.equal(clustering.prototypes[0], start[0])
