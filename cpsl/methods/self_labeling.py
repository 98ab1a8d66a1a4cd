"""Stage 1: class-balanced pixel-level self-labeling, the method of the paper."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cpsl._internal.distributed import no_sync, unwrap
from cpsl.clustering import ClassBalancedPrototypeClustering, ClusteringOutput
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.geometry import warp
from cpsl.losses import cross_entropy, prototype_consistency, symmetric_cross_entropy
from cpsl.methods.step import (
    Method,
    Supervision,
    check_clustering,
    check_pair,
    check_pending,
    check_pseudo_labels,
    check_student,
    detached,
    to_float,
)
from cpsl.mixing import Mixed, cutmix
from cpsl.models.ema import ExponentialMovingAverage
from cpsl.models.network import SegmentationOutput, resize, segment
from cpsl.prototypes import prototype_similarity
from cpsl.rectification import PseudoLabelRectifier, RectifiedLabels


class SelfLabeling(Method):
    """Trains a student with pseudo labels that online clustering rectifies (CPSL, section 3).

    The target batches have the soft labels of the warm-up network (`TargetBatch.pseudo_labels`), and the
    clustering is initialized with its prototypes and class distribution.

    Args:
        student: Implements `cpsl.models.SegmentationNetwork`; may be wrapped in DistributedDataParallel.
        teacher: Moving average of the student.
        clustering: Prototypes, memory bank and class distribution; may be wrapped.
        rectifier: Turns soft labels and similarities into pseudo labels.
        cutmix_probability: Probability that a rectangle of the source is pasted into a target image.
        ce_weight: α of the symmetric cross-entropy.
        rce_weight: β of the symmetric cross-entropy.
        self_label_weight: Weight of the clustering loss.
        consistency_weight: Weight of the consistency with the teacher.
        momentum: Momentum of the moving averages, teacher and prototypes.

    Example:
        >>> from cpsl.models import DeepLabV2
        >>> from cpsl.testing import training_batches
        >>> source, target = training_batches(num_classes=3)
        >>> student = DeepLabV2(3, "resnet_tiny", feature_dim=8)
        >>> clustering = ClassBalancedPrototypeClustering(3, 8, bank_size=64, samples_per_image=16)
        >>> method = SelfLabeling(student, ExponentialMovingAverage(student), clustering)
        >>> optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-4)
        >>> for loss in method.losses(source, target):
        ...     loss.backward()
        >>> optimizer.step()
        >>> method.update()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: ExponentialMovingAverage[Any],
        clustering: nn.Module,
        rectifier: PseudoLabelRectifier | None = None,
        *,
        cutmix_probability: float = 0.5,
        ce_weight: float = 0.1,
        rce_weight: float = 1.0,
        self_label_weight: float = 0.1,
        consistency_weight: float = 5.0,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        self.student = student
        self.align_corners = check_student(student).align_corners
        check_pair(student, teacher, average=True)
        check_clustering(student, clustering)
        self.teacher = teacher
        self.clustering = clustering
        self.rectifier = rectifier or PseudoLabelRectifier()
        if self.rectifier.ignore_index != 255:
            raise ValueError(f"the rectifier's ignore_index must be 255, got {self.rectifier.ignore_index}")
        self.cutmix_probability = cutmix_probability
        self.ce_weight = ce_weight
        self.rce_weight = rce_weight
        self.self_label_weight = self_label_weight
        self.consistency_weight = consistency_weight
        self.momentum = momentum
        self._pending: list[ClusteringOutput] = []

    @property
    def prototypes(self) -> Tensor:
        """(K, D) moving average of the prototypes, which rectifies the pseudo labels."""
        clustering: ClassBalancedPrototypeClustering = unwrap(self.clustering)
        return clustering.ema_prototypes

    def losses(
        self, source: SourceBatch, target: TargetBatch, *, last_micro_batch: bool = True
    ) -> Iterator[Tensor]:
        """Yields the losses, given soft pseudo labels (B, K, h, w); see `Method.losses`."""
        check_pseudo_labels(target.pseudo_labels, "soft", len(target.weak), len(self.prototypes), "h", "w")
        quarter = (target.weak.shape[2] // 4, target.weak.shape[3] // 4)

        # 1. Cross-entropy on the source.
        with no_sync(self.student):
            logits = segment(self.student, to_float(source.image)).logits
        loss_source = cross_entropy(resize(logits, source.label.shape[1:], self.align_corners), source.label)
        yield loss_source

        with torch.no_grad():
            # 2. The teacher segments the whole target image.
            whole = segment(self.teacher, to_float(target.whole))
            similarity = prototype_similarity(whole.features, self.prototypes)
            soft = resize(target.pseudo_labels, similarity.shape[2:], self.align_corners)

            distribution = unwrap(self.clustering).aligner.distribution

            # 3. The prototypes rectify the soft labels, on the whole image and in the view of the crop.
            rectified_whole = self.rectifier.rectify(soft, similarity, distribution)
            soft_in_crop, _ = warp(
                soft, target.whole_view, target.weak_view, quarter, align_corners=self.align_corners
            )
            similarity_in_crop = self._similarity_in_crop(whole, similarity, target, quarter)
            rectified = self.rectifier.rectify(soft_in_crop, similarity_in_crop, distribution)

            # 4. CutMix: a rectangle of the source and its labels is pasted into some images.
            mixed = cutmix(
                target.weak,
                rectified.labels,
                source.image,
                source.label,
                probability=self.cutmix_probability,
                align_corners=self.align_corners,
            )

        # 5. Consistency of the student's strong view with the teacher, relative to the prototypes.
        with no_sync(self.student):
            features = segment(self.student, to_float(target.strong)).features
        similarity_student = prototype_similarity(features, self.prototypes)
        similarity_teacher, valid = warp(
            similarity_in_crop,
            target.weak_view,
            target.strong_view,
            features.shape[2:],
            align_corners=self.align_corners,
        )
        loss_consistency = prototype_consistency(
            similarity_teacher, similarity_student, valid, temperature=self.rectifier.temperature
        )
        yield self.consistency_weight * loss_consistency

        # 6. Symmetric cross-entropy of the student on the weak view. It is the student's last pass,
        # because DDP averages gradients in a pass that uses all parameters.
        with no_sync(self.student, when=not last_micro_batch):
            weak = segment(self.student, to_float(mixed.image))
        loss_target = symmetric_cross_entropy(
            resize(weak.logits, quarter, self.align_corners),
            mixed.labels,
            ce_weight=self.ce_weight,
            rce_weight=self.rce_weight,
        )
        loss_target = loss_target + self._further_target_loss(weak, mixed, rectified)
        yield loss_target

        # 7. Self-labeling: the teacher's pixels are assigned to the prototypes and train them.
        with no_sync(self.clustering, when=not last_micro_batch):
            clusters = self._cluster(whole, rectified_whole, rectified)
        loss_self_label, clusters = clusters.loss, detached(clusters)
        self.supervision = Supervision(mixed.image, mixed.labels)
        self.metrics = {
            "loss_source": loss_source.detach(),
            "loss_target": loss_target.detach(),
            "loss_self_label": clusters.loss,
            "loss_consistency": loss_consistency.detach(),
            "confidence": rectified_whole.confidence.mean(),
            "marginal_error": clusters.marginal_error,
        }
        yield self.self_label_weight * loss_self_label

        # Only now is it known that the step was completed.
        if torch.is_grad_enabled():
            self._pending.append(clusters)

    def update(self, applied: Tensor | None = None) -> None:
        """Updates teacher, prototype average, memory bank and class distribution.

        This is step 8; see `Method.update`.

        Raises:
            RuntimeError: No losses were computed since the last update.
        """
        check_pending(self._pending)
        clustering: ClassBalancedPrototypeClustering = unwrap(self.clustering)
        self.teacher.update(self.student, self.momentum, applied)
        clustering.update(self._pending, self.momentum, applied)
        self._pending = []

    def _similarity_in_crop(
        self, whole: SegmentationOutput, similarity: Tensor, target: TargetBatch, size: tuple[int, int]
    ) -> Tensor:
        return warp(
            similarity, target.whole_view, target.weak_view, size, align_corners=self.align_corners
        ).values

    def _further_target_loss(
        self, weak: SegmentationOutput, mixed: Mixed, rectified: RectifiedLabels
    ) -> Tensor | float:
        return 0.0

    def _cluster(
        self, whole: SegmentationOutput, rectified_whole: RectifiedLabels, rectified: RectifiedLabels
    ) -> ClusteringOutput:
        clusters: ClusteringOutput = self.clustering(whole.features, rectified_whole.labels)
        return clusters
