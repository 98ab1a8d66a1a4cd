"""The self-labeling step equals the equations of the paper, written out."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl import PseudoLabelRectifier
from cpsl.geometry import warp
from cpsl.methods import SelfLabeling
from training_steps import K, batches, build, gradients, network, sgd

TAU = 0.08


def resized(maps: Tensor, size: Any) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)


def cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    return torch.einsum("bdhw,kd->bkhw", F.normalize(features, dim=1), F.normalize(prototypes, dim=1))


def rectify(soft: Tensor, similarity: Tensor) -> Tensor:
    """Returns argmax_k of softmax(cos / τ) · P, equation 2."""
    return ((similarity / TAU).softmax(dim=1) * soft).argmax(dim=1)


def crop(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Samples maps of the whole image on the grid of the weak view of `training_batches`, by hand.

    The whole image has 64 x 128 pixels; the view is a crop of 32 x 64 pixels at (8, 16), mirrored.
    """
    y = 8 + 0.5 + torch.linspace(0, 31, size[0])
    x = 16 + 0.5 + torch.linspace(63, 0, size[1])
    grid = torch.stack(
        [
            ((x - 0.5) / 127 * 2 - 1).expand(size[0], size[1]),
            ((y - 0.5) / 63 * 2 - 1)[:, None].expand(size[0], size[1]),
        ],
        dim=-1,
    )
    return F.grid_sample(maps, grid.expand(len(maps), -1, -1, -1), align_corners=True)


def sinkhorn(scores: Tensor, marginal: Tensor) -> Tensor:
    """Assigns pixels by three rounds of scaling columns to the marginal and rows to one."""
    q = (scores.double() / 0.05).exp()
    for _ in range(3):
        q = q * marginal / q.sum(dim=0)
        q = q / q.sum(dim=1, keepdim=True)
    return q.float()


def test_losses_follow_the_equations() -> None:
    weights = {"ce_weight": 0.2, "rce_weight": 0.7, "self_label_weight": 0.3, "consistency_weight": 4.0}
    method = build("self_labeling", cutmix_probability=0.0, **weights)
    source, target = batches("self_labeling")
    reference = copy.deepcopy(method)
    student, teacher = reference.student, reference.teacher.module
    prototypes = reference.prototypes
    outputs: list[Any] = []
    method.clustering.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = list(method.losses(source, target))
    size = target.weak.shape[2:]
    quarter = (size[0] // 4, size[1] // 4)

    logits = resized(student(source.image / 255).logits, size)
    loss_source = F.cross_entropy(logits, source.label.long(), ignore_index=255)

    with torch.no_grad():
        features = teacher(target.whole / 255).features
    similarity = cosines(features, prototypes)
    soft = resized(target.pseudo_labels, features.shape[2:])
    labels_whole = rectify(soft, similarity)
    labels = rectify(crop(soft, quarter), crop(similarity, quarter))

    student_similarity = cosines(student(target.strong / 255).features, prototypes)
    in_strong, valid = warp(
        crop(similarity, quarter),
        target.weak_view,
        target.strong_view,
        student_similarity.shape[2:],
        align_corners=True,
    )
    t = (in_strong / TAU).softmax(dim=1)
    divergence = t * (t.log() - (student_similarity / TAU).log_softmax(dim=1))
    loss_consistency = divergence.mean(dim=1)[valid].mean()

    weak = resized(student(target.weak / 255).logits, quarter)
    p = weak.softmax(dim=1).clamp_min(1e-7)
    one_hot = F.one_hot(labels, K).movedim(3, 1).float().clamp_min(1e-4)
    reverse = -(p * one_hot.log()).sum(dim=1).mean()
    loss_target = 0.2 * F.cross_entropy(weak, labels) + 0.7 * reverse

    pixels = features.movedim(1, 3).flatten(0, 2)[outputs[0].indices.flatten()]
    scores = F.normalize(pixels, dim=1) @ F.normalize(reference.clustering.prototypes, dim=1).t()
    q = sinkhorn(scores.detach(), torch.tensor([0.5, 0.3, 0.2]))
    loss_self_label = -(q * (scores / TAU).log_softmax(dim=1)).sum(dim=1).mean()

    wanted = [loss_source, 4.0 * loss_consistency, loss_target, 0.3 * loss_self_label]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert method.supervision is not None
    assert torch.equal(method.supervision.labels, labels)
    assert torch.equal(method.supervision.images, target.weak)
    sampled = labels_whole.flatten()[outputs[0].indices.flatten()]
    assert torch.equal(outputs[0].labels, sampled)


def test_each_loss_reaches_its_own_parameters() -> None:
    method = build("self_labeling")
    reached = []
    for loss in method.losses(*batches("self_labeling")):
        method.zero_grad()
        loss.backward()
        reached.append(set(gradients(method)))
    student = {f"student.{name}" for name, _ in method.student.named_parameters()}
    classifier = {name for name in student if ".classify." in name}
    assert all(names <= student for names in reached[:3])
    assert reached[0] & classifier
    assert not reached[1] & classifier  # the consistency compares features
    assert reached[2] & classifier
    assert reached[3] == {"clustering.prototypes"}
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_an_update_follows_its_equations_once_per_step() -> None:
    method = build("self_labeling", momentum=0.9)
    optimizer = sgd(method)
    outputs: list[Any] = []
    method.clustering.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for seed in range(2):  # two micro-batches
        for loss in method.losses(*batches("self_labeling", seed)):
            loss.backward()
    optimizer.step()
    before = copy.deepcopy(method.state_dict())
    method.update()
    after = method.state_dict()
    for key in before:
        if key.startswith("teacher.module.") and before[key].is_floating_point():
            student = before[key.replace("teacher.module.", "student.")]
            torch.testing.assert_close(after[key], 0.9 * before[key] + 0.1 * student)
    key = "clustering.ema_prototypes"
    wanted = 0.9 * before[key] + 0.1 * before["clustering.prototypes"]
    torch.testing.assert_close(after[key], wanted)
    counts = sum(output.class_counts for output in outputs).double()
    key = "clustering.aligner.distribution"
    wanted = 0.99 * before[key] + 0.01 * (counts / counts.sum()).float()
    torch.testing.assert_close(after[key], wanted)
    pushed = torch.cat([output.features for output in outputs])
    assert torch.equal(after["clustering.bank.features"], pushed)  # 2 · 2 · 16 pixels fill it
    for key in before:
        if key.startswith("student.") or key == "clustering.prototypes":
            assert torch.equal(after[key], before[key])


def test_cutmix_pastes_images_and_labels_of_the_source() -> None:
    method = build("self_labeling", cutmix_probability=1.0)
    source, target = batches("self_labeling")
    list(method.losses(source, target))
    assert method.supervision is not None
    pasted = (method.supervision.images == source.image).all(dim=1)
    kept = (method.supervision.images == target.weak).all(dim=1)
    assert (pasted | kept).all()
    assert 0.3 < pasted.float().mean() < 0.7


def test_an_update_without_losses_is_refused() -> None:
    method = build("self_labeling")
    with pytest.raises(RuntimeError, match="losses"):
        method.update()


def test_the_momentum_of_the_method_is_checked() -> None:
    method = build("self_labeling", momentum=1.5)
    list(method.losses(*batches("self_labeling")))
    with pytest.raises(ValueError, match=r"momentum.*1\.5"):
        method.update()


@pytest.mark.parametrize(
    ("labels", "error", "named"),
    [
        (torch.empty(2, 0), ValueError, r"\(2, 0\)"),
        (torch.empty(2, 0, dtype=torch.uint8), ValueError, r"\(2, 0\)"),
        (torch.zeros(2, 64, 128, dtype=torch.uint8), TypeError, r"uint8.*\(2, 64, 128\)"),
        (torch.rand(2, K + 1, 8, 16), ValueError, r"\(2, 4, 8, 16\)"),
        (torch.rand(3, K, 8, 16), ValueError, r"\(3, 3, 8, 16\)"),
        (torch.rand(2, 8, 16), ValueError, r"\(2, 8, 16\)"),
    ],
)
def test_wrong_pseudo_labels_are_named(labels: Tensor, error: type[Exception], named: str) -> None:
    source, target = batches("self_labeling")
    object.__setattr__(target, "pseudo_labels", labels)
    with pytest.raises(error, match=rf"pseudo_labels.*soft.*{named}"):
        build("self_labeling")(source, target)


def test_a_default_rectifier_is_used() -> None:
    method = build("self_labeling")
    assert isinstance(method, SelfLabeling)
    assert method.rectifier.temperature == TAU
    assert network().num_classes == len(method.prototypes)


@given(gamma=st.sampled_from([0.5, 1.0]))
def test_the_rectifier_may_count_the_prior_once(gamma: float) -> None:
    method = build("self_labeling", cutmix_probability=0.0)
    assert isinstance(method, SelfLabeling)
    source, target = batches("self_labeling")
    distribution = method.clustering.aligner.distribution
    distribution.copy_(torch.tensor([0.7, 0.2, 0.1]))
    plain = method.rectifier
    method.rectifier = PseudoLabelRectifier(prior_correction=gamma)
    list(method.losses(source, target))
    assert method.supervision is not None
    corrected = method.supervision.labels
    # The same as soft labels that are divided beforehand, with the paper's product.
    method.rectifier = plain
    soft = target.pseudo_labels / distribution[:, None, None] ** gamma
    list(method.losses(source, replace(target, pseudo_labels=soft / soft.sum(dim=1, keepdim=True))))
    assert (method.supervision.labels == corrected).float().mean() > 0.99


def test_a_rectifier_with_another_label_of_ignored_pixels_is_refused() -> None:
    method = build("self_labeling")
    parts = method.student, method.teacher, method.clustering
    with pytest.raises(ValueError, match=r"ignore_index.*250"):
        SelfLabeling(*parts, PseudoLabelRectifier(ignore_index=250))
