"""The losses of the method, as functions and as modules that hold the hyper-parameters.

All losses are scalars: means over valid pixels, computed in float32 (in float64 for float64 inputs). If no
pixel is valid, loss and gradients are zero. Pixels at which a teacher is not finite are not valid; a
non-finite student makes the loss or its gradient non-finite, so that a trainer can detect it.
"""

import math
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_labels_of, check_shape
from cpsl._internal.precision import at_least_float32


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, weights: Tensor | None = None
) -> Tensor:
    """Computes the cross-entropy, which is zero instead of NaN if all pixels are ignored.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w) integer.
        ignore_index: Label of pixels that are ignored.
        weights: (B, h, w) weight of each pixel, for example the confidence of its pseudo label. The sum is
            divided by the number of pixels that are not ignored, not by the sum of the weights, so that
            doubtful labels have less influence than certain ones also if all of a batch are doubtful. Those
            of ignored pixels are not read.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The shapes do not match, `ignore_index` is a class, or (on the CPU) a label is neither a
            class nor ignored.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """
    check_labels_of(logits, labels, ignore_index)
    labels, logits = labels.long(), at_least_float32(logits)
    count = (labels != ignore_index).sum().clamp_min(1)
    if weights is None:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / count
    check_shape("weights", weights, *labels.shape)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    # Before the product: 0 · NaN is NaN.
    return (losses * weights.masked_fill(labels == ignore_index, 0)).sum() / count


def symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ce_weight: float = 0.1,
    rce_weight: float = 1.0,
    ignore_index: int = 255,
) -> Tensor:
    r"""Computes the symmetric cross-entropy, which is robust to wrong labels (Wang et al., 2019).

        α · CE + β · RCE,   RCE = - Σ_k max(p_k, 1e-7) · log max(y_k, 1e-4)

    The reverse term exchanges prediction p and one-hot label y. It is bounded, so that a label which
    contradicts a confident prediction has less influence than in CE.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w) integer.
        ce_weight: α.
        rce_weight: β.
        ignore_index: Label of pixels that are ignored.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The shapes do not match, `ignore_index` is a class, or (on the CPU) a label is neither a
            class nor ignored.

    Example:
        >>> import torch
        >>> logits = torch.tensor([10.0, 0.0]).reshape(1, 2, 1, 1)
        >>> right, wrong = (symmetric_cross_entropy(logits, torch.full((1, 1, 1), k)) for k in (0, 1))
        >>> bool(right < 0.01 < wrong < 11)
        True
    """
    check_labels_of(logits, labels, ignore_index)
    labels = labels.long()
    valid = labels != ignore_index
    classes = labels.masked_fill(~valid, 0)
    p = at_least_float32(logits).softmax(dim=1).clamp_min(1e-7)
    # log max(y_k, 1e-4) is 0 for the labeled class and log 1e-4 for all others.
    others = p.sum(dim=1) - p.gather(1, classes[:, None])[:, 0]
    reverse = -math.log(1e-4) * others.masked_fill(~valid, 0).sum() / valid.sum().clamp_min(1)
    return ce_weight * cross_entropy(logits, labels, ignore_index) + rce_weight * reverse


def prototype_consistency(
    teacher_similarity: Tensor,
    student_similarity: Tensor,
    valid: Tensor | None = None,
    *,
    temperature: float = 0.08,
) -> Tensor:
    """Computes the KL divergence between the soft prototype assignments of teacher and student.

        mean over valid pixels and classes of  t_k (log t_k - log s_k),   t, s = softmax_k( cos / τ )

    Args:
        teacher_similarity: (B, K, h, w) `prototype_similarity` of the teacher; gets no gradient, and pixels
            that are not finite do not count.
        student_similarity: (B, K, h, w) `prototype_similarity` of the student.
        valid: (B, h, w) bool, pixels that both views contain; None is all.
        temperature: τ.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> cosines = torch.rand(1, 3, 2, 2)
        >>> prototype_consistency(cosines, cosines).item()
        0.0
    """
    # Converted before the division, which amplifies the rounding of half precision.
    student = at_least_float32(student_similarity) / temperature
    teacher = at_least_float32(teacher_similarity) / temperature
    return distillation(student, teacher, valid)


def distillation(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Computes the KL divergence of class probabilities of teacher and student (Hinton et al., 2015).

        mean over valid pixels and classes of  t_k (log t_k - log s_k)

    Args:
        student_logits: (B, K, h, w).
        teacher_logits: (B, K, h, w); they get no gradient, and pixels that are not finite do not count.
        valid: (B, h, w) bool, pixels that are counted; None is all.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> distillation(torch.zeros(1, 2, 1, 1), torch.tensor([9.0, 0.0]).reshape(1, 2, 1, 1))
        tensor(0.3460)
    """
    check_shape("teacher", teacher_logits, *student_logits.shape)
    student = at_least_float32(student_logits).log_softmax(dim=1)
    teacher = at_least_float32(teacher_logits.detach()).log_softmax(dim=1)
    finite = teacher.sum(dim=1).isfinite()
    # Before the product with the gradient: 0 · NaN is NaN.
    teacher.masked_fill_(~finite[:, None], 0)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    if valid is not None:
        check_shape("valid", valid, *divergence.shape)
        finite = finite & valid
    total = divergence.masked_fill(~finite, 0).sum()
    return total / (finite.sum() * student.shape[1]).clamp_min(1)


def generator_loss(decision: Tensor) -> Tensor:
    """Computes the least-squares adversarial loss of the segmentation network (Mao et al., 2017).

        mean (D(target) - 1)²

    Used for output-space adaptation as in Tsai et al. (2018).

    Args:
        decision: Discriminator output for the target, any shape; 1 means source, 0 means target.

    Example:
        >>> import torch
        >>> generator_loss(torch.zeros(1, 1, 2, 2))
        tensor(1.)
    """
    return _mean_square_difference(decision, 1)


def discriminator_loss(decision_source: Tensor, decision_target: Tensor) -> Tensor:
    """Computes the least-squares loss of the discriminator (Mao et al., 2017).

        mean (D(source) - 1)² + mean D(target)²

    Args:
        decision_source: Discriminator output for the source, any shape.
        decision_target: Discriminator output for the target, any shape.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor(0.)
    """
    return _mean_square_difference(decision_source, 1) + _mean_square_difference(decision_target, 0)


class CrossEntropyLoss(nn.Module):
    """`cross_entropy` as a module."""

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the loss; see `cross_entropy`."""
        return cross_entropy(logits, labels, self.ignore_index, weights)

    if TYPE_CHECKING:
        __call__ = forward


class SymmetricCrossEntropyLoss(nn.Module):
    """`symmetric_cross_entropy` as a module; the arguments are those of the function, as in all modules here.

    Example:
        >>> import torch
        >>> loss = SymmetricCrossEntropyLoss(ce_weight=1.0, rce_weight=0.0)
        >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """

    def __init__(self, ce_weight: float = 0.1, rce_weight: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.rce_weight = rce_weight
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss; see `symmetric_cross_entropy`."""
        return symmetric_cross_entropy(
            logits,
            labels,
            ce_weight=self.ce_weight,
            rce_weight=self.rce_weight,
            ignore_index=self.ignore_index,
        )

    if TYPE_CHECKING:
        __call__ = forward


class PrototypeConsistencyLoss(nn.Module):
    """`prototype_consistency` as a module."""

    def __init__(self, temperature: float = 0.08) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, teacher_similarity: Tensor, student_similarity: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Returns the loss; see `prototype_consistency`."""
        return prototype_consistency(
            teacher_similarity, student_similarity, valid, temperature=self.temperature
        )

    if TYPE_CHECKING:
        __call__ = forward


class DistillationLoss(nn.Module):
    """`distillation` as a module."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None = None) -> Tensor:
        """Returns the loss; see `distillation`."""
        return distillation(student_logits, teacher_logits, valid)

    if TYPE_CHECKING:
        __call__ = forward


def _mean_square_difference(x: Tensor, wanted: float) -> Tensor:
    """Returns the mean of (x - wanted)², which is zero instead of NaN for an empty batch."""
    return (at_least_float32(x) - wanted).square().sum() / max(x.numel(), 1)
