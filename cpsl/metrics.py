"""Confusion matrix and intersection over union."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpsl._internal.checking import check_ignore_index, check_shape
from cpsl._internal.distributed import all_reduce_sum


class ConfusionMatrix(nn.Module):
    """Counts pixels by target and predicted class.

    `compute` returns the result of all ranks; the attribute and the properties are those of this process.

    Args:
        num_classes: Number of classes K.
        ignore_index: Target of pixels that are not counted.
        group: Process group over which `compute` sums; None is the default group.

    Attributes:
        matrix: (K, K) int64 buffer; rows are targets, columns are predictions.

    Raises:
        ValueError: `ignore_index` is a class.

    Example:
        >>> confusion = ConfusionMatrix(num_classes=3)
        >>> confusion.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]))
        >>> iou = confusion.compute()
        >>> iou
        tensor([0.5000, 0.5000,    nan])
        >>> iou.nanmean()  # mIoU; for 13 of SYNTHIA's 16 classes: iou[indices].nanmean()
        tensor(0.5000)
    """

    matrix: Tensor

    def __init__(
        self, num_classes: int, ignore_index: int = 255, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index, num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.group = group
        self.register_buffer("matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts the pixels of a batch.

        Args:
            prediction: Integer class indices of any shape.
            target: Integer class indices of the same shape.

        Raises:
            TypeError: They are not integers.
            ValueError: The shapes differ, or (on the CPU) a target is neither a class nor ignored, or a
                prediction at a valid target is not a class.
        """
        for name, labels in (("prediction", prediction), ("target", target)):
            if labels.is_floating_point() or labels.is_complex():
                advice = "; apply argmax(dim=1) to logits" if name == "prediction" else ""
                raise TypeError(f"{name} must be integer class indices, got {labels.dtype}{advice}")
        check_shape("target", target, *prediction.shape)
        prediction, target = prediction.flatten().long(), target.flatten().long()
        ignored = target == self.ignore_index
        if target.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check("target", target.masked_fill(ignored, 0))
            self._check("prediction", prediction.masked_fill(ignored, 0))
        bins = self.num_classes**2
        # Ignored pixels are counted in one extra bin.
        cell = (target * self.num_classes).add_(prediction).masked_fill_(ignored, bins)
        counts = torch.zeros(bins + 1, dtype=torch.int64, device=cell.device)
        counts.scatter_add_(0, cell, torch.ones_like(cell))
        self.matrix += counts[:bins].reshape_as(self.matrix).to(self.matrix.device)

    def compute(self) -> Tensor:
        """Returns the IoU (K,) over the pixels of all ranks; every rank must call it. See `iou`."""
        return _iou(all_reduce_sum(self.matrix.clone(), self.group))

    def reset(self) -> None:
        """Sets all counts to zero."""
        self.matrix.zero_()

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sums `matrix` over the ranks in place, after the last `update`; `compute` needs no such call."""
        all_reduce_sum(self.matrix, group or self.group)

    @property
    def iou(self) -> Tensor:
        """(K,) float32 intersection over union of `matrix`; NaN for a class neither present nor predicted."""
        return _iou(self.matrix)

    @property
    def miou(self) -> Tensor:
        """Mean of `iou` over the classes that have one; NaN if none has."""
        return self.iou.nanmean()

    def _check(self, name: str, labels: Tensor) -> None:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            wanted = f"0...{self.num_classes - 1} where the target is not {self.ignore_index}"
            raise ValueError(f"{name} must be {wanted}, got {int(labels.min())}...{int(labels.max())}")


def _iou(matrix: Tensor) -> Tensor:
    matrix = matrix.double()
    intersection = matrix.diagonal()
    return (intersection / (matrix.sum(0) + matrix.sum(1) - intersection)).float()
