"""The class distribution that assignments are aligned to, and its moving average."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from cpsl._internal.averaging import check_momentum, update_moving_average
from cpsl._internal.checking import check_ignore_index, check_labels
from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.precision import FullPrecision
from cpsl.sinkhorn import check_distribution, sinkhorn


class DistributionAligner(FullPrecision):
    r"""Aligns the class sizes of assignments with the class distribution of the pseudo labels.

    The distribution δ follows the labels of each batch, δ ← m δ + (1 - m) δ_batch (section 3.3 of CPSL),
    and is the marginal of `sinkhorn`. Without alignment, frequent classes absorb rare ones; a uniform
    marginal inflates rare classes instead.

    Args:
        num_classes: Number of classes K.
        momentum: m, 0...1; 1 keeps the distribution fixed.
        initial: (K,) initial distribution, normalized to sum 1; None is uniform.
        ignore_index: Label of pixels that are not counted.
        group: Process group whose pixels are counted and assigned together; None is the default group.

    Attributes:
        distribution: (K,) float32 buffer δ, sums to 1; stays float32 in a network of half precision.

    Raises:
        ValueError: momentum is outside 0...1, `initial` is not a distribution over K classes, or
            `ignore_index` is a class.

    Example:
        >>> aligner = DistributionAligner(num_classes=2, momentum=0.5)
        >>> aligner.update(torch.tensor([[0, 0], [0, 255]]))
        >>> aligner.distribution
        tensor([0.7500, 0.2500])
        >>> aligner(torch.randn(6, 2)).shape
        torch.Size([6, 2])
    """

    distribution: Tensor

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.99,
        initial: Tensor | None = None,
        ignore_index: int = 255,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        check_ignore_index(ignore_index, num_classes)
        self.num_classes = num_classes
        self.momentum = momentum
        self.ignore_index = ignore_index
        self.group = group
        self.register_buffer("distribution", torch.full((num_classes,), 1 / num_classes, dtype=torch.float32))
        if initial is not None:
            self.set(initial)

    @torch.no_grad()
    def set(self, distribution: Tensor) -> None:
        """Replaces the distribution (K,); the new one is normalized to sum 1.

        Raises:
            ValueError: It is not a distribution over K classes.
        """
        check_distribution(distribution, self.num_classes)
        exact = distribution.to(torch.promote_types(distribution.dtype, torch.float32))
        self.distribution.copy_(exact / exact.sum())

    @torch.no_grad()
    def update(
        self, batch: Tensor, group: dist.ProcessGroup | None = None, applied: Tensor | None = None
    ) -> None:
        """Moves the distribution towards that of a batch; a batch without valid pixels changes nothing.

        Args:
            batch: Integer labels of any shape, or floating probabilities or counts, (B, K, ...); pixels with
                non-finite values are not counted.
            group: Process group whose batches are counted together; None is that of the constructor.
            applied: Scalar bool on the device; False changes nothing.

        Raises:
            ValueError: Axis 1 has not K classes, or (on the CPU) a label is neither a class nor ignored.
        """
        mass = all_reduce_sum(self._mass(batch), group or self.group)
        total = mass.sum()
        target = torch.where(total > 0, mass / total, self.distribution)
        update_moving_average([self.distribution], [target], self.momentum, applied)

    def forward(
        self,
        scores: Tensor,
        *,
        epsilon: float = 0.05,
        iterations: int = 3,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Calls `sinkhorn` with `distribution`; `group` None is that of the constructor."""
        group = group or self.group
        return sinkhorn(scores, self.distribution, epsilon=epsilon, iterations=iterations, group=group)

    if TYPE_CHECKING:
        __call__ = forward

    def _mass(self, batch: Tensor) -> Tensor:
        if not batch.is_floating_point():
            return class_counts(batch, self.num_classes, self.ignore_index).double()
        if batch.ndim < 2 or batch.shape[1] != self.num_classes:
            wanted = f"(B, {self.num_classes}, ...)"
            raise ValueError(f"probabilities must be {wanted}, got shape {tuple(batch.shape)}")
        mass = batch.double()
        mass = mass.masked_fill(~mass.sum(dim=1, keepdim=True).isfinite(), 0)
        return mass.sum(dim=[axis for axis in range(batch.ndim) if axis != 1])


def class_counts(labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Counts the pixels of each class, (K,) int64, without synchronizing with the device.

    Args:
        labels: Integer class indices of any shape.
        num_classes: Number of classes K.
        ignore_index: Label of pixels that are not counted.

    Raises:
        TypeError: The labels are not integers.
        ValueError: `ignore_index` is a class, or (on the CPU) a label is neither a class nor ignored; on CUDA
            an assertion fails.

    Example:
        >>> class_counts(torch.tensor([0, 2, 2, 255]), num_classes=3)
        tensor([1, 0, 2])
    """
    check_labels(labels, num_classes, ignore_index)
    flat = labels.flatten().long()
    # torch.bincount synchronizes; a scatter with one more bin for ignored pixels does not.
    bins = flat.masked_fill(flat == ignore_index, num_classes)
    counts = flat.new_zeros(num_classes + 1)
    return counts.scatter_add_(0, bins, torch.ones_like(flat))[:num_classes]
