"""Assignment of pixels to classes by optimal transport with a given class marginal."""

import torch
import torch.distributed as dist
from torch import Tensor

from cpsl.distributed import all_reduce_max, all_reduce_sum, is_distributed


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    class_distribution: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Assigns pixels softly to classes so that the classes' sizes follow a given distribution.

    Solves the entropy-regularised transport problem

        max_Q  Σ_nk Q_nk S_nk + ε H(Q)   with   Σ_k Q_nk = 1/N,   Σ_n Q_nk = r_k

    by Sinkhorn-Knopp: from Q = exp(S/ε), each iteration scales the columns to the marginal r and then
    the rows to equal mass (Cuturi, 2013; equation 4 of CPSL). The scalings are done on log Q, so that no
    score overflows. The result carries no gradient: assignments are targets.

    A row of -inf is no pixel at all: it takes no mass and returns zeros. So an array of fixed shape can
    hold a number of pixels that only the device knows.

    Args:
        scores: (N, K) similarity of each pixel to each class, any floating dtype.
        class_distribution: (K,) marginal r, non-negative; scaled to sum 1. Classes with 0 are assigned
            nothing. None is the uniform distribution.
        epsilon: Strength ε of the entropy term, in units of the scores; smaller is closer to one-hot.
        iterations: Number of column and row scalings.
        group: Ranks whose pixels are assigned together; None is the default group.

    Returns:
        (N, K) float32 assignments; each row sums to 1. Their column means are the marginal once the
        iterations have converged: see `marginal_error`.

    Raises:
        ValueError: The shapes do not fit, epsilon or iterations is not positive, or (on the CPU, where
            looking is free) the distribution has a negative or non-finite entry or no mass.
        TypeError: The scores are not floating point.

    Example:
        Both pixels look more like class 0, but half of the pixels have to be class 1:

        >>> scores = torch.tensor([[0.5, 0.1], [0.4, 0.3]])
        >>> sinkhorn(scores, iterations=50).round(decimals=2)
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]])
    """
    _check_arguments(scores, class_distribution, epsilon, iterations)
    num_classes = scores.shape[1]
    if class_distribution is None:
        marginal = scores.new_full((num_classes,), 1 / num_classes, dtype=torch.float32)
    else:
        marginal = class_distribution.to(scores.device, torch.float32)
    # A class of no mass is forbidden outright; its zero is never divided by.
    absent = marginal == 0
    log_marginal = (marginal / marginal.sum()).masked_fill(absent, 1).log()

    # Classes first: a sum over many pixels is then a sum over contiguous memory, several times faster.
    log_q = scores.t().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    # Subtracting the best score changes no result and keeps the digits of scores far from zero.
    best = log_q.amax() if log_q.numel() else log_q.new_tensor(-torch.inf)
    log_q -= _where_finite(all_reduce_max(best, group))
    log_q /= epsilon
    log_q.masked_fill_(absent[:, None], -torch.inf)
    for _ in range(iterations):
        log_q += _where_finite(log_marginal - _logsumexp_over_pixels(log_q, group))[:, None]
        log_q -= _where_finite(log_q.logsumexp(dim=0))
    assignments = log_q.exp_()
    # Logarithms of large scores have few digits left after the point: make the sums exact.
    assignments /= assignments.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return assignments.t().contiguous()


def marginal_error(
    assignments: Tensor, class_distribution: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Measures how far assignments are from the class sizes that were asked for.

    Args:
        assignments: (N, K) from `sinkhorn`.
        class_distribution: (K,) the marginal that was asked for.
        group: Ranks whose pixels were assigned together.

    Returns:
        Scalar total variation distance ½ Σ_k |mean_n Q_nk - r_k|, 0...1. It stays on the device: read
        it when logs are written. A value above a few hundredths asks for more iterations or a larger ε.

    Raises:
        ValueError: The shapes do not fit, or the distribution is none.

    Example:
        >>> marginal_error(torch.eye(2), torch.tensor([0.5, 0.5])).item()
        0.0
    """
    if assignments.ndim != 2:
        raise ValueError(f"assignments must be (N, K), got shape {tuple(assignments.shape)}")
    check_distribution(class_distribution, assignments.shape[1])
    mass = all_reduce_sum(assignments.float().sum(dim=0), group)
    wanted = class_distribution.to(mass) / class_distribution.sum()
    return 0.5 * (mass / mass.sum().clamp_min(1) - wanted).abs().sum()


def _where_finite(shift: Tensor) -> Tensor:
    """Leaves rows and columns without any mass as they are: -inf - (-inf) would be NaN."""
    return shift.masked_fill(shift.isinf(), 0)


def _logsumexp_over_pixels(log_q: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Returns log Σ_n exp(log_q) of (K, N) over the pixels of all ranks, (K,)."""
    local = log_q.logsumexp(dim=1)
    if not is_distributed():
        return local
    largest = _where_finite(all_reduce_max(local.clone(), group))
    return all_reduce_sum((local - largest).exp(), group).log() + largest


def _check_arguments(
    scores: Tensor, class_distribution: Tensor | None, epsilon: float, iterations: int
) -> None:
    if scores.ndim != 2:
        raise ValueError(f"scores must be (N, K), got shape {tuple(scores.shape)}")
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating point, got {scores.dtype}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if class_distribution is not None:
        check_distribution(class_distribution, scores.shape[1])


def check_distribution(distribution: Tensor, num_classes: int) -> None:
    """Raises ValueError unless a tensor can be a distribution over the classes.

    Args:
        distribution: (K,) non-negative, any sum but 0. Values are looked at on the CPU only.
        num_classes: K.
    """
    if distribution.shape != (num_classes,):
        raise ValueError(
            f"the class distribution must have one entry for each of {num_classes} classes, "
            f"got shape {tuple(distribution.shape)}"
        )
    if distribution.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not (distribution.isfinite().all() and (distribution >= 0).all() and distribution.sum() > 0):
        raise ValueError(
            "the class distribution must be finite, non-negative and not all zero, "
            f"got {distribution.tolist()}"
        )
