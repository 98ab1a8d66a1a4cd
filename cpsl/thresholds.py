"""Class thresholds that make labels best in mean IoU instead of accuracy, estimated without labels."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from cpsl._internal.averaging import check_momentum, update_moving_average
from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.precision import FullPrecision

BINS = 100
"""Intervals of a probability in the histograms."""

LOWEST = 0.05
"""Lower limit of a threshold, so that a class that is hardly ever predicted is not labeled everywhere."""


class DiceThresholds(FullPrecision):
    r"""Tracks the probability from which labeling a pixel with a class improves the class's expected IoU.

    If the probabilities p_k are calibrated, the pixels with p_k ≥ t have the expected Dice coefficient

        D_k(t) = 2 Σ_{p_k ≥ t} p_k / (N_{p_k ≥ t} + Σ p_k)

    It is largest at the threshold t_k = max_t D_k(t) / 2 (Lipton et al., 2014), which is also the best one
    for the IoU, a monotone function of Dice. It is near 1/2 for a class of certain pixels, and lower for one
    whose pixels are uncertain, as those of rare classes are: the most probable class is best for accuracy,
    and labels these classes too seldom for the mean IoU. Unlike a division by the class distribution, the
    correction vanishes as the network gets certain, so that self-training does not amplify it.

    All pixels of a bin of the histograms count with its center, those near 0 with 0.005. A rare class has
    many of them, which lowers its threshold: that of a class of certain pixels is 0.49 if it has a tenth of
    the pixels, 0.40 for a hundredth and 0.14 for a thousandth. The recipes were measured with this bias.

    Args:
        num_classes: Number of classes K.
        momentum: Momentum of the histograms, 0...1.
        group: Process group whose pixels are counted together; None is the default group.

    Attributes:
        histograms: (K, 100) float32 buffer, pixels by probability; stays float32 in half precision.

    Raises:
        ValueError: momentum is outside 0...1.

    Example:
        All pixels of class 0 are certain. A third of the others belongs to class 1, and none is certain.

        >>> thresholds = DiceThresholds(num_classes=3, momentum=0.0)
        >>> pixels = torch.tensor([[1, 0, 0], [0, 1 / 3, 2 / 3], [0, 1 / 3, 2 / 3]])
        >>> thresholds.update(pixels.t().reshape(1, 3, 1, 3))
        >>> thresholds.compute().round(decimals=2)
        tensor([0.5000, 0.2500, 0.4000])
    """

    histograms: Tensor

    def __init__(
        self, num_classes: int, momentum: float = 0.98, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        self.num_classes = num_classes
        self.momentum = momentum
        self.group = group
        self.register_buffer("histograms", torch.zeros(num_classes, BINS, dtype=torch.float32))

    @torch.no_grad()
    def update(self, probabilities: Tensor, applied: Tensor | None = None) -> None:
        """Adds a batch; pixels with non-finite probabilities or zeros for all classes are not counted.

        Args:
            probabilities: (B, K, h, w), 0...1.
            applied: Scalar bool on the device; False changes nothing.

        Raises:
            ValueError: The shape differs.
        """
        check_shape("probabilities", probabilities, "B", self.num_classes, "h", "w")
        values = probabilities.movedim(1, 0).flatten(1).float()
        known = values.isfinite().all(dim=0) & (values.sum(dim=0) > 0)
        bins = (values.nan_to_num(0) * BINS).long().clamp(0, BINS - 1)
        # Integers: float32 cannot count beyond 2²⁴.
        counts = torch.zeros_like(self.histograms, dtype=torch.int64)
        counts.scatter_add_(1, bins, known.long().expand_as(bins))
        counts = all_reduce_sum(counts, self.group).to(self.histograms.dtype)
        # The first batch has full weight.
        momentum = torch.where(self.histograms.sum() > 0, self.momentum, 0.0)
        mixed = momentum * self.histograms + (1 - momentum) * counts
        update_moving_average([self.histograms], [mixed], 0.0, applied)

    def compute(self) -> Tensor:
        """Returns the thresholds (K,) float32 in 0.05...0.5; 0.5 before the first pixel."""
        value = (torch.arange(BINS, device=self.histograms.device) + 0.5) / BINS
        from_highest = self.histograms.flip(1)
        pixels, hits = from_highest.cumsum(1), (from_highest * value.flip(0)).cumsum(1)
        dice = 2 * hits / (pixels + hits[:, -1:])
        return (dice.nan_to_num(1).amax(dim=1) / 2).clamp(LOWEST, 0.5).float()

    @torch.no_grad()
    def forward(self, probabilities: Tensor) -> Tensor:
        """Divides probabilities (B, K, h, w) by the thresholds and normalizes them; zeros remain zeros."""
        check_shape("probabilities", probabilities, "B", self.num_classes, "h", "w")
        relative = probabilities.float() / self.compute()[:, None, None]
        return relative / relative.sum(dim=1, keepdim=True).clamp_min(1e-12)

    if TYPE_CHECKING:
        __call__ = forward
