"""The mean teacher computes what its components compute, and keeps its averages up to date."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier, RunningClassMeans, warp
from cpsl.data import SourceBatch, TargetBatch
from cpsl.methods import MeanTeacher
from cpsl.models import ExponentialMovingAverage
from cpsl.testing import training_batches
from small_networks import Patches

K, D = 3, 8


@pytest.fixture
def batches() -> tuple[SourceBatch, TargetBatch]:
    return training_batches(K)


def build(clustered: bool = True, **options: float | bool) -> MeanTeacher:
    torch.manual_seed(0)
    student = Patches(K, D)
    clustering = ClassBalancedPrototypeClustering(K, D, bank_size=64, samples_per_image=16)
    return MeanTeacher(
        student,
        ExponentialMovingAverage(student),
        clustering if clustered else None,
        **options,  # type: ignore[arg-type]
    )


def step(method: MeanTeacher, batches: tuple[SourceBatch, TargetBatch]) -> list[float]:
    learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    losses = []
    for loss in method.losses(*batches):
        loss.backward()
        losses.append(loss.item())
    optimizer.step()
    method.update()
    return losses


@pytest.mark.parametrize("clustered", [False, True])
def test_losses_are_those_of_the_components(
    batches: tuple[SourceBatch, TargetBatch], clustered: bool
) -> None:
    source, target = batches
    method = build(clustered, confidence_threshold=0.4)
    student = copy.deepcopy(method.student)
    torch.manual_seed(1)
    losses = step(method, batches)

    logits, features = student(source.image / 255)
    logits = F.interpolate(logits, source.label.shape[1:], mode="bilinear", align_corners=True)
    expected = [F.cross_entropy(logits, source.label.long())]
    clustering = build().clustering
    assert isinstance(clustering, ClassBalancedPrototypeClustering)
    means = RunningClassMeans(K, D)
    means.update(features, source.label)
    clustering.initialize(means.prototypes, means.distribution)

    logits, features = student(target.weak / 255)
    soft = logits.softmax(dim=1).detach()
    confidence, labels = soft.max(dim=1)
    if clustered:
        labels = PseudoLabelRectifier()(soft, features, clustering.ema_prototypes).labels
    logits, _ = student(target.strong / 255)
    views = (target.weak_view, target.strong_view)
    in_strong, _ = warp(labels, *views, logits.shape[2:], align_corners=True)
    share = (confidence > 0.4).float().mean()
    assert 0 < share < 1
    expected.append(share * F.cross_entropy(logits, in_strong, ignore_index=255))
    if clustered:
        torch.manual_seed(1)
        expected.append(0.1 * clustering(features, labels).loss)
    assert losses == pytest.approx([loss.item() for loss in expected], rel=1e-5)


def test_call_returns_the_sum_of_the_losses(batches: tuple[SourceBatch, TargetBatch]) -> None:
    method, other = build(), build()
    torch.manual_seed(1)
    total = method(*batches)
    torch.manual_seed(1)
    assert total.item() == pytest.approx(sum(loss.item() for loss in other.losses(*batches)))


def test_prototypes_follow_the_source_in_the_initial_steps_only(
    batches: tuple[SourceBatch, TargetBatch],
) -> None:
    method = build(initial_steps=2, momentum=0.5)
    clustering = method.clustering
    assert isinstance(clustering, ClassBalancedPrototypeClustering)
    for number in range(4):
        counts = method.means.counts.clone()
        step(method, batches)
        assert torch.equal(counts, method.means.counts) == (number >= 2)
    begin = F.normalize(method.means.prototypes, dim=1)
    assert 0 < (clustering.prototypes - begin).norm() < 1


def test_a_resumed_mean_teacher_computes_the_same(batches: tuple[SourceBatch, TargetBatch]) -> None:
    method = build(initial_steps=2)
    step(method, batches)
    step(method, batches)
    resumed = build(initial_steps=2)
    resumed.load_state_dict(method.state_dict())
    results = []
    for each in (method, resumed):
        torch.manual_seed(2)
        results.append(step(each, batches))
    assert results[0] == results[1]
    assert torch.equal(method.means.counts, resumed.means.counts)


def test_a_step_that_was_not_applied_changes_no_average(batches: tuple[SourceBatch, TargetBatch]) -> None:
    method = build(initial_steps=0)
    before = copy.deepcopy(method.state_dict())
    for _ in method.losses(*batches):
        pass
    method.update(torch.tensor(False))
    for key, value in method.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, before[key]), key


def test_micro_batches_are_clustered_one_by_one_and_averaged_once(
    batches: tuple[SourceBatch, TargetBatch],
) -> None:
    method = build(initial_steps=0)
    for last in (False, True):
        for loss in method.losses(*batches, last_micro_batch=last):
            loss.backward()
    method.update()
    clustering = method.clustering
    assert isinstance(clustering, ClassBalancedPrototypeClustering)
    assert clustering.bank.valid.sum() == 2 * 2 * 16


def test_update_needs_losses() -> None:
    with pytest.raises(RuntimeError, match="losses"):
        build().update()
