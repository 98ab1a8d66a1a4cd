"""CPSL in one online stage: a mean teacher, and features that are contrasted with the prototypes."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cpsl._internal.distributed import no_sync
from cpsl.clustering import ClassBalancedPrototypeClustering, ClusteringOutput
from cpsl.contrast import prototype_contrast
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.geometry import resize_labels, warp
from cpsl.limits import ShareLimits
from cpsl.losses import cross_entropy
from cpsl.methods.step import (
    Method,
    Supervision,
    check_clustering,
    check_pair,
    check_pending,
    check_student,
    to_float,
)
from cpsl.mixing import Mixed, classmix, cutmix, mask_patches
from cpsl.models.ema import ExponentialMovingAverage
from cpsl.models.network import resize, segment
from cpsl.prototypes import RunningClassMeans, prototype_similarity
from cpsl.rectification import agreeing_labels
from cpsl.thresholds import DiceThresholds


class OnlineSelfLabeling(Method):
    """Trains a student on pseudo labels that its moving average predicts, in one stage.

    No pass before training is needed: the teacher labels each batch (Tarvainen and Valpola, 2017).
    `DiceThresholds` balance the classes of the labels, `ShareLimits` keep them from growing without bounds.
    With a clustering, the student learns features that are similar to the prototype of their class, in both
    domains; in the target where optimal transport assigns the pixel to the class of its label (CPSL). The
    prototypes are initialized with the class means of the source features.
    Half of the classes of a source image are pasted into each target image (DACS, Tranheden et al., 2021). As
    in DAFormer (Hoyer et al., 2022), the target loss is weighted by the share of pixels with certain labels.
    As in MIC (Hoyer et al., 2023), the student also labels target images with masked patches.

    Args:
        student: Implements `cpsl.models.SegmentationNetwork`; may be wrapped in DistributedDataParallel.
        teacher: Moving average of the student.
        clustering: Prototypes, bank, class distribution, and the temperature of the contrast. Its prototypes
            follow labels or assignments, not a gradient. None trains a mean teacher without CPSL.
        thresholds: Balances the classes of the pseudo labels; None labels with the most probable class.
        limits: Keeps the classes from growing without bounds; None lets them.
        mixing: What is pasted from the source: half of the classes ("class"), a rectangle of half of the
            area ("cut") where the scenes of the domains do not align, or nothing ("none").
        initial_steps: Steps in which the prototypes and the class distribution are those of the source.
        confidence_threshold: Probability from which the teacher counts as confident, 0...1.
        contrast_weight: Weight of the contrast of features and prototypes. With 0, clusters change nothing.
        masked_weight: Weight of the loss on masked images; 0 skips its pass.
        masked_share: Share of the patches that are masked, 0...1.
        masked_patch: Side of these patches in pixels.
        momentum: Momentum of the moving averages, teacher and prototypes.

    Raises:
        TypeError: A module has no such interface.
        ValueError: `mixing` is unknown; the modules do not fit each other; the prototypes follow a gradient.

    Example:
        >>> from cpsl.models import DeepLabV2
        >>> from cpsl.testing import training_batches
        >>> source, target = training_batches(num_classes=3)
        >>> student = DeepLabV2(3, "resnet_tiny", feature_dim=8)
        >>> clustering = ClassBalancedPrototypeClustering(
        ...     3, 8, temperature=0.1, sampling="stratified", prototype_update="labels"
        ... )
        >>> method = OnlineSelfLabeling(
        ...     student, ExponentialMovingAverage(student), clustering, DiceThresholds(3)
        ... )
        >>> optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
        >>> for loss in method.losses(source, target):
        ...     loss.backward()
        >>> optimizer.step()
        >>> method.update()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: ExponentialMovingAverage[Any],
        clustering: ClassBalancedPrototypeClustering | None = None,
        thresholds: DiceThresholds | None = None,
        limits: ShareLimits | None = None,
        *,
        mixing: Literal["class", "cut", "none"] = "class",
        initial_steps: int = 100,
        confidence_threshold: float = 0.968,
        contrast_weight: float = 0.3,
        masked_weight: float = 1.0,
        masked_share: float = 0.7,
        masked_patch: int = 64,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        if mixing not in ("class", "cut", "none"):
            raise ValueError(f'mixing must be "class", "cut" or "none", got {mixing!r}')
        self.student = student
        self.align_corners = check_student(student).align_corners
        check_pair(student, teacher, average=True)
        if clustering is not None:
            check_clustering(student, clustering)
            if clustering.prototype_update == "gradient":
                raise ValueError(
                    'the prototypes would never move: build the clustering with prototype_update="labels"'
                )
        self.teacher = teacher
        self.clustering = clustering
        self.thresholds = thresholds
        self.limits = limits
        self.mixing = mixing
        self.confidence_threshold = confidence_threshold
        self.contrast_weight = contrast_weight
        self.masked_weight = masked_weight
        self.masked_share = masked_share
        self.masked_patch = masked_patch
        self.momentum = momentum
        self.initial = None
        if clustering is not None:
            self.initial = InitialPrototypes(clustering, initial_steps, self.align_corners)
        self._pending: list[_Pending] = []

    def losses(
        self, source: SourceBatch, target: TargetBatch, *, last_micro_batch: bool = True
    ) -> Iterator[Tensor]:
        """Yields the losses; see `Method.losses`. No pseudo labels are needed."""
        trains = torch.is_grad_enabled()

        # 1. Cross-entropy on the source. At first the prototypes are the class means of its features.
        with no_sync(self.student):
            logits, features = segment(self.student, to_float(source.image))
        loss_source = cross_entropy(resize(logits, source.label.shape[1:], self.align_corners), source.label)
        self.metrics = {"loss_source": loss_source.detach()}
        if self.clustering is not None and self.initial is not None and trains:
            self.initial(self.clustering, features, source.label)

        # 2. Contrast: features are similar to the prototype of their class, and unlike the others.
        if self.clustering is not None:
            contrast_source = self._contrast(self.clustering, features, source.label)
            loss_source = loss_source + self.contrast_weight * contrast_source
        yield loss_source

        with torch.no_grad():
            # 3. The teacher labels the weak view. Thresholds and limits change the labels of some pixels.
            logits, features = segment(self.teacher, to_float(target.weak))
            teacher = soft = logits.float().softmax(dim=1)
            confident = (teacher.amax(dim=1) > self.confidence_threshold).float().mean()
            if self.thresholds is not None:
                soft = self.thresholds(soft)
            if self.limits is not None:
                soft = self.limits(soft)
            weak_labels = _most_probable(soft)

            # 4. The labels follow the strong view, and a part of a source image is pasted.
            strong = to_float(target.strong)
            size = strong.shape[2:]
            labels = _most_probable(self._to_strong_view(soft, target))
            mixed = self._mix(target.strong, labels, source)
            weights = torch.where(mixed.pasted, 1.0, confident)
            self.supervision = Supervision(mixed.image, mixed.labels)
            if self.clustering is not None:
                # The labels of the target are reliable where the clusters agree with them.
                assigned = self._to_strong_view(self.clustering.assign(features), target)
                reliable = torch.where(mixed.pasted, mixed.labels, agreeing_labels(labels, assigned))

        # 5. Cross-entropy and contrast of the student on the mixed image.
        more = self.masked_weight > 0
        with no_sync(self.student, when=more or not last_micro_batch):
            logits, mixed_features = segment(self.student, to_float(mixed.image))
        logits = resize(logits, size, self.align_corners)
        loss_target = cross_entropy(logits, mixed.labels, weights=weights)
        agreement = _agreement(logits, mixed)
        self.metrics |= {"loss_target": loss_target.detach(), "confident": confident, "agreement": agreement}
        if self.clustering is not None:
            contrast_target = self._contrast(self.clustering, mixed_features, reliable, weights)
            self.metrics |= {"loss_contrast": (contrast_source + contrast_target).detach()}
            loss_target = loss_target + self.contrast_weight * contrast_target
        yield loss_target

        # 6. Masked consistency: the context has to explain the masked patches.
        if more:
            masked = mask_patches(strong, self.masked_patch, self.masked_share)
            with no_sync(self.student, when=not last_micro_batch):
                logits = resize(segment(self.student, masked).logits, size, self.align_corners)
            loss_masked = confident * cross_entropy(logits, labels)
            self.metrics |= {"loss_masked": loss_masked.detach()}
            yield self.masked_weight * loss_masked

        # 7. Pixels of the teacher are sampled: they will enter the memory bank and move the prototypes.
        clusters: ClusteringOutput | None = None
        if self.clustering is not None:
            with torch.no_grad():
                clusters = self.clustering(features, weak_labels, soft_labels=teacher)

        # Only now is it known that the step was completed.
        if trains:
            self._pending.append(_Pending(teacher, weak_labels, clusters))

    def update(self, applied: Tensor | None = None) -> None:
        """Updates teacher, prototypes, memory bank, class distribution, thresholds and limits.

        See `Method.update`. In the first `initial_steps`, prototypes and class distribution are set by
        `losses` instead. A step that is not applied counts as one of these.

        Raises:
            RuntimeError: No losses were computed since the last update.
        """
        check_pending(self._pending)
        self.teacher.update(self.student, self.momentum, applied)
        teacher, labels, clusters = zip(*self._pending, strict=True)
        if self.clustering is not None:
            self.clustering.update(clusters, self.momentum, applied)
        if self.thresholds is not None:
            self.thresholds.update(torch.cat(teacher), applied)
        if self.limits is not None:
            self.limits.update(torch.cat(teacher), torch.cat(labels), applied=applied)
        if self.initial is not None:
            self.initial.steps += 1
        self._pending = []

    def _to_strong_view(self, probabilities: Tensor, target: TargetBatch) -> Tensor:
        """Warps a map (B, K, h, w) of the weak view to the strong one, (B, K, H, W); 0 outside the image."""
        warped, valid = warp(
            probabilities, target.weak_view, target.strong_view, target.strong.shape[2:],
            align_corners=self.align_corners, output_align_corners=False,
        )  # fmt: skip
        return warped.masked_fill(~valid[:, None], 0)

    def _contrast(
        self,
        clustering: ClassBalancedPrototypeClustering,
        features: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Returns the contrast of features and prototypes; weights are interpolated to the features' grid."""
        grid = features.shape[2:]
        if weights is not None:
            weights = resize(weights[:, None], grid, self.align_corners)[:, 0]
        return prototype_contrast(
            prototype_similarity(features, clustering.prototypes),
            resize_labels(labels, grid, self.align_corners),
            weights,
            temperature=clustering.temperature,
        )

    def _mix(self, image: Tensor, labels: Tensor, source: SourceBatch) -> Mixed:
        if self.mixing == "none":
            return Mixed(image, labels, torch.zeros_like(labels, dtype=torch.bool))
        if self.mixing == "cut":
            return cutmix(image, labels, source.image, source.label, probability=1.0)
        return classmix(image, labels, source.image, source.label)


def _most_probable(probabilities: Tensor) -> Tensor:
    """Returns labels (B, h, w) of a map (B, K, h, w); 255 for pixels without a finite prediction, all 0."""
    return probabilities.argmax(dim=1).masked_fill(~(probabilities.sum(dim=1) > 0.5), 255)


def _agreement(logits: Tensor, mixed: Mixed) -> Tensor:
    """Returns the share of the target's pixels that the student gives their pseudo label; 0 without any."""
    counted = ~mixed.pasted & (mixed.labels != 255)
    return (counted & (logits.argmax(dim=1) == mixed.labels)).sum() / counted.sum().clamp_min(1)


class _Pending(NamedTuple):
    """What `update` needs of a micro-batch."""

    teacher: Tensor
    labels: Tensor
    clusters: ClusteringOutput | None


class InitialPrototypes(nn.Module):
    """Initializes a clustering with the class means of the source, in the first steps.

    Args:
        clustering: The clustering, for its numbers of classes and features, and its device.
        initial_steps: Number of steps; later ones change nothing.
        align_corners: Corner-aligned or half-pixel grid of the features.

    Attributes:
        steps: Number of steps so far, part of the state dictionary.
    """

    def __init__(
        self, clustering: ClassBalancedPrototypeClustering, initial_steps: int, align_corners: bool
    ) -> None:
        super().__init__()
        self.initial_steps = initial_steps
        self.steps = 0
        means = RunningClassMeans(
            clustering.num_classes,
            clustering.feature_dim,
            group=clustering.group,
            align_corners=align_corners,
        )
        self.means = means.to(clustering.prototypes.device)

    def forward(self, clustering: ClassBalancedPrototypeClustering, features: Tensor, labels: Tensor) -> None:
        """Sets the prototypes and the class distribution to those of the source so far."""
        if self.steps < self.initial_steps:
            self.means.update(features, labels)
            clustering.initialize(*self.means.compute())

    def get_extra_state(self) -> int:
        """Returns the number of steps."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Restores the number of steps."""
        self.steps = state
