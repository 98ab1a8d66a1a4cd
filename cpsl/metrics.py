"""Confusion matrix and intersection over union."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpsl.distributed import all_reduce_sum


class ConfusionMatrix(nn.Module):
    """Counts which class is predicted where which class is true.

    Args:
        num_classes: Number of classes K.
        ignore_index: Pixels with this target do not count.

    Attributes:
        matrix: (K, K) int64 buffer; rows are targets, columns predictions.

    Example:
        >>> confusion = ConfusionMatrix(num_classes=3)
        >>> confusion.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]))
        >>> confusion.iou
        tensor([0.5000, 0.5000,    nan])
        >>> confusion.miou
        tensor(0.5000)

        The mean over some of the classes, such as SYNTHIA's 13 of 16: `confusion.iou[indices].nanmean()`.
    """

    matrix: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.register_buffer("matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts label maps.

        Args:
            prediction: Integer class indices of any shape.
            target: Integer class indices of the same shape.

        Raises:
            ValueError: The shapes differ, or (on the CPU) a target is neither a class nor ignored, or a
                prediction is no class where the target is one.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target must have one shape, got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}"
            )
        prediction, target = prediction.flatten(), target.flatten()
        ignored = target == self.ignore_index
        if target.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check("target", target.masked_fill(ignored, 0))
            self._check("prediction", prediction.masked_fill(ignored, 0))
        bins = self.num_classes**2
        # Ignored pixels fall into one more bin than the matrix has.
        cell = (target.long() * self.num_classes).add_(prediction).masked_fill_(ignored, bins)
        counts = torch.zeros(bins + 1, dtype=torch.int64, device=cell.device)
        counts.scatter_add_(0, cell, torch.ones_like(cell))
        self.matrix += counts[:bins].reshape_as(self.matrix).to(self.matrix.device)

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sums the counts of all ranks; call it once, at the end."""
        all_reduce_sum(self.matrix, group)

    @property
    def iou(self) -> Tensor:
        """(K,) intersection over union, 0...1; NaN for a class neither present nor predicted."""
        matrix = self.matrix.double()
        intersection = matrix.diagonal()
        return (intersection / (matrix.sum(0) + matrix.sum(1) - intersection)).float()

    @property
    def miou(self) -> Tensor:
        """Mean of `iou` over the classes that have one; NaN if none has."""
        return self.iou.nanmean()

    def _check(self, name: str, labels: Tensor) -> None:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"{name} must be 0...{self.num_classes - 1} where the target is not "
                f"{self.ignore_index}, got {int(labels.min())}...{int(labels.max())}"
            )
