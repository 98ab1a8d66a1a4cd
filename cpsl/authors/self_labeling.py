"""The self-labeling step of the authors' code, where it differs from the paper."""

from typing import Any

from torch import Tensor

from cpsl._internal.distributed import unwrap
from cpsl.authors.clustering import AuthorsClustering, crop_labels
from cpsl.authors.geometry import warp_upsampled
from cpsl.clustering import ClusteringOutput
from cpsl.data.training import TargetBatch
from cpsl.methods.self_labeling import SelfLabeling
from cpsl.mixing import Mixed
from cpsl.prototypes import prototype_similarity
from cpsl.rectification import RectifiedLabels


class AuthorsSelfLabeling(SelfLabeling):
    """`SelfLabeling` with optional differences of the authors' code.

    Args:
        *parts: Student, teacher, `AuthorsClustering` and rectifier, as for `SelfLabeling`.
        rectify_features: Warps upsampled features instead of similarities to the crop (`warp_upsampled`).
        crop_bank_labels: Stores labels of other positions in the bank (`crop_labels`).
        contrast_weight: Weight of `AuthorsClustering.contrast` on images without CutMix.
        **options: Options of `SelfLabeling`.

    Raises:
        ValueError: `rectify_features` is asked for, but the maps of the network are half-pixel.

    Example:
        >>> from cpsl.models import DeepLabV2, ExponentialMovingAverage
        >>> from cpsl.testing import training_batches
        >>> source, target = training_batches(num_classes=3)
        >>> student = DeepLabV2(3, "resnet_tiny", feature_dim=8)
        >>> clustering = AuthorsClustering(3, 8, bank_size=64, samples_per_image=16, image_by_image=True)
        >>> teacher = ExponentialMovingAverage(student)
        >>> method = AuthorsSelfLabeling(student, teacher, clustering, rectify_features=True)
        >>> method(source, target).backward()
    """

    def __init__(
        self,
        *parts: Any,
        rectify_features: bool = False,
        crop_bank_labels: bool = False,
        contrast_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        if rectify_features and not self.align_corners:
            raise ValueError("rectify_features needs a corner-aligned network, such as DeepLabV2")
        self.rectify_features = rectify_features
        self.crop_bank_labels = crop_bank_labels
        self.contrast_weight = contrast_weight

    def _similarity_in_crop(
        self, whole: Any, similarity: Tensor, target: TargetBatch, size: tuple[int, int]
    ) -> Tensor:
        if not self.rectify_features:
            return super()._similarity_in_crop(whole, similarity, target, size)
        enlarged = (target.whole.shape[2] // 4, target.whole.shape[3] // 4)
        features = warp_upsampled(whole.features, target.whole_view, target.weak_view, size, enlarged)
        return prototype_similarity(features, self.prototypes)

    def _further_target_loss(self, weak: Any, mixed: Mixed, rectified: RectifiedLabels) -> Tensor | float:
        if not self.contrast_weight:
            return 0.0
        clustering: AuthorsClustering = unwrap(self.clustering)
        unmixed = rectified.labels.masked_fill(mixed.pasted.any(dim=(1, 2), keepdim=True), 255)
        return self.contrast_weight * clustering.contrast(weak.features, unmixed)

    def _cluster(
        self, whole: Any, rectified_whole: RectifiedLabels, rectified: RectifiedLabels
    ) -> ClusteringOutput:
        clustering: AuthorsClustering = unwrap(self.clustering)
        bank_labels = None
        if self.crop_bank_labels:
            size = whole.features.shape[2:]
            bank_labels = crop_labels(rectified.labels, size, clustering.samples_per_image)
        logits = whole.logits if clustering.logit_bank is not None else None
        clusters: ClusteringOutput = self.clustering(
            whole.features, rectified_whole.labels, logits=logits, bank_labels=bank_labels
        )
        return clusters
