"""Limits of how much of the images each class of the pseudo labels may take."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from cpsl._internal.averaging import check_momentum, update_moving_average
from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.precision import FullPrecision, is_low_precision
from cpsl.alignment import class_counts
from cpsl.sinkhorn import check_distribution

RATE = 0.05
"""Exponent of a step of the factors."""

LOWEST = 0.05
"""Lower limit of a factor, so that a class can come back."""


class ShareLimits(FullPrecision):
    r"""Keeps classes of pseudo labels from growing far beyond their share of the source and of the start.

    Self-training changes how frequent the classes of its labels are, and amplifies the change, right or
    wrong. The share of the pixels that class k may take is

        c_k = (1 + TV(source, start)) max(source_k, start_k) + margin

    where start_k is its share of the squared probabilities in the first updates. They are squared since the
    probabilities of a rare class that is suspected in many places are small, but their sum is large. TV is
    the total variation, 0...1: the less the first predictions resemble the source, the less is known about
    the target, and the wider the limits.

    Labels are argmax_k b_k p_k. The factors b_k ≤ 1 are the dual variables of an optimal transport of the
    pixels to classes of the capacities c_k: b_k = 1 unless the limit is reached. They follow the labels,
    b_k ← min(1, b_k (c_k / share_k)^0.05). Unlike an alignment to a fixed class distribution, any change
    within the limits remains possible.

    Args:
        source: (K,) class distribution of the source's labels, of any sum.
        margin: What a class may take in addition, as a share of all pixels, 0...1.
        start_updates: Number of updates whose probabilities are the start; limits hold after them.
        momentum: Momentum of the shares of the labels, 0...1.
        group: Process group whose pixels are counted together; None is the default group.

    Attributes:
        source: (K,) float32 buffer, sums to 1.
        start: (K,) float32 buffer, shares of the squared probabilities of the first updates.
        shares: (K,) float32 buffer, moving average of the class shares of the labels.
        factors: (K,) float32 buffer b, 0.05...1.
        updates: Scalar int64 buffer, number of updates.

    Raises:
        ValueError: `source` is not a distribution, or margin, start_updates or momentum is out of range.

    Example:
        The labels grow to class 1 beyond its limit 1.19 * 0.2 + 0.05, hence its factor falls.

        >>> limits = ShareLimits(torch.tensor([0.8, 0.2]), margin=0.05, start_updates=1, momentum=0.0)
        >>> probabilities = torch.tensor([0.9, 0.1]).expand(1, 4, 4, 2).movedim(3, 1)
        >>> labels = torch.tensor([0, 1]).repeat(8).reshape(1, 4, 4)
        >>> limits.update(probabilities, labels)
        >>> limits.limits()
        tensor([1.2233, 0.2876])
        >>> limits.update(probabilities, labels)
        >>> limits.factors
        tensor([1.0000, 0.9727])
    """

    source: Tensor
    start: Tensor
    shares: Tensor
    factors: Tensor
    updates: Tensor

    def __init__(
        self,
        source: Tensor,
        *,
        margin: float = 0.005,
        start_updates: int = 100,
        momentum: float = 0.96,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        check_distribution(source, len(source))
        if not 0 <= margin <= 1:
            raise ValueError(f"margin must lie in 0...1, got {margin}")
        if start_updates < 0:
            raise ValueError(f"start_updates must be 0 or more, got {start_updates}")
        self.num_classes = len(source)
        self.margin = margin
        self.start_updates = start_updates
        self.momentum = momentum
        self.group = group
        source = source.float() if is_low_precision(source) else source  # its sum would overflow
        self.register_buffer("source", source.float() / source.sum())
        self.register_buffer("start", torch.zeros_like(self.source))
        self.register_buffer("shares", torch.zeros_like(self.source))
        self.register_buffer("factors", torch.ones_like(self.source))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=source.device))

    def limits(self) -> Tensor:
        """Returns the limits c (K,) float32; some are above 1."""
        total_variation = (self.start - self.source).clamp_min(0).sum()  # 0 without a start
        return (1 + total_variation) * torch.maximum(self.source, self.start) + self.margin

    @torch.no_grad()
    def update(
        self, probabilities: Tensor, labels: Tensor, ignore_index: int = 255, applied: Tensor | None = None
    ) -> None:
        """Counts a batch and moves the factors; a batch without labels changes nothing.

        Args:
            probabilities: (B, K, h, w), 0...1, of the network, without corrections; pixels with non-finite
                probabilities or zeros for all classes are not counted.
            labels: (B, h, w) integer pseudo labels with all corrections.
            ignore_index: Label of pixels that are not counted.
            applied: Scalar bool on the device; False changes nothing.

        Raises:
            ValueError: A shape differs, `ignore_index` is a class, or (on the CPU) a label is neither a class
                nor ignored.
        """
        check_shape("probabilities", probabilities, "B", self.num_classes, "h", "w")
        check_shape("labels", labels, *probabilities.shape[:1], *probabilities.shape[2:])
        known = probabilities.sum(dim=1, keepdim=True)
        known = known.isfinite() & (known > 0)
        predicted = torch.where(known, probabilities.float(), 0).square().sum(dim=(0, 2, 3))
        counts = class_counts(labels, self.num_classes, ignore_index).to(predicted)
        predicted, counts = all_reduce_sum(torch.stack([predicted, counts]), self.group)
        valid = (predicted.sum() > 0) & (counts.sum() > 0)
        if applied is not None:
            valid = valid & applied
        predicted, share = predicted / predicted.sum(), counts / counts.sum()

        starting = self.updates < self.start_updates
        start = torch.where(starting, self.start + (predicted - self.start) / (self.updates + 1), self.start)
        # The first batch has full weight.
        momentum = torch.where(self.updates > 0, self.momentum, 0.0)
        shares = momentum * self.shares + (1 - momentum) * share
        step = torch.where(shares > 0, self.limits() / shares, torch.inf).pow(RATE)
        factors = torch.where(starting, self.factors, (self.factors * step).clamp(LOWEST, 1))
        update_moving_average(
            [self.start, self.shares, self.factors], [start, shares, factors], 0.0, applied=valid
        )
        self.updates += valid

    @torch.no_grad()
    def forward(self, probabilities: Tensor) -> Tensor:
        """Multiplies probabilities (B, K, h, w) by the factors and normalizes them; zeros remain zeros."""
        check_shape("probabilities", probabilities, "B", self.num_classes, "h", "w")
        limited = probabilities.float() * self.factors[:, None, None]
        return limited / limited.sum(dim=1, keepdim=True).clamp_min(1e-12)

    if TYPE_CHECKING:
        __call__ = forward
