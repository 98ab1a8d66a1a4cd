"""The distillation loss of the authors' code."""

import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.checking import check_shape


def probability_distillation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Computes the authors' distillation loss, with the student's probabilities as log-probabilities.

        mean over pixels and classes of  t_k (log t_k - s_k)

    Unlike a divergence it is mostly negative, and its gradient vanishes for unlikely classes. The loss of
    the paper is `cpsl.distillation`.

    Args:
        student_logits: (B, K, h, w).
        teacher_logits: (B, K, h, w); they get no gradient.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> probability_distillation(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
        tensor(-0.5966)
    """
    check_shape("teacher_logits", teacher_logits, *student_logits.shape)
    student = student_logits.float().log_softmax(dim=1).exp()
    teacher = teacher_logits.detach().float().log_softmax(dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence.mean() / student.shape[1]
