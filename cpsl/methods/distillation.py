"""Stages 2 and 3: knowledge distillation from the network of the previous stage."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cpsl._internal.distributed import no_sync
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.geometry import warp
from cpsl.losses import cross_entropy, distillation
from cpsl.methods.step import Method, Supervision, check_pseudo_labels, resize, segment


class Distillation(Method):
    """Trains a student on the source, on the teacher's confident labels and on its probabilities.

    The target batches have the teacher's labels of the whole image (`TargetBatch.pseudo_labels`).

    Args:
        student: Returns logits and features; may be wrapped in DistributedDataParallel.
        teacher: A trained network; it is frozen and stays in evaluation mode.
        distillation_weight: Weight of the distillation loss.
        loss: Distillation loss of the logits of student and teacher, KL(teacher ‖ student) by default.

    Example:
        >>> from cpsl.models import DeepLabV2
        >>> from cpsl.testing import training_batches
        >>> source, target = training_batches(num_classes=3, soft=False)
        >>> student, teacher = (DeepLabV2(3, "resnet_tiny", feature_dim=8) for _ in range(2))
        >>> method = Distillation(student, teacher)
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
        >>> for loss in method.losses(source, target):
        ...     loss.backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        distillation_weight: float = 1.0,
        loss: Callable[[Tensor, Tensor], Tensor] = distillation,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.distillation_weight = distillation_weight
        self.loss = loss

    def train(self, mode: bool = True) -> "Distillation":
        """Sets the mode of the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(
        self, source: SourceBatch, target: TargetBatch, *, last_micro_batch: bool = True
    ) -> Iterator[Tensor]:
        """Yields the losses, given hard pseudo labels (B, H, W); see `Method.losses`."""
        check_pseudo_labels(target.pseudo_labels, "hard", len(target.weak), "H", "W")
        quarter = (target.weak.shape[2] // 4, target.weak.shape[3] // 4)

        # 1. Cross-entropy on the source.
        with no_sync(self.student):
            logits = segment(self.student, source.image).logits
        loss_source = cross_entropy(resize(logits, source.label.shape[1:]), source.label)
        yield loss_source

        # 2. Warp the labels into the strong view, via the weak view, from which it was rendered.
        in_crop, _ = warp(target.pseudo_labels, target.whole_view, target.weak_view)
        labels, _ = warp(in_crop, target.weak_view, target.strong_view, quarter, output_align_corners=True)

        # 3. Cross-entropy on the strong view, and KL divergence from the teacher on the same view.
        with torch.no_grad():
            logits_teacher = segment(self.teacher, target.strong).logits
        with no_sync(self.student, when=not last_micro_batch):
            logits = segment(self.student, target.strong).logits
        loss_target = cross_entropy(resize(logits, quarter), labels)
        loss_distillation = self.loss(logits, logits_teacher)
        self.supervision = Supervision(target.strong, labels)
        self.metrics = {
            "loss_source": loss_source.detach(),
            "loss_target": loss_target.detach(),
            "loss_distillation": loss_distillation.detach(),
        }
        yield loss_target + self.distillation_weight * loss_distillation
