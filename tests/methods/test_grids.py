"""The training steps follow the grid of the network: what the teacher sees is where the student sees it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier
from cpsl.data import TargetBatch
from cpsl.geometry import View, warp
from cpsl.methods import Distillation, OnlineSelfLabeling, SelfLabeling
from cpsl.models import ExponentialMovingAverage, SegmentationOutput, resize, segment
from cpsl.testing import training_batches
from small_networks import Colors

K = 5
METHODS = ["online", "self_labeling", "distillation"]
WHOLE, CROP = (64, 128), (32, 64)


def smooth_images(count: int) -> Tensor:
    """Images whose colors vary over some steps of the grid."""
    coarse = torch.rand(count, 3, 6, 12, generator=torch.Generator().manual_seed(0))
    return (255 * F.interpolate(coarse, WHOLE, mode="bicubic").clamp(0, 1)).to(torch.uint8)


def target_batch(network: Colors, kind: str) -> TargetBatch:
    """Views of smooth images without photometric changes, and the pseudo labels of the network."""
    whole = smooth_images(4)
    view = View.whole(WHOLE, len(whole))
    weak_view = view.cropped(11, 37, CROP)
    strong_view = weak_view.flipped().translated(x=4, y=-4)

    def render(to: View) -> Tensor:
        return warp(whole.float(), view, to).values.round().to(torch.uint8)

    with torch.no_grad():
        soft = segment(network, whole.float() / 255).logits.softmax(dim=1)
    hard = resize(soft, WHOLE, network.align_corners).argmax(dim=1)
    labels = {"soft": soft, "hard": hard, "none": torch.empty(len(whole), 0)}[kind]
    _, batch = training_batches(K, images=4)
    names = [str(number) for number in range(len(whole))]
    return type(batch)(
        weak=render(weak_view),
        weak_view=weak_view,
        strong=render(strong_view),
        strong_view=strong_view,
        whole=whole,
        whole_view=view,
        pseudo_labels=labels,
        names=names,
    )


class Nodes(Colors):
    """Classifies the colors at the nodes of a corner-aligned grid, instead of means of cells."""

    def forward(self, images: Tensor) -> SegmentationOutput:
        size = images.shape[2] // 4, images.shape[3] // 4
        nodes = F.interpolate(images, size, mode="bilinear", align_corners=True) - 0.5
        logits = F.conv2d(nodes, self.weight)
        return SegmentationOutput(logits, logits)


def agreement(name: str, truth: bool, declared: bool) -> float:
    """Returns the share of labels that the student, which is the same network, predicts at their place.

    Args:
        name: Name of the method.
        truth: Whether the grid of the network is corner-aligned.
        declared: The value of its attribute.
    """
    torch.manual_seed(0)
    kind = Nodes if truth else Colors
    network = kind(K, align_corners=declared)
    clustering = ClassBalancedPrototypeClustering(K, K, bank_size=64, samples_per_image=16)
    method: Any
    teacher = ExponentialMovingAverage(network)
    if name == "online":
        method, labels_are = OnlineSelfLabeling(network, teacher, mixing="none"), "none"
    elif name == "self_labeling":
        clustering.ema_prototypes.zero_()  # no rectification
        method, labels_are = SelfLabeling(network, teacher, clustering, cutmix_probability=0), "soft"
    else:
        method, labels_are = Distillation(network, kind(K, align_corners=declared)), "hard"
    source, _ = training_batches(K, images=4)
    batch = target_batch(network, labels_are)
    list(method.losses(source, batch))
    images, labels = method.supervision
    with torch.no_grad():
        logits = segment(network, images.float() / 255).logits
    predicted = resize(logits, labels.shape[1:], align_corners=truth).argmax(dim=1)
    valid = labels != 255
    return float((predicted == labels)[valid].float().mean())


@pytest.mark.parametrize("truth", [False, True], ids=["half-pixel", "corner-aligned"])
@pytest.mark.parametrize("name", METHODS)
def test_labels_lie_where_the_network_predicts_them(name: str, truth: bool) -> None:
    right, wrong = agreement(name, truth, declared=truth), agreement(name, truth, declared=not truth)
    assert right > 0.9
    assert right > wrong + 0.01, (right, wrong)


def test_rectified_labels_and_similarities_share_the_grid() -> None:
    network = Colors(K, align_corners=False)
    images = smooth_images(2).float() / 255
    with torch.no_grad():
        logits, features = segment(network, images)
    soft = resize(logits.softmax(dim=1), WHOLE, align_corners=False)
    prototypes = torch.eye(K)
    labels = {}
    for align_corners in (False, True):
        rectifier = PseudoLabelRectifier(align_corners=align_corners)
        labels[align_corners] = rectifier(soft, features, prototypes).labels
    wanted = rectifier.rectify(soft, resize(F.normalize(features, dim=1), WHOLE, False)).labels
    assert (labels[False] == wanted).float().mean() > 0.999
    assert (labels[True] == wanted).float().mean() < 0.999


@pytest.mark.parametrize("aligned", [(True, False), (False, True), (False, False), (True, True)])
def test_a_teacher_of_another_architecture_is_resampled(aligned: tuple[bool, bool]) -> None:
    student, teacher = (Colors(K, align_corners) for align_corners in aligned)
    teacher.forward = lambda images: Colors.forward(  # type: ignore[method-assign]
        teacher, F.avg_pool2d(images, 2)
    )
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(logits: Tensor, logits_teacher: Tensor) -> Tensor:
        seen.append((logits, logits_teacher))
        return logits.sum()

    source, _ = training_batches(K, images=4)
    list(Distillation(student, teacher, loss=loss).losses(source, target_batch(student, "hard")))
    logits, logits_teacher = seen[0]
    assert logits.shape == logits_teacher.shape
