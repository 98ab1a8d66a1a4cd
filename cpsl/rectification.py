"""Pseudo labels and clusters: corrected by the prototypes, or kept where both agree."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_ignore_index, check_labels, check_probabilities, check_shape
from cpsl.prototypes import prototype_similarity
from cpsl.sinkhorn import check_distribution

SMALLEST_RATIO = 1e-4
"""Smallest class frequency, relative to the most frequent class, that `prior_correction` distinguishes."""


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

    P contains the class distribution δ. Prototypes that were trained with the marginal δ contain it as well,
    so that the product w P counts it twice and suppresses rare classes. With `prior_correction` γ, the
    product is w_k P_k / δ_k^γ; γ = 1 counts δ once.

    Args:
        temperature: τ > 0.
        threshold: Pixels of lower confidence are ignored, 0...1.
        ignore_index: Label of ignored pixels.
        interpolate: Map that is resized bilinearly to the grid of the soft labels: the "similarity", or, as
            in the authors' code, the unnormalized "features".
        align_corners: Corner-aligned or half-pixel grid of the features, as in
            `torch.nn.functional.interpolate`.
        prior_correction: γ of the division by δ^γ, 0 or more; 0 is the paper's product.

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
        prior_correction: float = 0.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0...1, got {threshold}")
        if interpolate not in ("similarity", "features"):
            raise ValueError(f'interpolate must be "similarity" or "features", got {interpolate!r}')
        if not 0 <= prior_correction < math.inf:
            raise ValueError(f"prior_correction must be 0 or more, got {prior_correction}")
        self.temperature = temperature
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.interpolate = interpolate
        self.align_corners = bool(align_corners)
        self.prior_correction = prior_correction

    @torch.no_grad()
    def forward(
        self,
        soft_labels: Tensor,
        features: Tensor,
        prototypes: Tensor,
        class_distribution: Tensor | None = None,
    ) -> RectifiedLabels:
        """Rectifies soft labels by features.

        Args:
            soft_labels: (B, K, H, W) probabilities P.
            features: (B, D, h, w) of the same view, at any resolution.
            prototypes: (K, D).
            class_distribution: (K,) δ, for example `clustering.aligner.distribution`; required with
                `prior_correction`, otherwise not used.

        Raises:
            ValueError: The shapes do not match, the class distribution is missing, or (on the CPU) the soft
                labels are not probabilities or the class distribution is invalid.
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
        return self.rectify(soft_labels, similarity, class_distribution)

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def rectify(
        self, soft_labels: Tensor, similarity: Tensor, class_distribution: Tensor | None = None
    ) -> RectifiedLabels:
        """Rectifies soft labels by similarities, for example those of `prototype_similarity`.

        Args:
            soft_labels: (B, K, H, W) probabilities P.
            similarity: (B, K, H, W) cosines in -1...1 on the same grid.
            class_distribution: (K,) δ; required with `prior_correction`, otherwise not used.

        Raises:
            ValueError: The shapes differ, the class distribution is missing or (on the CPU) invalid, or
                `ignore_index` is a class.
        """
        check_ignore_index(self.ignore_index, soft_labels.shape[1])
        advice = "; call the rectifier with the features, which resizes them"
        check_shape("similarity", similarity, *soft_labels.shape, advice=advice)
        weights = (similarity.float() / self.temperature).softmax(dim=1)
        product = weights * soft_labels.float()
        if self.prior_correction:
            product = product * self._correction(class_distribution, soft_labels.shape[1])[:, None, None]
        mass = product.sum(dim=1, keepdim=True)
        known = (mass > 0) & (mass < torch.inf)  # false for NaN
        probabilities = product.div_(mass.masked_fill(~known, 1)).masked_fill_(~known, 0)
        confidence, labels = probabilities.max(dim=1)
        known = known[:, 0] & (confidence >= self.threshold)
        labels = labels.masked_fill(~known, self.ignore_index)
        return RectifiedLabels(labels, confidence, probabilities)

    def _correction(self, class_distribution: Tensor | None, num_classes: int) -> Tensor:
        """Returns δ^-γ, (K,), in units of that of the most frequent class."""
        if class_distribution is None:
            raise ValueError("prior_correction needs the argument `class_distribution`, (K,)")
        check_distribution(class_distribution, num_classes)
        relative = class_distribution.float() / class_distribution.max()
        # The floor bounds the factor of a class that was hardly ever predicted.
        return relative.clamp_min(SMALLEST_RATIO).pow(-self.prior_correction)

    def _resize(self, maps: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)


@torch.no_grad()
def agreeing_labels(labels: Tensor, assignments: Tensor, ignore_index: int = 255) -> Tensor:
    """Returns the labels of the pixels that are in the cluster of their class, and ignores the others.

    Args:
        labels: (B, h, w) integer class indices, such as pseudo labels, or `ignore_index`.
        assignments: (B, K, h, w) Q of `ClassBalancedPrototypeClustering.assign`, on the same grid.
        ignore_index: Label of pixels without a class, none of 0...K-1.

    Returns:
        (B, h, w) int64: the label where it is the class with the largest assignment, and `ignore_index`
        elsewhere, also where the assignments are 0 or not finite.

    Raises:
        ValueError: The shapes differ, or (on the CPU) a label is no class.
        TypeError: The labels are no integers.

    Example:
        >>> assignments = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.8, 0.4]]).reshape(1, 2, 1, 3)
        >>> agreeing_labels(torch.tensor([[[0, 1, 1]]]), assignments)
        tensor([[[  0,   1, 255]]])
    """
    check_shape("assignments", assignments, "B", "K", "h", "w")
    advice = "; resize the labels with cpsl.geometry.resize_labels, or the assignments bilinearly"
    check_shape("labels", labels, len(assignments), *assignments.shape[2:], advice=advice)
    check_labels(labels, assignments.shape[1], ignore_index)
    labels, mass = labels.long(), assignments.sum(dim=1)
    agree = (labels == assignments.argmax(dim=1)) & (mass > 0) & mass.isfinite()
    return labels.masked_fill(~agree, ignore_index)
