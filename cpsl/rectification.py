"""Correction of stored pseudo labels by the prototypes."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl.checking import check_probabilities
from cpsl.prototypes import prototype_similarity


class RectifiedLabels(NamedTuple):
    """Pseudo labels after rectification.

    Attributes:
        labels: (B, H, W) int64 class indices; `ignore_index` where nothing is known or confident.
        confidence: (B, H, W) float32, the largest probability, 0...1.
        probabilities: (B, K, H, W) float32, the normalised product; zeros where nothing is known.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor


class PseudoLabelRectifier(nn.Module):
    r"""Weighs soft pseudo labels by the pixels' similarity to the class prototypes.

        w_k = softmax_k( cos(f, c_k) / τ )
        label = argmax_k w_k P_k,   confidence = max_k w_k P_k / Σ_j w_j P_j

    The soft labels P were stored before training; the weights w come from the network as it is now and
    correct them as it learns (equation 8 of CPSL, after ProDA). A pixel with P = 0 for every class, as
    `geometry.carry` gives where a view shows nothing, is ignored.

    Args:
        temperature: τ > 0.
        threshold: Pixels of lower confidence are ignored, 0...1.
        ignore_index: Label of ignored pixels.
        interpolate: What is resized where the features' grid is not that of the soft labels: the
            cosines ("similarity", K channels) or the features before they are normalised ("features",
            D channels; what the authors' release does). Both bilinear with aligned corners.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        The stored label says class 0, hesitantly; the feature lies on the prototype of class 1:

        >>> rectifier = PseudoLabelRectifier()
        >>> soft = torch.tensor([0.6, 0.4]).reshape(1, 2, 1, 1)
        >>> feature = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
        >>> rectifier(soft, feature, torch.eye(2)).labels
        tensor([[[1]]])
    """

    def __init__(
        self,
        temperature: float = 0.08,
        threshold: float = 0.0,
        ignore_index: int = 255,
        interpolate: Literal["similarity", "features"] = "similarity",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0...1, got {threshold}")
        if interpolate not in ("similarity", "features"):
            raise ValueError(f'interpolate must be "similarity" or "features", got {interpolate!r}')
        self.temperature = temperature
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.interpolate = interpolate

    @torch.no_grad()
    def forward(self, soft_labels: Tensor, features: Tensor, prototypes: Tensor) -> RectifiedLabels:
        """Rectifies a batch.

        Args:
            soft_labels: (B, K, H, W) probabilities P.
            features: (B, D, h, w) of the same view, at any resolution.
            prototypes: (K, D).

        Returns:
            Labels, confidence and probabilities at H x W.

        Raises:
            ValueError: The shapes do not fit, or (on the CPU) the soft labels are no probabilities.
        """
        if soft_labels.ndim != 4 or features.ndim != 4:
            raise ValueError(
                "soft labels and features must be (B, K, H, W) and (B, D, h, w), got shapes "
                f"{tuple(soft_labels.shape)} and {tuple(features.shape)}"
            )
        if soft_labels.shape[:2] != (features.shape[0], prototypes.shape[0]):
            raise ValueError(
                f"{features.shape[0]} images and {prototypes.shape[0]} prototypes need soft labels "
                f"of as many, got shape {tuple(soft_labels.shape)}"
            )
        check_probabilities(soft_labels)
        return self.rectify(soft_labels, self._similarity(features, prototypes, soft_labels.shape))

    @torch.no_grad()
    def rectify(self, soft_labels: Tensor, similarity: Tensor) -> RectifiedLabels:
        """Rectifies with cosines that are already at hand.

        Args:
            soft_labels: (B, K, H, W) probabilities P.
            similarity: (B, K, H, W) cosines in -1...1 on the same grid.

        Returns:
            Labels, confidence and probabilities.

        Raises:
            ValueError: The shapes differ.
        """
        if soft_labels.shape != similarity.shape:
            raise ValueError(
                f"soft labels {tuple(soft_labels.shape)} and similarities {tuple(similarity.shape)} "
                "must have one shape"
            )
        weights = (similarity.float() / self.temperature).softmax(dim=1)
        product = weights * soft_labels.float()
        mass = product.sum(dim=1, keepdim=True)
        probabilities = product / mass.masked_fill(~(mass > 0), 1)
        confidence, labels = probabilities.max(dim=1)
        # A comparison with NaN is false: what cannot be compared is ignored as well.
        known = (confidence >= self.threshold) & (mass[:, 0] > 0)
        labels = labels.masked_fill(~known, self.ignore_index)
        return RectifiedLabels(labels, confidence, probabilities)

    def _similarity(self, features: Tensor, prototypes: Tensor, shape: torch.Size) -> Tensor:
        size = [shape[2], shape[3]]
        if list(features.shape[2:]) == size:
            return prototype_similarity(features, prototypes)
        if self.interpolate == "features":
            resized = F.interpolate(features.float(), size, mode="bilinear", align_corners=True)
            return prototype_similarity(resized, prototypes)
        cosines = prototype_similarity(features, prototypes)
        return F.interpolate(cosines, size, mode="bilinear", align_corners=True)
