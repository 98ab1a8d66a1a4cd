"""Assignment of pixels to classes by optimal transport with a given class marginal."""

import torch
import torch.distributed as dist
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import all_reduce_max, all_reduce_sum, is_distributed


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    class_distribution: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Assigns pixels softly to classes so that class sizes follow a given distribution.

    Solves the entropy-regularized transport problem

        max_Q  Σ_nk Q_nk S_nk + ε H(Q)   with   Σ_k Q_nk = 1/N,   Σ_n Q_nk = r_k

    by Sinkhorn-Knopp: starting from Q = exp(S/ε), each iteration scales the columns to the marginal r and
    then the rows to equal mass (Cuturi, 2013; equation 4 of CPSL). Computed on log Q, so that no score
    overflows. Assignments are targets and have no gradient.

    Rows of -inf and rows with NaN or +inf are padding: they get no mass and return zeros. A tensor of fixed
    shape can thus hold a number of pixels that is known on the device only, and a pixel that is not finite
    has no influence on others.

    Args:
        scores: (N, K) similarity of each pixel to each class, any floating dtype.
        class_distribution: (K,) marginal r, normalized to sum 1; 0 excludes a class. None is uniform.
        epsilon: ε > 0, strength of the entropy term in units of the scores; smaller is closer to one-hot.
        iterations: Number of column and row scalings.
        group: Process group whose pixels are assigned together; None is the default group.

    Returns:
        (N, K) float32 assignments; rows sum to 1, column means approach the marginal (`marginal_error`).

    Raises:
        ValueError: The shapes do not match, epsilon or iterations is not positive, or (checked on the CPU
            only) the distribution has a negative or non-finite entry or sums to zero.
        TypeError: The scores are not floating point.

    Example:
        Both pixels are more similar to class 0, but the marginal requires half of the mass in class 1:

        >>> scores = torch.tensor([[0.5, 0.1], [0.4, 0.3]])
        >>> sinkhorn(scores, iterations=50).round(decimals=2)
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]])
    """
    log_q, _ = _scale(scores, class_distribution, epsilon, iterations, group)
    assignments = log_q.exp_()
    # Logarithms of large scores have few decimal digits left: normalize the rows once more.
    assignments /= assignments.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return assignments.t().contiguous()


@torch.no_grad()
def class_potentials(
    scores: Tensor,
    class_distribution: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    iterations: int = 20,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Returns the potentials with which `sinkhorn` scales the classes, to assign further pixels.

        Q_nk = softmax_k( S_nk / ε + g_k )

    are its assignments. For a pixel that was not among the scores, the same formula extends them.

    Args:
        scores: (N, K), as for `sinkhorn`; padding is ignored.
        class_distribution: (K,) marginal; None is uniform.
        epsilon: ε.
        iterations: Number of column and row scalings.
        group: Process group whose pixels are assigned together; None is the default group.

    Returns:
        (K,) float32 g, determined up to a constant; 0 for all classes if there is no pixel, and -inf for a
        class that the marginal excludes.

    Raises:
        ValueError: As for `sinkhorn`.
        TypeError: As for `sinkhorn`.

    Example:
        >>> scores, marginal = torch.tensor([[0.5, 0.1], [0.4, 0.3]]), torch.tensor([0.5, 0.5])
        >>> g = class_potentials(scores, marginal, iterations=50)
        >>> (scores / 0.05 + g).softmax(dim=1).round(decimals=2)
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]])
    """
    return _scale(scores, class_distribution, epsilon, iterations, group)[1]


def _scale(
    scores: Tensor,
    class_distribution: Tensor | None,
    epsilon: float,
    iterations: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Returns log Q (K, N) of the scaled pixels, and the sums (K,) of what was added to each class."""
    check_shape("scores", scores, "N", "K")
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating point, got {scores.dtype}")
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon and iterations must be positive, got {epsilon} and {iterations}")
    num_classes = scores.shape[1]
    if class_distribution is None:
        marginal = scores.new_full((num_classes,), 1 / num_classes, dtype=torch.float32)
    else:
        check_distribution(class_distribution, num_classes)
        marginal = class_distribution.to(scores.device, torch.float32)
    # Classes without mass are masked out, so that log 0 is never computed.
    absent = marginal == 0
    log_marginal = (marginal / marginal.sum()).masked_fill(absent, 1).log()

    # (K, N): sums over pixels then read contiguous memory, which is several times faster.
    log_q = scores.t().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    best = log_q.amax(dim=0)
    padding = ~(best < torch.inf)  # true for NaN as well
    # Subtracting the maximum does not change the result and keeps the digits of scores far from zero.
    best = best.masked_fill(padding, -torch.inf)
    best = best.amax() if len(best) else best.new_tensor(-torch.inf)
    log_q -= _where_finite(all_reduce_max(best, group))
    log_q /= epsilon
    log_q.masked_fill_(absent[:, None] | padding, -torch.inf)
    potentials = torch.zeros_like(log_marginal).masked_fill(absent, -torch.inf)
    for _ in range(iterations):
        shift = _where_finite(log_marginal - _logsumexp_over_pixels(log_q, group))
        potentials += shift
        log_q += shift[:, None]
        log_q -= _where_finite(log_q.logsumexp(dim=0))
    return log_q, potentials


def marginal_error(
    assignments: Tensor, class_distribution: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Measures the distance between the class sizes of assignments and the marginal.

        ½ Σ_k |mean_n Q_nk - r_k|

    Args:
        assignments: (N, K) from `sinkhorn`.
        class_distribution: (K,) the marginal r.
        group: Process group whose pixels were assigned together; None is the default group.

    Returns:
        Scalar distance, 0...1. If it exceeds a few hundredths, use more iterations or a larger ε.

    Raises:
        ValueError: The shapes do not match, or the distribution is not valid (see `sinkhorn`).

    Example:
        >>> marginal_error(torch.eye(2), torch.tensor([0.5, 0.5])).item()
        0.0
    """
    check_shape("assignments", assignments, "N", "K")
    check_distribution(class_distribution, assignments.shape[1])
    mass = all_reduce_sum(assignments.float().sum(dim=0), group)
    wanted = class_distribution.to(mass) / class_distribution.sum()
    return 0.5 * (mass / mass.sum().clamp_min(1) - wanted).abs().sum()


def only(rows: Tensor, scores: Tensor) -> Tensor:
    """Sets all other rows of scores to -inf, which `sinkhorn` treats as padding."""
    return scores.masked_fill(~rows[:, None], -torch.inf)


def _where_finite(shift: Tensor) -> Tensor:
    """Replaces infinities by 0, since -inf - (-inf), in rows and columns without mass, is NaN."""
    return shift.masked_fill(shift.isinf(), 0)


def _logsumexp_over_pixels(log_q: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Returns log Σ_n exp(log_q) over the pixels of all ranks, (K, N) to (K,)."""
    local = log_q.logsumexp(dim=1)
    if not is_distributed():
        return local
    largest = _where_finite(all_reduce_max(local.clone(), group))
    return all_reduce_sum((local - largest).exp(), group).log() + largest


def check_distribution(distribution: Tensor, num_classes: int) -> None:
    """Raises ValueError unless a tensor is a class distribution (K,); values are checked on the CPU only."""
    check_shape("the class distribution", distribution, num_classes)
    if distribution.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not (distribution.isfinite().all() and (distribution >= 0).all() and distribution.sum() > 0):
        values = distribution.tolist()
        raise ValueError(f"the class distribution must be finite, non-negative, not all zero, got {values}")
