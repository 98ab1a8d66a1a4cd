import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.sinkhorn import sinkhorn

K, D = 5, 8


def build(**options) -> ClassBalancedPrototypeClustering:
    options = {"bank_size": 100, "samples_per_image": 20, **options}
    return ClassBalancedPrototypeClustering(K, D, **options)


def batch(images: int = 2, size: int = 6, classes: int = K) -> tuple[Tensor, Tensor]:
    return torch.randn(images, D, size, size), torch.randint(classes, (images, size, size))


@given(
    images=st.integers(1, 3),
    size=st.integers(1, 8),
    sampling=st.sampled_from(["class_proportional", "uniform"]),
    banked=st.integers(0, 150),
    seed=st.integers(0, 10_000),
)
def test_what_it_returns_fits_together(
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
def test_assignments_and_loss_are_those_of_the_equations(banked: int, seed: int) -> None:
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


def release_reference(
    clustering: ClassBalancedPrototypeClustering, batches: list[tuple[Tensor, Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """What the release computes, image by image, with queues whose newest pixels come first."""
    size, epsilon = clustering.bank.capacity, clustering.epsilon
    delta, raw = clustering.aligner.distribution, clustering.prototypes.detach()
    queues = [torch.zeros(0, D), torch.zeros(0, K)]
    results = []
    for drawn, logits, scores in batches:
        losses, solved = [], []
        for x, y, s in zip(drawn, logits, scores, strict=True):
            log_p = (s / clustering.temperature).log_softmax(dim=1)
            for queue, new, own in ((0, x, s), (1, y, y)):
                full = len(queues[queue]) == size
                old = queues[queue] @ raw.t() if queue == 0 else queues[queue]
                both = torch.cat([old, own]) if full else own
                q = sinkhorn(both, delta, epsilon=epsilon)[-len(own) :]
                losses.append(-(q * log_p).sum(dim=1).mean())
                queues[queue] = torch.cat([new, queues[queue]])[:size]
                if queue == 0:
                    solved.append(q)
        results.append((sum(losses) / len(drawn), torch.cat(solved)))
    return results


def release(**options) -> ClassBalancedPrototypeClustering:
    return build(
        sampling="uniform",
        assignment="image_by_image",
        bank_scores="dot_product",
        logit_assignments=True,
        distribution_momentum=1,
        **options,
    )


@given(bank_size=st.sampled_from([20, 60, 100]), seed=st.integers(0, 10_000))
def test_the_switches_restore_the_release(bank_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    clustering = release(bank_size=bank_size)
    with torch.no_grad():
        clustering.prototypes *= torch.rand(K, 1) + 0.5  # as they drift from unit length
    clustering.aligner.set(torch.rand(K) + 0.1)
    got, batches = [], []
    for _ in range(4):
        features, labels = batch(images=2)
        logits = torch.randn(2, K, 6, 6)
        output = clustering(features, labels, logits=logits)
        clustering.update(output)
        got.append((output.loss, output.assignments))
        assert output.logits is not None
        parts = (output.features, output.logits, output.scores.detach())
        batches.append(tuple(part.reshape(2, 20, -1) for part in parts))
    for (loss, q), (wanted_loss, wanted_q) in zip(
        got, release_reference(clustering, batches), strict=True
    ):
        torch.testing.assert_close(q, wanted_q, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(loss.detach(), wanted_loss, atol=1e-5, rtol=1e-4)


def test_a_bank_that_is_not_full_counts_for_nothing_image_by_image() -> None:
    torch.manual_seed(0)
    empty, begun = release(), release()
    begun.load_state_dict(empty.state_dict())
    begun.bank.push(F.normalize(torch.randn(99, D), dim=1))
    features, _ = batch(images=1)
    logits = torch.randn(1, K, 6, 6)
    torch.manual_seed(1)
    wanted = empty(features, logits=logits)
    torch.manual_seed(1)
    got = begun(features, logits=logits)
    assert torch.equal(got.assignments, wanted.assignments)
    begun.bank.push(F.normalize(torch.randn(1, D), dim=1))
    torch.manual_seed(1)
    assert not torch.equal(begun(features, logits=logits).assignments, wanted.assignments)


def test_other_labels_can_be_remembered_with_the_pixels() -> None:
    clustering = build()
    features, labels = batch()
    other = torch.arange(40).reshape(2, 20) % K
    clustering.update(clustering(features, labels, bank_labels=other))
    assert torch.equal(clustering.bank.labels[:40], other.flatten())


def test_the_gradient_reaches_prototypes_only() -> None:
    clustering = build()
    features, labels = batch()
    features.requires_grad_()
    clustering(features, labels).loss.backward()
    assert features.grad is None
    assert clustering.prototypes.grad is not None
    assert clustering.prototypes.grad.abs().sum() > 0


def test_forward_is_pure_and_update_remembers() -> None:
    torch.manual_seed(0)
    clustering = build(distribution_momentum=0.5)
    before = {key: value.clone() for key, value in clustering.state_dict().items()}
    features, labels = batch(classes=2)
    output = clustering(features, labels)
    assert all(torch.equal(before[key], value) for key, value in clustering.state_dict().items())

    with torch.no_grad():
        clustering.prototypes.add_(1)
    clustering.update(output, momentum=0.9)
    moved = 0.9 * before["ema_prototypes"] + 0.1 * clustering.prototypes
    torch.testing.assert_close(clustering.ema_prototypes, moved.detach())
    assert clustering.bank.valid.sum() == 40
    frequencies = torch.bincount(labels.flatten(), minlength=K) / labels.numel()
    torch.testing.assert_close(clustering.aligner.distribution, 0.5 / K + 0.5 * frequencies)


def test_a_rare_class_keeps_its_pixels() -> None:
    """Two clusters of 95 and 5 of 100: uniform marginals would cut the large one in half."""
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


def test_without_labels_pixels_are_drawn_and_the_distribution_stays() -> None:
    clustering = build()
    features, _ = batch()
    output = clustering(features)
    assert (output.labels == 255).all()
    before = clustering.aligner.distribution.clone()
    clustering.update(output)
    assert torch.equal(clustering.aligner.distribution, before)


def test_nothing_but_ignored_pixels_is_no_error() -> None:
    clustering = build()
    features, labels = batch()
    output = clustering(features, torch.full_like(labels, 255))
    assert output.loss.isfinite()
    assert (output.labels == 255).all()


def test_a_class_without_prototype_keeps_its_random_start() -> None:
    clustering = build()
    start = clustering.prototypes[2].clone()
    prototypes = torch.randn(K, D)
    prototypes[2] = 0
    clustering.initialize(prototypes, torch.ones(K))
    assert torch.equal(clustering.prototypes[2], start)
    torch.testing.assert_close(clustering.prototypes[0], F.normalize(prototypes, dim=1)[0])


def test_training_separates_the_clusters() -> None:
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(K, D), dim=1)
    clustering = build(distribution_momentum=0.9)
    clustering.initialize(directions + 0.5 * torch.randn(K, D), torch.ones(K))
    optimizer = torch.optim.SGD([clustering.prototypes], 0.5)
    losses = []
    for _ in range(100):
        labels = torch.randint(K, (2, 6, 6))
        features = directions[labels].movedim(-1, 1) + 0.05 * torch.randn(2, D, 6, 6)
        output = clustering(features, labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        clustering.update(output, momentum=0.9)
        losses.append(output.loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert (output.assignments.argmax(dim=1) == output.labels).float().mean() > 0.95


@pytest.mark.parametrize("kind", [build, release])
def test_runs_as_one_graph_and_under_autocast(kind) -> None:
    clustering = kind()
    features, labels = batch()
    compiled = torch.compile(clustering, fullgraph=True, backend="eager")
    assert compiled(features, labels, logits=torch.randn(2, K, 6, 6)).loss.isfinite()
    clustering = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = clustering(features.bfloat16(), labels)
    assert output.scores.dtype == output.assignments.dtype == torch.float32


@pytest.mark.parametrize("kind", [build, release])
def test_nothing_waits_for_the_device(kind, fake_cuda) -> None:
    clustering = kind()
    features, labels = batch()
    output = clustering(features, labels, logits=torch.randn(2, K, 6, 6))
    clustering.update(output)
    assert output.indices.shape == (2, 20)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(2, 7, 4, 4), None, r"\(B, 8, h, w\)"),
        (torch.rand(2, D, 4, 4), torch.zeros(2, 4, 5), r"\(2, 4, 4\)"),
        (torch.rand(2, D, 4, 4), torch.full((2, 4, 4), 6), "labels must be 0...4"),
    ],
)
def test_wrong_input_is_named(features, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()(features, labels)


def test_contrast_begins_when_the_bank_is_full() -> None:
    torch.manual_seed(0)
    clustering = build(bank_size=40)
    features = torch.randn(2, D, 6, 6, requires_grad=True)
    labels = torch.randint(K, (2, 12, 12))
    assert clustering.contrast(features, labels) == 0
    clustering.bank.push(torch.randn(40, D), torch.randint(K, (40,)))
    torch.manual_seed(1)
    loss = clustering.contrast(features, labels)
    loss.backward()
    assert loss > 0
    moved = (features.grad != 0).any(dim=1).flatten(1).sum(dim=1)
    assert moved.tolist() == [20, 20]
    assert clustering.contrast(features, torch.full_like(labels, 255)) == 0
    # Labels at another resolution are looked up at the pixels' places.
    torch.manual_seed(1)
    nearest = clustering.contrast(features, labels[:, ::2, ::2])
    torch.testing.assert_close(nearest, loss)


@pytest.mark.parametrize("name", ["sampling", "assignment", "bank_scores"])
def test_unknown_ways_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .* got \"?'?other"):
        build(**{name: "other"})


def test_what_a_switch_needs_is_asked_for() -> None:
    features, labels = batch()
    with pytest.raises(ValueError, match=r"logits \(2, 5, 6, 6\), got None"):
        release()(features, labels)
    with pytest.raises(ValueError, match=r"logits \(2, 5, 6, 6\), got \(2, 4, 6, 6\)"):
        release()(features, labels, logits=torch.rand(2, 4, 6, 6))
    with pytest.raises(ValueError, match=r"bank_labels must be \(2, 20\)"):
        build()(features, labels, bank_labels=torch.zeros(2, 6, 6))


def test_another_number_of_ranks_is_no_obstacle() -> None:
    shards = [ClassBalancedPrototypeClustering(3, 4, bank_size=8) for _ in range(2)]
    shards[1].load_state_dict(shards[0].state_dict())
    for number, shard in enumerate(shards):
        shard.bank.push(torch.full((6, 4), float(number)), torch.full((6,), number))
    whole = ClassBalancedPrototypeClustering(3, 4, bank_size=16)
    whole.load_shards([shard.state_dict() for shard in shards])
    assert sorted(whole.bank.labels[whole.bank.valid].tolist()) == [0] * 6 + [1] * 6
    assert torch.equal(whole.prototypes, shards[0].prototypes)
    assert torch.equal(whole.aligner.distribution, shards[0].aligner.distribution)


def test_a_batch_in_parts_moves_the_averages_once() -> None:
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
