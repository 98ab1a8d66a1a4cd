"""Stages 2 and 3: knowledge distillation from the network of the previous stage."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cpsl._internal.distributed import no_sync
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.geometry import View, warp
from cpsl.losses import cross_entropy, distillation
from cpsl.methods.step import Method, Supervision, check_pair, check_pseudo_labels, check_student, to_float
from cpsl.models.network import check_network, resize, segment


class Distillation(Method):
    """Trains a student on the source, on the teacher's confident labels and on its probabilities.

    The target batches have the teacher's labels of the whole image (`TargetBatch.pseudo_labels`).

    Args:
        student: Implements `cpsl.models.SegmentationNetwork`; may be wrapped in DistributedDataParallel.
        teacher: A trained network, maybe of another architecture; it is frozen and stays in evaluation mode.
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
        self.align_corners = check_student(student).align_corners
        check_pair(student, teacher)
        self.teacher_align_corners = check_network(teacher).align_corners
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
            logits = segment(self.student, to_float(source.image)).logits
        loss_source = cross_entropy(resize(logits, source.label.shape[1:], self.align_corners), source.label)
        yield loss_source

        # 2. Warp the labels into the strong view, via the weak view, from which it was rendered.
        in_crop, _ = warp(target.pseudo_labels, target.whole_view, target.weak_view)
        labels, _ = warp(
            in_crop, target.weak_view, target.strong_view, quarter, output_align_corners=self.align_corners
        )

        # 3. Cross-entropy on the strong view, and KL divergence from the teacher on the same view.
        with torch.no_grad():
            logits_teacher = segment(self.teacher, to_float(target.strong)).logits
        with no_sync(self.student, when=not last_micro_batch):
            logits = segment(self.student, to_float(target.strong)).logits
        loss_target = cross_entropy(resize(logits, quarter, self.align_corners), labels)
        loss_distillation = self.loss(logits, self._on_grid_of(logits, logits_teacher, target.strong))
        self.supervision = Supervision(target.strong, labels)
        self.metrics = {
            "loss_source": loss_source.detach(),
            "loss_target": loss_target.detach(),
            "loss_distillation": loss_distillation.detach(),
        }
        yield loss_target + self.distillation_weight * loss_distillation

    def _on_grid_of(self, logits: Tensor, logits_teacher: Tensor, images: Tensor) -> Tensor:
        """Resamples the teacher's logits, if a teacher of another architecture has another grid."""
        size, aligned = logits.shape[2:], self.teacher_align_corners
        if logits_teacher.shape[2:] == size and aligned == self.align_corners:
            return logits_teacher
        view = View.whole((images.shape[2], images.shape[3]), len(images), images.device)
        return warp(
            logits_teacher, view, view, size, align_corners=aligned, output_align_corners=self.align_corners
        ).values
