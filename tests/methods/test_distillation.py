"""The distillation step equals its equations, written out."""

import pytest
import torch
import torch.nn.functional as F

from cpsl.geometry import warp
from cpsl.methods import Distillation
from training_steps import K, batches, build, gradients, network


def test_losses_follow_the_equations() -> None:
    method, (source, target) = (build("distillation", distillation_weight=0.7), batches("distillation"))
    student, teacher = network(), network(seed=1).eval()
    found = list(method.losses(source, target))

    def resized(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)

    size = target.weak.shape[2:]
    quarter = (size[0] // 4, size[1] // 4)
    logits = resized(student(source.image / 255).logits, size)
    loss_source = F.cross_entropy(logits, source.label.long())
    student_logits = student(target.strong / 255).logits
    with torch.no_grad():
        p = teacher(target.strong / 255).logits.softmax(dim=1)
    loss_distillation = (p * (p.log() - student_logits.log_softmax(dim=1))).mean()
    assert method.supervision is not None
    labels = method.supervision.labels
    loss_target = F.cross_entropy(resized(student_logits, quarter), labels.long(), ignore_index=255)
    torch.testing.assert_close(found, [loss_source, loss_target + 0.7 * loss_distillation])
    torch.testing.assert_close(method.metrics["loss_distillation"], loss_distillation.detach())


def test_labels_are_those_of_the_same_pixels_in_the_strong_view() -> None:
    method, (source, target) = build("distillation"), batches("distillation")
    target.pseudo_labels[:] = torch.arange(128) // 20 % K  # vertical stripes
    list(method.losses(source, target))
    assert method.supervision is not None
    labels = method.supervision.labels
    direct = warp(
        target.pseudo_labels, target.whole_view, target.strong_view, (8, 16), output_align_corners=True
    ).values
    assert labels.unique().tolist() == [0, 1, 2, 255]  # 255 in the cutout
    both = (labels != 255) & (direct != 255)
    assert both.float().mean() > 0.5
    # Two nearest-neighbor steps may differ from one at the borders of the stripes.
    assert (labels == direct)[both].float().mean() > 0.95


def test_gradients_reach_the_student_alone() -> None:
    method = build("distillation")
    for loss in method.losses(*batches("distillation")):
        method.zero_grad()
        loss.backward()
        assert {name.split(".")[0] for name in gradients(method)} == {"student"}
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_the_teacher_stays_in_evaluation_mode() -> None:
    method = Distillation(network(), network(seed=1).train())
    assert not method.train().teacher.training
    assert method.student.training
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    method(*batches("distillation"))
    method.update()
    torch.testing.assert_close(dict(method.teacher.state_dict()), before, rtol=0, atol=0)


def test_another_loss_can_be_used() -> None:
    method = build("distillation", loss=lambda student, teacher: (student - teacher).abs().mean())
    list(method.losses(*batches("distillation")))
    assert method.metrics["loss_distillation"] > 0


@pytest.mark.parametrize(
    ("labels", "error", "named"),
    [
        (torch.empty(2, 0), ValueError, r"\(2, 0\)"),
        (torch.rand(2, K, 8, 16), TypeError, r"float32.*\(2, 3, 8, 16\)"),
        (torch.zeros(3, 64, 128, dtype=torch.uint8), ValueError, r"\(3, 64, 128\)"),
        (torch.zeros(2, 1, 64, 128, dtype=torch.uint8), ValueError, r"\(2, 1, 64, 128\)"),
    ],
)
def test_wrong_pseudo_labels_are_named(labels: torch.Tensor, error: type[Exception], named: str) -> None:
    source, target = batches("distillation")
    object.__setattr__(target, "pseudo_labels", labels)
    with pytest.raises(error, match=rf"pseudo_labels.*hard.*{named}"):
        build("distillation")(source, target)
