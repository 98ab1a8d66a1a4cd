"""The class distribution that assignments are aligned to, and its moving average."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpsl.checking import check_labels
from cpsl.distributed import all_reduce_sum
from cpsl.sinkhorn import check_distribution, sinkhorn


class DistributionAligner(nn.Module):
    r"""Keeps the sizes of the classes' assignments at the class distribution of the pseudo labels.

    The distribution δ follows the labels of each batch, δ ← m δ + (1 - m) δ_batch (section 3.3 of CPSL),
    and is the marginal that `sinkhorn` assigns by. Without it, rare classes are swallowed by frequent ones
    or, with a uniform marginal, inflated at their expense.

    Args:
        num_classes: Number of classes K.
        momentum: m, 0...1; 1 keeps the distribution as it is.
        initial: (K,) distribution to start from, scaled to sum 1; None is uniform.
        ignore_index: Label that counts for no class.

    Attributes:
        distribution: (K,) float32 buffer, sums to 1.

    Raises:
        ValueError: momentum lies outside 0...1 or `initial` is not a distribution over K classes.

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
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0...1, got {momentum}")
        self.num_classes = num_classes
        self.momentum = momentum
        self.ignore_index = ignore_index
        self.register_buffer("distribution", torch.full((num_classes,), 1 / num_classes))
        if initial is not None:
            self.set(initial)

    @torch.no_grad()
    def set(self, distribution: Tensor) -> None:
        """Replaces the distribution.

        Args:
            distribution: (K,) non-negative, scaled to sum 1.
        """
        check_distribution(distribution, self.num_classes)
        self.distribution.copy_(distribution / distribution.sum())

    @torch.no_grad()
    def update(self, batch: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Moves the distribution towards that of a batch; a batch without a valid pixel moves nothing.

        Args:
            batch: Integer: labels of any shape, ignored pixels skipped. Floating: class probabilities
                (or counts) of any shape with the classes on axis 1.
            group: Ranks whose batches are counted together; None is the default group.

        Raises:
            ValueError: Probabilities do not have K classes on axis 1, or (on the CPU) a label is neither
                a class nor ignored.
        """
        mass = all_reduce_sum(self._mass(batch), group)
        total = mass.sum()
        target = torch.where(total > 0, mass / total, self.distribution)
        self.distribution.lerp_(target.to(self.distribution), 1 - self.momentum)

    def forward(
        self,
        scores: Tensor,
        *,
        epsilon: float = 0.05,
        iterations: int = 3,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Assigns pixels to classes in the proportions of `distribution`; see `sinkhorn`.

        Args:
            scores: (N, K) similarity of each pixel to each class.
            epsilon: Strength of the entropy term.
            iterations: Number of column and row scalings.
            group: Ranks whose pixels are assigned together.

        Returns:
            (N, K) float32 assignments; each row sums to 1.
        """
        return sinkhorn(
            scores, self.distribution, epsilon=epsilon, iterations=iterations, group=group
        )

    def _mass(self, batch: Tensor) -> Tensor:
        if not batch.is_floating_point():
            return class_counts(batch, self.num_classes, self.ignore_index).double()
        if batch.ndim < 2 or batch.shape[1] != self.num_classes:
            raise ValueError(
                f"probabilities must have {self.num_classes} classes on axis 1, "
                f"got shape {tuple(batch.shape)}"
            )
        return batch.double().sum(dim=[axis for axis in range(batch.ndim) if axis != 1])


def class_counts(labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Counts the pixels of each class without waiting for the device.

    Args:
        labels: Integer class indices of any shape.
        num_classes: Number of classes K.
        ignore_index: Label that is not counted.

    Returns:
        (K,) int64 counts.

    Raises:
        TypeError: The labels are not integers.
        ValueError: On the CPU, a label is neither a class nor ignored. (On a CUDA device such a label
            stops the program with a device-side assertion.)

    Example:
        >>> class_counts(torch.tensor([0, 2, 2, 255]), num_classes=3)
        tensor([1, 0, 2])
    """
    check_labels(labels, num_classes, ignore_index)
    flat = labels.flatten().long()
    # torch.bincount waits for the device, a scatter into one more bin than there are classes does not.
    bins = flat.masked_fill(flat == ignore_index, num_classes)
    counts = flat.new_zeros(num_classes + 1)
    return counts.scatter_add_(0, bins, torch.ones_like(flat))[:num_classes]
