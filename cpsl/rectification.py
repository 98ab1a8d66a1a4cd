"""Correction of stored pseudo labels by the class prototypes."""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_probabilities, check_shape
from cpsl.prototypes import prototype_similarity


class RectifiedLabels(NamedTuple):
    """Pseudo labels after rectification.

    Attributes:
        labels: (B, H, W) int64 class indices; `ignore_index` where unknown or below the threshold.
        confidence: (B, H, W) float32, the largest probability, 0...1.
        probabilities: (B, K, H, W) float32, the normalized product; zeros where unknown.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor


class PseudoLabelRectifier(nn.Module):
    r"""Weights soft pseudo labels by the pixels' similarity to the class prototypes.

        w_k = softmax_k( cos(f, c_k) / τ )
        label = argmax_k w_k P_k,   confidence = max_k w_k P_k / Σ_j w_j P_j

    The soft labels P are computed before training and stay fixed; the weights w follow the network and
    correct them as it learns (equation 8 of CPSL, after ProDA). A pixel with P = 0 for all classes, as
    `warp` returns outside of a view, is ignored, and so is one with a non-finite feature or probability.

    Args:
        temperature: τ > 0.
        threshold: Pixels of lower confidence are ignored, 0...1.
        ignore_index: Label of ignored pixels.
        interpolate: Map that is resized bilinearly to the grid of the soft labels: the "similarity", or, as
            in the authors' code, the unnormalized "features".
        align_corners: Corner-aligned or half-pixel grid of the features, as in
            `torch.nn.functional.interpolate`.

    Raises:
        ValueError: An argument is out of range.

    Example:
        The stored label slightly prefers class 0, but the feature equals the prototype of class 1:

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
        *,
        align_corners: bool = True,
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
        self.align_corners = bool(align_corners)

    @torch.no_grad()
    def forward(self, soft_labels: Tensor, features: Tensor, prototypes: Tensor) -> RectifiedLabels:
        """Rectifies soft labels by features.

        Args:
            soft_labels: (B, K, H, W) probabilities P.
            features: (B, D, h, w) of the same view, at any resolution.
            prototypes: (K, D).

        Raises:
            ValueError: The shapes do not match, or (on the CPU) the soft labels are not probabilities.
        """
        check_shape("features", features, "B", "D", "h", "w")
        check_shape("soft labels", soft_labels, len(features), len(prototypes), "H", "W")
        check_probabilities(soft_labels)
        size = soft_labels.shape[2:]
        resized = features.shape[2:] != size
        if resized and self.interpolate == "features":
            features = self._resize(features.float(), size)
        similarity = prototype_similarity(features, prototypes)
        if resized and self.interpolate == "similarity":
            similarity = self._resize(similarity, size)
        return self.rectify(soft_labels, similarity)

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def rectify(self, soft_labels: Tensor, similarity: Tensor) -> RectifiedLabels:
        """Rectifies soft labels by similarities, for example those of `prototype_similarity`.

        Args:
            soft_labels: (B, K, H, W) probabilities P.
            similarity: (B, K, H, W) cosines in -1...1 on the same grid.

        Raises:
            ValueError: The shapes differ.
        """
        advice = "; call the rectifier with the features, which resizes them"
        check_shape("similarity", similarity, *soft_labels.shape, advice=advice)
        weights = (similarity.float() / self.temperature).softmax(dim=1)
        product = weights * soft_labels.float()
        mass = product.sum(dim=1, keepdim=True)
        known = (mass > 0) & (mass < torch.inf)  # false for NaN
        probabilities = product.div_(mass.masked_fill(~known, 1)).masked_fill_(~known, 0)
        confidence, labels = probabilities.max(dim=1)
        known = known[:, 0] & (confidence >= self.threshold)
        labels = labels.masked_fill(~known, self.ignore_index)
        return RectifiedLabels(labels, confidence, probabilities)

    def _resize(self, maps: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)
