"""Contrastive losses: features are similar to those of their class, and unlike those of others.

As in `cpsl.losses`, they are scalars in float32 (float64 for float64 inputs), and zero if no pixel is valid.
Rows of a memory bank that are not finite are not counted.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_labels_of, check_shape
from cpsl._internal.precision import at_least_float32
from cpsl.alignment import class_counts


def pixel_contrast(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    bank_valid: Tensor | None = None,
    *,
    temperature: float = 0.08,
    ignore_index: int = 255,
) -> Tensor:
    r"""Computes the contrastive loss of pixels against a memory bank (Wang et al., 2021).

        s_ij = x_i·b_j / τ
        mean_i 1/|P_i| Σ_{j in P_i} - log( exp s_ij / (exp s_ij + Σ_{n in N_i} exp s_in) )

    The positives P_i are the pixels of the bank that have the class of pixel i; the negatives N_i are those
    of other classes. Pixels that are ignored or have no positive are not counted.

    Args:
        features: (N, D) of any length.
        labels: (N,) integer.
        bank: (M, D) of any length; gets no gradient, and rows that are not finite do not count.
        bank_labels: (M,) integer.
        bank_valid: (M,) bool, rows of the bank that hold a pixel; None is all.
        temperature: τ.
        ignore_index: Label of pixels that are ignored.

    Raises:
        ValueError: The shapes do not match.

    Example:
        >>> x = torch.eye(2)
        >>> near = pixel_contrast(x, torch.tensor([0, 1]), x, torch.tensor([0, 1]))
        >>> far = pixel_contrast(x, torch.tensor([0, 1]), x, torch.tensor([1, 0]))
        >>> bool(near < far)
        True
    """
    check_shape("features", features, "N", "D")
    check_shape("bank", bank, "M", features.shape[1])
    check_shape("labels", labels, len(features))
    check_shape("bank_labels", bank_labels, len(bank))
    labels, bank_labels = labels.long(), bank_labels.long()
    usable = bank_labels != ignore_index
    if bank_valid is not None:
        usable = usable & bank_valid
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(at_least_float32(features), dim=1)
        units = F.normalize(at_least_float32(bank.detach()), dim=1)
        finite = units.sum(dim=1).isfinite()
        usable = usable & finite
        # Before the product: 0 · NaN is NaN.
        scores = x @ units.masked_fill(~finite[:, None], 0).t() / temperature
    same = labels[:, None] == bank_labels[None]
    positive = same & usable
    # A finite value, because the gradient of logsumexp is NaN if all inputs are -inf.
    negatives = scores.masked_fill(same | ~usable, -1e30).logsumexp(dim=1, keepdim=True)
    each = F.softplus(negatives - scores)
    count = positive.sum(dim=1)
    counts = (labels != ignore_index) & (count > 0)
    mean = each.masked_fill(~positive, 0).sum(dim=1) / count.clamp_min(1)
    return mean.masked_fill(~counts, 0).sum() / counts.sum().clamp_min(1)


def prototype_contrast(
    similarity: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    temperature: float = 0.1,
    ignore_index: int = 255,
) -> Tensor:
    r"""Computes the contrast of pixels with prototypes: similar to that of their class, unlike the others.

        Σ_n v_n w_n (- log softmax_k( cos(x_n, c_k) / τ )[y_n]) / Σ_n v_n,   v_n = 1 / sqrt(N_k) of k = y_n

    N_k is the number of pixels with label k, so that classes count by the square root of their frequency.
    With prototypes that both domains share, the features of a class move to the same place in both
    (compare SePiCo, Xie et al., 2023).

    Args:
        similarity: (B, K, h, w) `prototype_similarity` of the features and the prototypes, in -1...1.
        labels: (B, h, w) integer.
        weights: (B, h, w) weight w of each pixel, as in `cross_entropy`; None is 1.
        temperature: τ.
        ignore_index: Label of pixels that are ignored.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The shapes do not match, `ignore_index` is a class, or (on the CPU) a label is neither a
            class nor ignored.

    Example:
        >>> from cpsl import prototype_similarity
        >>> x, labels = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1), torch.tensor([[[0]]])
        >>> near, far = prototype_similarity(x, torch.eye(2)), prototype_similarity(x, -torch.eye(2))
        >>> bool(prototype_contrast(near, labels) < prototype_contrast(far, labels))
        True
    """
    check_labels_of(similarity, labels, ignore_index)
    labels = labels.long()
    ignored = labels == ignore_index
    # Converted before the division, which amplifies the rounding of half precision.
    scores = at_least_float32(similarity) / temperature
    losses = F.cross_entropy(scores, labels, ignore_index=ignore_index, reduction="none")
    counts = class_counts(labels, similarity.shape[1], ignore_index)
    balance = counts.clamp_min(1).to(losses).rsqrt()[labels.masked_fill(ignored, 0)].masked_fill(ignored, 0)
    if weights is not None:
        check_shape("weights", weights, *labels.shape)
        # Before the product: 0 · NaN is NaN.
        losses = losses * weights.masked_fill(ignored, 0)
    return (losses * balance).sum() / balance.sum().clamp_min(1)


class PixelContrastLoss(nn.Module):
    """`pixel_contrast` as a module."""

    def __init__(self, temperature: float = 0.08, ignore_index: int = 255) -> None:
        super().__init__()
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        bank: Tensor,
        bank_labels: Tensor,
        bank_valid: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss; see `pixel_contrast`."""
        return pixel_contrast(
            features,
            labels,
            bank,
            bank_labels,
            bank_valid,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )

    if TYPE_CHECKING:
        __call__ = forward


class PrototypeContrastLoss(nn.Module):
    """`prototype_contrast` as a module."""

    def __init__(self, temperature: float = 0.1, ignore_index: int = 255) -> None:
        super().__init__()
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(self, similarity: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the loss; see `prototype_contrast`."""
        return prototype_contrast(
            similarity, labels, weights, temperature=self.temperature, ignore_index=self.ignore_index
        )

    if TYPE_CHECKING:
        __call__ = forward
