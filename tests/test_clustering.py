import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.sinkhorn import sinkhorn

K, D = 5, 8
UPDATES = ["gradient", "assignments"]


def build(**options) -> ClassBalancedPrototypeClustering:
    options = {"bank_size": 100, "samples_per_image": 20, **options}
    return ClassBalancedPrototypeClustering(K, D, **options)


def batch(images: int = 2, size: int = 6, classes: int = K) -> tuple[Tensor, Tensor]:
    return torch.randn(images, D, size, size), torch.randint(classes, (images, size, size))


@given(
    images=st.integers(1, 3),
    size=st.integers(1, 8),
    sampling=st.sampled_from(["class_proportional", "stratified", "uniform"]),
    banked=st.integers(0, 150),
    seed=st.integers(0, 10_000),
)
def test_outputs_have_consistent_shapes_and_values(
    images: int, size: int, sampling: str, banked: int, seed: int
) -> None:
    torch.manual_seed(seed)
    clustering = build(sampling=sampling)
    clustering.bank.push(F.normalize(torch.randn(banked, D), dim=1))
    features, labels = batch(images, size)
    output = clustering(features, labels)
    assert output.indices.shape == (images, 20)
    assert output.assignments.shape == output.scores.shape == (images * 20, K)
    torch.testing.assert_close(output.assignments.sum(dim=1), torch.ones(images * 20))
    pixels = features.movedim(1, -1).reshape(-1, D)[output.indices.flatten()]
    torch.testing.assert_close(output.features, F.normalize(pixels, dim=1))
    assert torch.equal(output.labels, labels.flatten()[output.indices.flatten()])
    assert torch.equal(output.class_counts, torch.bincount(labels.flatten(), minlength=K))


@given(banked=st.integers(0, 130), seed=st.integers(0, 10_000))
def test_assignments_and_loss_equal_the_equations(banked: int, seed: int) -> None:
    torch.manual_seed(seed)
    clustering = build(temperature=0.1, epsilon=0.06, sinkhorn_iterations=4)
    clustering.aligner.set(torch.rand(K) + 0.1)
    clustering.bank.push(F.normalize(torch.randn(banked, D), dim=1))
    output = clustering(*batch())
    prototypes = F.normalize(clustering.prototypes, dim=1)
    bank = clustering.bank.features[clustering.bank.valid]
    together = torch.cat([output.features, bank]) @ prototypes.t()
    expected = sinkhorn(together, clustering.aligner.distribution, epsilon=0.06, iterations=4)
    torch.testing.assert_close(output.assignments, expected[:40], atol=1e-5, rtol=1e-4)
    log_p = (output.features @ prototypes.t() / 0.1).log_softmax(dim=1)
    torch.testing.assert_close(output.loss, -(expected[:40] * log_p).sum(dim=1).mean())


def test_only_the_prototypes_get_a_gradient() -> None:
    clustering = build()
    features, labels = batch()
    features.requires_grad_()
    clustering(features, labels).loss.backward()
    assert features.grad is None
    assert clustering.prototypes.grad is not None
    assert clustering.prototypes.grad.abs().sum() > 0


def test_only_update_changes_the_state() -> None:
    torch.manual_seed(0)
    clustering = build(distribution_momentum=0.5)
    before = {key: value.clone() for key, value in clustering.state_dict().items()}
    features, labels = batch(classes=2)
    output = clustering(features, labels)
    assert all(torch.equal(before[key], value) for key, value in clustering.state_dict().items())

    with torch.no_grad():
        clustering.prototypes.add_(1)
    clustering.update(output, momentum=0.9)
    average = 0.9 * before["ema_prototypes"] + 0.1 * clustering.prototypes
    torch.testing.assert_close(clustering.ema_prototypes, average.detach())
    assert clustering.bank.valid.sum() == 40
    frequencies = torch.bincount(labels.flatten(), minlength=K) / labels.numel()
    torch.testing.assert_close(clustering.aligner.distribution, 0.5 / K + 0.5 * frequencies)


def test_rare_classes_keep_their_pixels() -> None:
    """A uniform marginal would split the larger of two clusters with 95 and 5 pixels."""
    torch.manual_seed(0)
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels[0, 0, :5] = 1
    directions = F.normalize(torch.randn(2, D), dim=1)
    features = directions[labels].movedim(-1, 1) + 0.1 * torch.randn(1, D, 10, 10)
    clustering = ClassBalancedPrototypeClustering(2, D, bank_size=10, samples_per_image=100)
    clustering.initialize(directions, torch.tensor([0.95, 0.05]))
    output = clustering(features, labels)
    assert (output.assignments.argmax(dim=1) == output.labels).float().mean() == 1
    assert (output.labels == 1).sum() == 5


@given(seed=st.integers(0, 10_000))
def test_stratified_samples_follow_the_batch(seed: int) -> None:
    torch.manual_seed(seed)
    features, labels = batch(size=16)
    labels[labels == 4] = 255
    labels[0, 0, 0] = 4
    output = build(sampling="stratified")(features, labels)
    frequencies = torch.bincount(labels[labels != 255], minlength=K) / (labels != 255).sum()
    drawn = torch.bincount(output.labels, minlength=K)
    assert ((drawn - 40 * frequencies).abs() < 1.5).all()
    assert drawn[4] == 1


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.1), density=st.floats(0.05, 0.3))
def test_stratified_sampling_does_not_starve_a_bursty_class(seed: int, share: float, density: float) -> None:
    """A class of δ = share · density occurs in a small share of the batches, where it is frequent."""
    torch.manual_seed(seed)
    delta = torch.tensor([1 - share * density, share * density])
    drawn = {}
    for sampling in ("stratified", "class_proportional"):
        clustering = ClassBalancedPrototypeClustering(
            2, D, bank_size=8, samples_per_image=100, sampling=sampling
        )
        clustering.initialize(torch.randn(2, D), delta)
        labels = (torch.rand(1, 40, 40) < density).long()
        rare = (clustering(torch.randn(1, D, 40, 40), labels).labels == 1).float().mean().item()
        drawn[sampling] = rare, labels.float().mean().item()
    rare, wanted = drawn["stratified"]
    assert abs(rare - wanted) < 0.015  # about one of the 100 pixels
    rare, wanted = drawn["class_proportional"]
    assert rare < 0.6 * wanted


@given(seed=st.integers(0, 10_000), momentum=st.floats(0, 1), size=st.integers(1, 9))
def test_soft_labels_update_the_distribution_by_their_mean(seed: int, momentum: float, size: int) -> None:
    torch.manual_seed(seed)
    clustering = build(distribution_momentum=momentum)
    features, labels = batch()
    soft = torch.randn(2, K, size, size).softmax(dim=1)
    output = clustering(features, labels, soft_labels=soft)
    clustering.update(output)
    wanted = momentum / K + (1 - momentum) * soft.mean(dim=(0, 2, 3))
    torch.testing.assert_close(clustering.aligner.distribution, wanted)
    assert torch.equal(output.class_counts, soft.sum(dim=(0, 2, 3), dtype=torch.float64))


def test_pixels_without_labels_do_not_change_the_distribution() -> None:
    clustering = build()
    features, _ = batch()
    output = clustering(features)
    assert (output.labels == 255).all()
    before = clustering.aligner.distribution.clone()
    clustering.update(output)
    assert torch.equal(clustering.aligner.distribution, before)


def test_batches_of_ignored_pixels_are_clustered() -> None:
    clustering = build()
    features, labels = batch()
    output = clustering(features, torch.full_like(labels, 255))
    assert output.loss.isfinite()
    assert (output.labels == 255).all()


def test_initialize_keeps_the_prototypes_of_absent_classes() -> None:
    clustering = build()
    start = clustering.prototypes[2].clone()
    prototypes = torch.randn(K, D)
    prototypes[2] = 0
    clustering.initialize(prototypes, torch.ones(K))
    assert torch.equal(clustering.prototypes[2], start)
    torch.testing.assert_close(clustering.prototypes[0], F.normalize(prototypes, dim=1)[0])


@given(
    momentum=st.floats(0, 1),
    micro_batches=st.integers(1, 3),
    banked=st.integers(0, 100),
    seed=st.integers(0, 10_000),
)
def test_assignments_move_the_prototypes_to_the_means_of_their_pixels(
    momentum: float, micro_batches: int, banked: int, seed: int
) -> None:
    torch.manual_seed(seed)
    clustering = build(prototype_update="assignments")
    start, delta = F.normalize(torch.randn(K, D), dim=1), torch.rand(K) + 0.1
    clustering.initialize(start, delta)
    clustering.bank.push(torch.randn(banked, D))
    outputs = [clustering(*batch()) for _ in range(micro_batches)]
    features = torch.cat([output.features for output in outputs])
    classes = torch.cat([output.assignments for output in outputs]).argmax(dim=1)
    clustering.update(outputs, momentum)
    for k in range(K):
        mine = features[classes == k]
        expected = start[k] * delta[k] / delta.sum()
        if len(mine):
            expected = momentum * expected + (1 - momentum) * mine.sum(dim=0) / len(features)
        torch.testing.assert_close(clustering.ema_prototypes[k], expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(clustering.prototypes[k], F.normalize(expected, dim=0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("update", ["gradient", "assignments", "labels"])
def test_only_prototypes_that_follow_it_have_a_gradient(update: str) -> None:
    clustering = build(prototype_update=update)
    follows = update == "gradient"
    assert clustering.prototypes.requires_grad == follows
    assert clustering(*batch()).loss.requires_grad == follows


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_features_without_a_direction_move_no_prototype(value: float) -> None:
    clustering = build(prototype_update="assignments", momentum=0.0)
    before = clustering.ema_prototypes.clone()
    _, labels = batch()
    clustering.update(clustering(torch.full((2, D, 6, 6), value), labels))
    assert torch.equal(clustering.ema_prototypes, before)


def test_a_class_without_pixels_keeps_its_prototype() -> None:
    clustering = build(prototype_update="assignments", momentum=0.5, sampling="stratified")
    clustering.initialize(torch.eye(K, D), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    for _ in range(200):
        clustering.update(clustering(*batch(classes=2)))
    torch.testing.assert_close(clustering.prototypes[2:].detach(), torch.eye(K, D)[2:])
    assert (clustering.prototypes[:2] - torch.eye(K, D)[:2]).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("update", UPDATES)
def test_training_separates_the_clusters(update: str) -> None:
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(K, D), dim=1)
    clustering = build(distribution_momentum=0.9, prototype_update=update)
    clustering.initialize(directions + 0.5 * torch.randn(K, D), torch.ones(K))
    optimizer = torch.optim.SGD([clustering.prototypes], 0.5)
    losses = []
    for _ in range(100):
        labels = torch.randint(K, (2, 6, 6))
        features = directions[labels].movedim(-1, 1) + 0.05 * torch.randn(2, D, 6, 6)
        output = clustering(features, labels)
        if update == "gradient":
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        clustering.update(output, momentum=0.9)
        losses.append(output.loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert (output.assignments.argmax(dim=1) == output.labels).float().mean() > 0.95


def test_runs_as_one_graph_and_under_autocast() -> None:
    clustering = build()
    features, labels = batch()
    compiled = torch.compile(clustering, fullgraph=True, backend="eager")
    assert compiled(features, labels).loss.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = clustering(features.bfloat16(), labels)
    assert output.scores.dtype == output.assignments.dtype == torch.float32


@pytest.mark.parametrize("sampling", ["class_proportional", "stratified", "uniform"])
@pytest.mark.parametrize("prototype_update", UPDATES)
def test_no_operation_synchronizes_with_the_device(prototype_update: str, sampling: str, fake_cuda) -> None:
    clustering = build(sampling=sampling, prototype_update=prototype_update)
    clustering.initialize(torch.randn(K, D), torch.rand(K))
    features, labels = batch()
    output = clustering(features, labels.repeat(1, 2, 3))  # resized to the grid of the features
    clustering.update(output)
    clustering.update(clustering(features, labels, soft_labels=torch.rand(2, K, 3, 3).softmax(dim=1)))
    clustering.update(output, applied=torch.ones(()) > 0)
    assert output.indices.shape == (2, 20)


@given(
    momentum=st.floats(0, 1),
    micro_batches=st.integers(1, 3),
    banked=st.integers(0, 150),
    update=st.sampled_from(UPDATES),
    seed=st.integers(0, 10_000),
)
def test_a_step_that_is_not_applied_changes_nothing(
    momentum: float, micro_batches: int, banked: int, update: str, seed: int
) -> None:
    torch.manual_seed(seed)
    clustering, unconditional = (build(prototype_update=update) for _ in range(2))
    clustering.bank.push(torch.randn(banked, D))
    clustering.prototypes.data.add_(torch.randn(K, D))
    unconditional.load_state_dict(clustering.state_dict())
    outputs = [clustering(*batch()) for _ in range(micro_batches)]
    before = {key: value.clone() for key, value in clustering.state_dict().items()}
    clustering.update(outputs, momentum, torch.tensor(False))
    assert all(torch.equal(before[key], value) for key, value in clustering.state_dict().items())
    clustering.update(outputs, momentum, torch.tensor(True))
    unconditional.update(outputs, momentum)
    for key, value in unconditional.state_dict().items():
        assert torch.equal(value, clustering.state_dict()[key])


@pytest.mark.parametrize("update", UPDATES)
def test_a_step_that_is_not_applied_may_have_non_finite_prototypes(update: str) -> None:
    clustering = build(prototype_update=update)
    output = clustering(*batch())
    before = clustering.ema_prototypes.clone()
    clustering.prototypes.data.fill_(torch.nan)
    clustering.update(output, applied=torch.tensor(False))
    assert torch.equal(clustering.ema_prototypes, before)


def test_the_momentum_of_the_constructor_is_the_default() -> None:
    torch.manual_seed(0)
    clustering = build(momentum=0.5)
    explicit = copy.deepcopy(clustering)
    output = clustering(*batch())
    for each, momentum in ((clustering, None), (explicit, 0.5)):
        each.prototypes.data.fill_(1)
        each.update(output, momentum)
    assert torch.equal(clustering.ema_prototypes, explicit.ema_prototypes)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="momentum"):
            build(momentum=wrong)
        with pytest.raises(ValueError, match="momentum"):
            clustering.update(output, wrong)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(2, 7, 4, 4), None, r"\(B, 8, h, w\)"),
        (torch.rand(2, D, 4, 4), torch.zeros(1, 4, 4), r"\(2, H, W\)"),
        (torch.rand(2, D, 4, 4), torch.full((2, 4, 4), 6), "labels must be 0...4"),
    ],
)
def test_invalid_inputs_are_named(features, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()(features, labels)


@pytest.mark.parametrize(
    "option",
    [
        {"sampling": "other"},
        {"temperature": 0},
        {"epsilon": 0},
        {"samples_per_image": 0},
        {"prototype_update": "other"},
    ],
)
def test_invalid_options_are_named(option: dict[str, Any]) -> None:
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        build(**option)


def test_the_state_of_another_number_of_ranks_is_loaded() -> None:
    shards = [ClassBalancedPrototypeClustering(3, 4, bank_size=8) for _ in range(2)]
    shards[1].load_state_dict(shards[0].state_dict())
    for number, shard in enumerate(shards):
        shard.bank.push(torch.full((6, 4), float(number)), torch.full((6,), number))
    whole = ClassBalancedPrototypeClustering(3, 4, bank_size=16)
    whole.load_shards([shard.state_dict() for shard in shards])
    assert sorted(whole.bank.labels[whole.bank.valid].tolist()) == [0] * 6 + [1] * 6
    assert torch.equal(whole.prototypes, shards[0].prototypes)
    assert torch.equal(whole.aligner.distribution, shards[0].aligner.distribution)


def test_micro_batches_update_the_averages_once() -> None:
    torch.manual_seed(0)
    whole = ClassBalancedPrototypeClustering(K, D, bank_size=64, samples_per_image=10)
    in_parts = copy.deepcopy(whole)
    features, labels = torch.randn(2, D, 4, 4), torch.randint(K, (2, 4, 4))
    labels[0] = 0
    whole.update(whole(features, labels), momentum=0.9)
    parts = [in_parts(f, y) for f, y in zip(features.split(1), labels.split(1), strict=True)]
    in_parts.update(parts, momentum=0.9)
    assert torch.equal(in_parts.aligner.distribution, whole.aligner.distribution)
    assert torch.equal(in_parts.ema_prototypes, whole.ema_prototypes)
    assert in_parts.bank.valid.sum() == whole.bank.valid.sum() == 20


@pytest.mark.parametrize(
    ("soft", "message"),
    [
        (torch.zeros(2, K - 1, 4, 4), r"soft labels must be \(2, 5, H, W\)"),
        (torch.full((2, K, 4, 4), 3.0), "probabilities"),
    ],
)
def test_invalid_soft_labels_are_named(soft: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(*batch(size=4), soft_labels=soft)
