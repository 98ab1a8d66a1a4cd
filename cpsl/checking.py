"""The check of labels that several pieces share, made where looking at values is free."""

import torch
from torch import Tensor


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raises unless labels name classes.

    Args:
        labels: Of any shape.
        num_classes: Number of classes K.
        ignore_index: Label that is no class.

    Raises:
        TypeError: They are not integers.
        ValueError: On the CPU, a label is neither a class nor ignored. (On a CUDA device such a label
            stops the program with a device-side assertion.)

    Example:
        >>> check_labels(torch.tensor([0, 1, 255]), num_classes=2, ignore_index=255)
    """
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integer class indices, got {labels.dtype}")
    # Tensors of another type, such as those that only have a shape, may have no values to look at.
    if labels.device.type != "cpu" or type(labels) is not Tensor or torch.compiler.is_compiling():
        return
    labels = labels.long()
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"labels must be 0...{num_classes - 1} or {ignore_index} (ignored), "
            f"got {sorted(set(wrong.tolist()))[:10]}"
        )


def check_probabilities(values: Tensor) -> None:
    """Raises ValueError if values cannot be probabilities, as logits are not; on the CPU alone.

    Args:
        values: Floating, of any shape; NaN is let through.

    Example:
        >>> check_probabilities(torch.tensor([0.1, 0.9]))
    """
    if values.device.type != "cpu" or type(values) is not Tensor or torch.compiler.is_compiling():
        return
    if values.numel():
        low, high = values.aminmax()
        if low < 0 or high > 1.001:
            raise ValueError(
                f"soft labels must be probabilities in 0...1, got {float(low):.3g} to {float(high):.3g}; "
                "of logits take softmax(dim=1)"
            )
