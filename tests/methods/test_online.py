"""The online method: its losses follow from its labels, and its state is that of its steps."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl import ClassBalancedPrototypeClustering, prototype_contrast, prototype_similarity, warp
from cpsl.data import SourceBatch, TargetBatch
from cpsl.geometry import resize_labels
from cpsl.losses import cross_entropy
from cpsl.methods import OnlineSelfLabeling
from cpsl.models import ExponentialMovingAverage, resize
from cpsl.testing import training_batches
from small_networks import Patches

K, D = 3, 8
Batches = tuple[SourceBatch, TargetBatch]


@pytest.fixture
def batches() -> Batches:
    return training_batches(K)


def build(clustered: bool = True, align_corners: bool = True, **options: Any) -> OnlineSelfLabeling:
    """Builds a method whose teacher is confident about a part of the pixels."""
    torch.manual_seed(0)
    student = Patches(K, D, align_corners)
    clustering = ClassBalancedPrototypeClustering(
        K,
        D,
        bank_size=64,
        samples_per_image=16,
        sampling="stratified",
        prototype_update="assignments",
        align_corners=align_corners,
    )
    options = {"confidence_threshold": 0.4, "masked_patch": 8, **options}
    teacher = ExponentialMovingAverage(student)
    return OnlineSelfLabeling(student, teacher, clustering if clustered else None, **options)


def step(method: OnlineSelfLabeling, batches: Batches, seed: int = 0) -> list[float]:
    learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    losses = []
    torch.manual_seed(seed)
    for loss in method.losses(*batches):
        loss.backward()
        losses.append(loss.item())
    optimizer.step()
    method.zero_grad()
    method.update()
    return losses


def predict(method: OnlineSelfLabeling, images: Tensor, size: torch.Size) -> Tensor:
    """Returns the logits of the student at full resolution."""
    return resize(method.student(images.float()).logits, size, method.align_corners)


def pasted_by(method: OnlineSelfLabeling, source: SourceBatch) -> Tensor:
    """Returns the pixels of the mixed images that are those of the source; the images are random."""
    assert method.supervision is not None
    return (method.supervision.images == source.image).all(dim=1)


@pytest.mark.parametrize("align_corners", [True, False])
def test_losses_of_a_mean_teacher_follow_the_equations(batches: Batches, align_corners: bool) -> None:
    method = build(clustered=False, align_corners=align_corners, mixing="none", masked_share=0.0)
    source, target = batches
    losses = list(method.losses(source, target))

    size = source.label.shape[1:]
    loss_source = F.cross_entropy(predict(method, source.image / 255, size), source.label.long())
    soft = method.student(target.weak / 255).logits.softmax(dim=1).detach()
    share = (soft.amax(dim=1) > 0.4).float().mean()
    assert 0 < share < 1
    views = target.weak_view, target.strong_view
    in_strong = warp(soft, *views, size, align_corners=align_corners, output_align_corners=False)
    labels = in_strong.values.argmax(dim=1).masked_fill(~in_strong.valid, 255)
    logits = predict(method, target.strong / 255, size)
    loss_target = share * F.cross_entropy(logits, labels, ignore_index=255)
    # Without masked patches, the masked image is the image.
    torch.testing.assert_close(losses, [loss_source, loss_target, loss_target])


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("mixing", ["class", "cut", "none"])
def test_pasted_pixels_have_weight_one_and_the_rest_the_share_of_confident_ones(
    batches: Batches, clustered: bool, mixing: str
) -> None:
    method = build(clustered, mixing=mixing)
    list(method.losses(*batches))
    assert method.supervision is not None
    images, labels = method.supervision
    share = method.metrics["confident"]
    assert 0 < share < 1
    pasted = pasted_by(method, batches[0])
    assert pasted.any() == (mixing != "none")
    weights = pasted + share * ~pasted
    loss = cross_entropy(predict(method, images / 255, labels.shape[1:]), labels, weights=weights)
    torch.testing.assert_close(method.metrics["loss_target"], loss.detach())


@pytest.mark.parametrize("mixing", ["class", "cut", "none"])
def test_images_and_labels_of_the_source_are_pasted(batches: Batches, mixing: str) -> None:
    method = build(mixing=mixing)
    plain = build(mixing="none")
    source, target = batches
    for each in (plain, method):
        torch.manual_seed(1)
        list(each.losses(source, target))
    assert method.supervision is not None
    assert plain.supervision is not None
    pasted = pasted_by(method, source)
    assert torch.equal(method.supervision.images, torch.where(pasted[:, None], source.image, target.strong))
    assert torch.equal(
        method.supervision.labels, torch.where(pasted, source.label.long(), plain.supervision.labels)
    )
    for where, label in zip(pasted, source.label, strict=True):
        if mixing == "class":  # two of three classes
            assert len(label[where].unique()) == 2
            assert torch.equal(where, torch.isin(label, label[where].unique()))
        else:
            assert where.float().mean() == pytest.approx(0.5 if mixing == "cut" else 0, abs=0.1)
    # The cutout of the strong view has no labels.
    assert (plain.supervision.labels == 255).float().mean() > 0.05


def test_masked_images_are_strong_views_with_patches_of_their_mean(batches: Batches) -> None:
    source, target = batches
    method = build(masked_weight=0.5, masked_share=0.6)
    inputs: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    losses = list(method.losses(source, target))
    torch.testing.assert_close(losses[2], 0.5 * method.metrics["loss_masked"])
    assert len(inputs) == 3
    strong, masked = target.strong / 255, inputs[2]
    unchanged = (masked == strong).all(dim=1)
    mean = strong.mean(dim=(2, 3), keepdim=True).expand_as(strong)
    assert torch.equal(masked, torch.where(unchanged[:, None], strong, mean))
    patches = F.avg_pool2d(unchanged[:, None].float(), 8)
    assert set(patches.unique().tolist()) == {0.0, 1.0}
    # Their labels are those of the strong view, without those of the source.
    plain = build(mixing="none")
    list(plain.losses(source, target))
    assert plain.supervision is not None
    labels = plain.supervision.labels
    loss = cross_entropy(predict(method, masked, labels.shape[1:]), labels)
    torch.testing.assert_close(method.metrics["loss_masked"], (method.metrics["confident"] * loss).detach())


@pytest.mark.parametrize("mixing", ["class", "none"])
def test_the_agreement_is_that_of_student_and_pseudo_labels_in_the_target(
    batches: Batches, mixing: str
) -> None:
    source, target = batches
    method = build(mixing=mixing)
    list(method.losses(source, target))
    assert method.supervision is not None
    images, labels = method.supervision
    counted = labels != 255
    if mixing == "class":
        counted &= ~pasted_by(method, source)
    predicted = predict(method, images / 255, labels.shape[1:]).argmax(dim=1)
    expected = (predicted == labels)[counted].float().mean()
    assert 0 < expected < 1
    torch.testing.assert_close(method.metrics["agreement"], expected)


def test_without_its_weight_there_is_no_masked_pass(batches: Batches) -> None:
    method = build(masked_weight=0.0)
    passes: list[Any] = []
    method.student.register_forward_hook(lambda *arguments: passes.append(arguments))
    assert len(list(method.losses(*batches))) == 2
    assert len(passes) == 2
    assert "loss_masked" not in method.metrics


def test_clusters_leave_the_labels_of_the_teacher(batches: Batches) -> None:
    source, target = batches
    with_clusters = build(mixing="none", initial_steps=1)
    step(with_clusters, batches)
    plain = build(False, mixing="none")
    plain.student.load_state_dict(with_clusters.student.state_dict())
    plain.teacher.load_state_dict(with_clusters.teacher.state_dict())
    labels = []
    for method in (with_clusters, plain):
        list(method.losses(source, target))
        assert method.supervision is not None
        labels.append(method.supervision.labels)
    assert torch.equal(*labels)


def test_the_loss_is_the_sum_of_its_parts(batches: Batches) -> None:
    method = build(contrast_weight=0.7, masked_weight=0.5)
    total = sum(method.losses(*batches))
    parts = {name: value for name, value in method.metrics.items() if name.startswith("loss")}
    weights = {"loss_source": 1, "loss_target": 1, "loss_contrast": 0.7, "loss_masked": 0.5}
    torch.testing.assert_close(total.detach(), sum(weights[name] * value for name, value in parts.items()))


def test_prototypes_that_follow_a_gradient_are_refused() -> None:
    student = Patches(K, D)
    clustering = ClassBalancedPrototypeClustering(K, D, bank_size=64)
    with pytest.raises(ValueError, match="prototype_update"):
        OnlineSelfLabeling(student, ExponentialMovingAverage(student), clustering)


@pytest.mark.parametrize("align_corners", [True, False])
def test_features_of_both_domains_are_contrasted_with_the_prototypes(
    batches: Batches, align_corners: bool
) -> None:
    losses = []
    for weight in (0.0, 0.7):
        method = build(contrast_weight=weight, align_corners=align_corners)
        losses.append(list(method.losses(*batches)))
    plain, contrasted = losses

    source, target = batches
    assert method.supervision is not None
    clustering: Any = method.clustering
    pasted = pasted_by(method, source)
    weights = torch.where(pasted, 1.0, method.metrics["confident"])
    # In the target, pixels count whose label is the class to which the clusters assign them.
    assigned = clustering.assign(method.teacher(target.weak / 255).features)
    views = target.weak_view, target.strong_view
    assigned, _ = warp(assigned, *views, align_corners=align_corners, output_align_corners=False)
    pseudo_labels = method.supervision.labels
    agree = pasted | (assigned.argmax(dim=1) == pseudo_labels)
    assert 0.1 < agree[~pasted & (pseudo_labels != 255)].float().mean() < 0.9
    expected = []
    for image, labels_of, weight_of in [
        (source.image, source.label, torch.ones_like(weights)),
        (method.supervision.images, pseudo_labels.masked_fill(~agree, 255), weights),
    ]:
        features = method.student(image / 255).features
        of_grid = resize(weight_of[:, None], features.shape[2:], align_corners)[:, 0]
        on_grid = resize_labels(labels_of, features.shape[2:], align_corners)
        cosines = prototype_similarity(features, clustering.prototypes.detach())
        expected.append(prototype_contrast(cosines, on_grid, of_grid, temperature=clustering.temperature))
    torch.testing.assert_close(contrasted[0], plain[0] + 0.7 * expected[0])
    torch.testing.assert_close(contrasted[1], plain[1] + 0.7 * expected[1])
    torch.testing.assert_close(contrasted[2:], plain[2:])
    torch.testing.assert_close(method.metrics["loss_contrast"], (expected[0] + expected[1]).detach())


def test_pixels_with_a_non_finite_teacher_are_ignored(batches: Batches) -> None:
    source, target = batches
    for clustered in (False, True):
        method = build(clustered, mixing="none")
        with torch.no_grad():
            method.teacher.module.classify.bias.fill_(torch.nan)
        losses = list(method.losses(source, target))
        assert method.supervision is not None
        assert (method.supervision.labels == 255).all()
        assert all(loss.isfinite() for loss in losses)


def test_prototypes_follow_the_source_in_the_initial_steps_only(batches: Batches) -> None:
    method = build(initial_steps=2, momentum=0.5)
    clustering: Any = method.clustering
    assert method.initial is not None
    means = method.initial.means
    for number in range(4):
        counts = means.counts.clone()
        step(method, batches, number)
        assert torch.equal(counts, means.counts) == (number >= 2)
    assert method.initial.steps == 4
    begin = F.normalize(means.prototypes, dim=1)
    assert 0 < (clustering.prototypes - begin).norm() < 1


def test_micro_batches_of_one_step_count_as_one_initial_step(batches: Batches) -> None:
    method = build(initial_steps=1)
    assert method.initial is not None
    for last in (False, True):
        list(method.losses(*batches, last_micro_batch=last))
    method.update()
    assert method.initial.steps == 1
    counts = method.initial.means.counts.clone()
    list(method.losses(*batches))
    assert torch.equal(counts, method.initial.means.counts)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_method_computes_the_same(clustered: bool, stop: int) -> None:
    """Stopped within the initial steps, at their end, and after them."""
    data = [training_batches(K, seed=number) for number in range(5)]
    method = build(clustered, initial_steps=2)
    for number in range(stop):
        step(method, data[number], number)
    resumed = build(clustered, initial_steps=2)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for number in range(stop, 5):
        losses = [step(each, data[number], number) for each in (method, resumed)]
        assert losses[0] == losses[1]
    torch.testing.assert_close(method.state_dict(), resumed.state_dict(), rtol=0, atol=0)


def test_a_step_that_was_not_applied_changes_no_average(batches: Batches) -> None:
    method = build(initial_steps=0)
    before = copy.deepcopy(method.state_dict())
    list(method.losses(*batches))
    method.update(torch.tensor(False))
    for key, value in method.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, before[key]), key


def test_micro_batches_are_clustered_one_by_one_and_averaged_once(batches: Batches) -> None:
    method = build(initial_steps=0)
    for last in (False, True):
        for loss in method.losses(*batches, last_micro_batch=last):
            loss.backward()
    method.update()
    clustering: Any = method.clustering
    assert clustering.bank.valid.sum() == 2 * 2 * 16


def test_validation_does_not_change_the_means_of_the_source(batches: Batches) -> None:
    method = build()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        method(*batches)
    torch.testing.assert_close(method.state_dict(), before, atol=0, rtol=0)
    with pytest.raises(RuntimeError, match="no_grad"):
        method.update()


def test_update_needs_losses() -> None:
    with pytest.raises(RuntimeError, match="losses"):
        build().update()


def test_an_unknown_mixing_is_named() -> None:
    with pytest.raises(ValueError, match=r"mixing.*'half'"):
        build(mixing="half")
