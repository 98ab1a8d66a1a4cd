"""CPSL in one online stage: a mean teacher whose pseudo labels the prototypes rectify."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cpsl._internal.distributed import no_sync, unwrap
from cpsl.clustering import ClassBalancedPrototypeClustering, ClusteringOutput
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.geometry import warp
from cpsl.losses import cross_entropy
from cpsl.methods.step import Method, Supervision, check_clustering, check_pair, to_float
from cpsl.models.ema import ExponentialMovingAverage
from cpsl.models.network import check_network, resize, segment
from cpsl.prototypes import RunningClassMeans
from cpsl.rectification import PseudoLabelRectifier


class MeanTeacher(Method):
    """Trains a student on pseudo labels that its moving average predicts and CPSL rectifies.

    No pass before training is needed: the teacher labels each batch (Tarvainen and Valpola, 2017), and the
    prototypes are initialized with the class means of the source features. As in DAFormer (Hoyer et al.,
    2022), the target loss is weighted by the share of pixels on which the teacher is confident.

    Args:
        student: Implements `cpsl.models.SegmentationNetwork`; may be wrapped in DistributedDataParallel.
        teacher: Moving average of the student.
        clustering: Prototypes, bank, class distribution; may be wrapped. None trains a plain mean teacher.
        rectifier: Turns the teacher's probabilities and similarities into pseudo labels.
        initial_steps: Steps in which the prototypes and the class distribution are those of the source.
        confidence_threshold: Probability from which the teacher counts as confident, 0...1.
        self_label_weight: Weight of the clustering loss.
        momentum: Momentum of the moving averages, teacher and prototypes.

    Example:
        >>> from cpsl.models import DeepLabV2
        >>> from cpsl.testing import training_batches
        >>> source, target = training_batches(num_classes=3)
        >>> student = DeepLabV2(3, "resnet_tiny", feature_dim=8)
        >>> clustering = ClassBalancedPrototypeClustering(3, 8, bank_size=64, samples_per_image=16)
        >>> method = MeanTeacher(student, ExponentialMovingAverage(student), clustering)
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
        clustering: nn.Module | None = None,
        rectifier: PseudoLabelRectifier | None = None,
        *,
        initial_steps: int = 100,
        confidence_threshold: float = 0.968,
        self_label_weight: float = 0.1,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        self.student = student
        self.align_corners = check_network(student).align_corners
        check_pair(student, teacher, average=True)
        if clustering is not None:
            check_clustering(student, clustering)
        self.teacher = teacher
        self.clustering = clustering
        self.rectifier = rectifier or PseudoLabelRectifier()
        self.initial_steps = initial_steps
        self.confidence_threshold = confidence_threshold
        self.self_label_weight = self_label_weight
        self.momentum = momentum
        if clustering is not None:
            inner: ClassBalancedPrototypeClustering = unwrap(clustering)
            means = RunningClassMeans(inner.num_classes, inner.feature_dim, align_corners=self.align_corners)
            self.means = means.to(inner.prototypes.device)
        self._steps = 0
        self._clustered: list[ClusteringOutput] = []

    def losses(
        self, source: SourceBatch, target: TargetBatch, *, last_micro_batch: bool = True
    ) -> Iterator[Tensor]:
        """Yields the losses; see `Method.losses`. No pseudo labels are needed."""
        # 1. Cross-entropy on the source.
        with no_sync(self.student):
            logits, features = segment(self.student, to_float(source.image))
        loss_source = cross_entropy(resize(logits, source.label.shape[1:], self.align_corners), source.label)
        self.metrics = {"loss_source": loss_source.detach()}
        yield loss_source

        # 2. At first the prototypes are the class means of the source.
        if self.clustering is not None and self._steps < self.initial_steps:
            self.means.update(features, source.label)
            unwrap(self.clustering).initialize(self.means.prototypes, self.means.distribution)

        with torch.no_grad():
            # 3. The teacher labels the weak view, and the prototypes rectify the labels.
            logits, features = segment(self.teacher, to_float(target.weak))
            soft = logits.float().softmax(dim=1)
            confidence, labels = soft.max(dim=1)
            confident = (confidence > self.confidence_threshold).float().mean()
            if self.clustering is not None:
                prototypes = unwrap(self.clustering).ema_prototypes
                labels = self.rectifier(soft, features, prototypes).labels

        # 4. Cross-entropy of the student with these labels, on the strong view.
        with no_sync(self.student, when=not last_micro_batch):
            logits, _ = segment(self.student, to_float(target.strong))
        labels_in_strong, _ = warp(
            labels, target.weak_view, target.strong_view, logits.shape[2:], align_corners=self.align_corners
        )
        loss_target = confident * cross_entropy(logits, labels_in_strong)
        self.metrics |= {"loss_target": loss_target.detach(), "confident": confident}
        self.supervision = Supervision(target.strong, labels_in_strong)
        yield loss_target

        # 5. Self-labeling: the teacher's pixels are assigned to the prototypes and train them.
        if self.clustering is None:
            return
        with no_sync(self.clustering, when=not last_micro_batch):
            clusters: ClusteringOutput = self.clustering(features, labels)
        self._clustered.append(clusters)
        self.metrics |= {"loss_self_label": clusters.loss.detach(), "marginal_error": clusters.marginal_error}
        yield self.self_label_weight * clusters.loss

    def update(self, applied: Tensor | None = None) -> None:
        """Updates teacher, prototype average, memory bank and class distribution.

        See `Method.update`.

        Raises:
            RuntimeError: There is a clustering, but no losses were computed since the last update.
        """
        if self.clustering is not None and not self._clustered:
            raise RuntimeError("update needs losses: call it once per step, after the optimizer's step")
        self.teacher.update(self.student, self.momentum, applied)
        if self.clustering is not None:
            unwrap(self.clustering).update(self._clustered, self.momentum, applied)
        self._clustered = []
        self._steps += 1

    def get_extra_state(self) -> int:
        """Returns the number of steps, as part of the state dictionary."""
        return self._steps

    def set_extra_state(self, state: int) -> None:
        """Restores the number of steps."""
        self._steps = state
