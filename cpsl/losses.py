"""The losses of the method: tensors in, one scalar out.

All are means over the valid pixels, computed in float32 (or in float64 where it is given), and zero with zero
gradient where no pixel is valid.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl.checking import check_labels


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy that is zero, not NaN, where every pixel is ignored.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w) integer.
        ignore_index: Label of pixels that do not count.

    Returns:
        Scalar mean over valid pixels.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The shapes do not fit or (on the CPU) a label is neither a class nor ignored.

    Example:
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """
    _check_labels(logits, labels, ignore_index)
    labels = labels.long()
    total = F.cross_entropy(
        _at_least_float32(logits), labels, ignore_index=ignore_index, reduction="sum"
    )
    return total / (labels != ignore_index).sum().clamp_min(1)


def symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ce_weight: float = 0.1,
    rce_weight: float = 1.0,
    ignore_index: int = 255,
) -> Tensor:
    r"""Cross-entropy that tolerates wrong labels (Wang et al., 2019).

        α · CE + β · RCE,   RCE = - Σ_k max(p_k, 1e-7) · log max(y_k, 1e-4)

    The reverse term takes the prediction p as the target and the one-hot label y as the prediction; it
    is bounded, so a label that contradicts a confident prediction pulls less than in CE.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w) integer.
        ce_weight: α.
        rce_weight: β.
        ignore_index: Label of pixels that do not count.

    Returns:
        Scalar mean over valid pixels.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The shapes do not fit or (on the CPU) a label is neither a class nor ignored.

    Example:
        >>> logits = torch.tensor([10.0, 0.0]).reshape(1, 2, 1, 1)
        >>> right, wrong = (symmetric_cross_entropy(logits, torch.full((1, 1, 1), k)) for k in (0, 1))
        >>> bool(right < 0.01 < wrong < 11)
        True
    """
    _check_labels(logits, labels, ignore_index)
    valid = labels != ignore_index
    classes = labels.long().masked_fill(~valid, 0)
    p = _at_least_float32(logits).softmax(dim=1).clamp_min(1e-7)
    # log max(y_k, 1e-4) is 0 for the labelled class and log 1e-4 for all others.
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
    """KL divergence of the student's soft assignment to prototypes from the teacher's.

        mean over valid pixels and classes of  t_k (log t_k - log s_k),   t, s = softmax_k( cos / τ )

    Args:
        teacher_similarity: (B, K, h, w) cosines of the teacher's features and the prototypes; they get
            no gradient.
        student_similarity: (B, K, h, w) cosines of the student's.
        valid: (B, h, w) bool, where the views show the same; everywhere if None.
        temperature: τ.

    Returns:
        Scalar.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> cosines = torch.rand(1, 3, 2, 2)
        >>> prototype_consistency(cosines, cosines).item()
        0.0
    """
    # Cosines of half precision would lose what a division by a few hundredths makes large.
    student = _at_least_float32(student_similarity) / temperature
    teacher = _at_least_float32(teacher_similarity) / temperature
    return distillation(student, teacher, valid)


def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor | None = None,
    *,
    student_term: Literal["log_probabilities", "probabilities"] = "log_probabilities",
) -> Tensor:
    """KL divergence of the student's class probabilities from the teacher's (Hinton et al., 2015).

        mean over valid pixels and classes of  t_k (log t_k - log s_k)

    Args:
        student_logits: (B, K, h, w).
        teacher_logits: (B, K, h, w); they get no gradient.
        valid: (B, h, w) bool; everywhere if None.
        student_term: "probabilities" puts s_k in the place of log s_k, as the authors' release does: no
            divergence, mostly negative, with a gradient that ignores how unlikely a class is.

    Returns:
        Scalar.

    Raises:
        ValueError: The shapes differ, or `student_term` is another word.

    Example:
        >>> distillation(torch.zeros(1, 2, 1, 1), torch.tensor([9.0, 0.0]).reshape(1, 2, 1, 1))
        tensor(0.3460)
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if student_term not in ("log_probabilities", "probabilities"):
        raise ValueError(
            f'student_term must be "log_probabilities" or "probabilities", got {student_term!r}'
        )
    student = _at_least_float32(student_logits).log_softmax(dim=1)
    if student_term == "probabilities":
        student = student.exp()
    teacher = _at_least_float32(teacher_logits.detach()).log_softmax(dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    if valid is None:
        return divergence.mean() / student.shape[1]
    if valid.shape != divergence.shape:
        raise ValueError(f"valid must be {tuple(divergence.shape)}, got {tuple(valid.shape)}")
    total = divergence.masked_fill(~valid, 0).sum()
    return total / (valid.sum() * student.shape[1]).clamp_min(1)


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
    r"""Pulls pixels towards those of their class in a bank and away from the others (Wang et al., 2021).

        s_ij = x_i·b_j / τ
        mean_i 1/|P_i| Σ_{j in P_i} - log( exp s_ij / (exp s_ij + Σ_{n in N_i} exp s_in) )

    P_i are the bank's pixels of i's class, N_i those of other classes. Pixels that are ignored or have
    no positive do not count.

    Args:
        features: (N, D), normalised here.
        labels: (N,) integer.
        bank: (M, D), normalised here; gets no gradient.
        bank_labels: (M,) integer.
        bank_valid: (M,) bool, rows that hold a pixel; all if None.
        temperature: τ.
        ignore_index: Label of pixels that do not count.

    Returns:
        Scalar mean over the pixels that count.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> x = torch.eye(2)
        >>> near = pixel_contrast(x, torch.tensor([0, 1]), x, torch.tensor([0, 1]))
        >>> far = pixel_contrast(x, torch.tensor([0, 1]), x, torch.tensor([1, 0]))
        >>> bool(near < far)
        True
    """
    if features.ndim != 2 or bank.ndim != 2 or features.shape[1] != bank.shape[1]:
        raise ValueError(
            "features and bank must be (N, D) and (M, D), got "
            f"{tuple(features.shape)} and {tuple(bank.shape)}"
        )
    if labels.shape != features.shape[:1] or bank_labels.shape != bank.shape[:1]:
        raise ValueError(
            "labels must be (N,) and (M,) like features and bank, got "
            f"{tuple(labels.shape)} and {tuple(bank_labels.shape)}"
        )
    usable = bank_labels != ignore_index
    if bank_valid is not None:
        usable = usable & bank_valid
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(_at_least_float32(features), dim=1)
        scores = x @ F.normalize(_at_least_float32(bank.detach()), dim=1).t() / temperature
    same = labels[:, None] == bank_labels[None]
    positive = same & usable
    # A finite floor, since the gradient of logsumexp over nothing but -inf is NaN.
    negatives = scores.masked_fill(same | ~usable, -1e30).logsumexp(dim=1, keepdim=True)
    each = F.softplus(negatives - scores)
    count = positive.sum(dim=1)
    counts = (labels != ignore_index) & (count > 0)
    mean = each.masked_fill(~positive, 0).sum(dim=1) / count.clamp_min(1)
    return mean.masked_fill(~counts, 0).sum() / counts.sum().clamp_min(1)


def generator_loss(decision: Tensor) -> Tensor:
    """Least-squares loss of a segmentation network that wants its target output taken for the source's.

        mean (D(target) - 1)²      (Mao et al., 2017, as in the output-space adaptation of Tsai et al., 2018)

    Args:
        decision: The discriminator's output for the target, any shape; 1 means source, 0 target.

    Returns:
        Scalar.

    Example:
        >>> generator_loss(torch.zeros(1, 1, 2, 2))
        tensor(1.)
    """
    return (_at_least_float32(decision) - 1).square().mean()


def discriminator_loss(decision_source: Tensor, decision_target: Tensor) -> Tensor:
    """Least-squares loss of the discriminator: the sum of the two mean squared errors.

        mean (D(source) - 1)² + mean D(target)²

    Args:
        decision_source: The discriminator's output for the source, any shape.
        decision_target: The same for the target.

    Returns:
        Scalar.

    Example:
        >>> discriminator_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor(0.)
    """
    return generator_loss(decision_source) + _at_least_float32(decision_target).square().mean()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            "logits must be (B, K, h, w) and labels (B, h, w) on the same grid, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    check_labels(labels, logits.shape[1], ignore_index)
