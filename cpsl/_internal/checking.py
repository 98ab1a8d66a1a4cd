"""Checks of shapes, and of values on the CPU only, where reading a value does not synchronize."""

import torch
from torch import Tensor


def check_shape(name: str, value: Tensor, *sizes: int | str, advice: str = "") -> None:
    """Raises ValueError, with advice, unless a tensor has the given sizes, where letters are any size.

    Example:
        >>> check_shape("features", torch.zeros(2, 8, 5, 5), "B", 4, "h", "w")
        Traceback (most recent call last):
        ValueError: features must be (B, 4, h, w), got shape (2, 8, 5, 5)
    """
    fits = [isinstance(size, str) or size == got for size, got in zip(sizes, value.shape, strict=False)]
    if len(sizes) != value.ndim or not all(fits):
        wanted = str(sizes).replace("'", "")
        raise ValueError(f"{name} must be {wanted}, got shape {tuple(value.shape)}{advice}")


def check_ignore_index(ignore_index: int, num_classes: int) -> None:
    """Raises ValueError if the label of ignored pixels is that of a class, whose pixels would be ignored."""
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index must be none of the classes 0...{num_classes - 1}, got {ignore_index}: "
            "pass another one, such as -1"
        )


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raises TypeError unless labels are integers, ValueError unless they are classes or `ignore_index`.

    ValueError also if `ignore_index` is a class.
    """
    check_ignore_index(ignore_index, num_classes)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integer class indices, got {labels.dtype}")
    # Subclasses of Tensor, such as fake tensors, may have no values.
    if labels.device.type != "cpu" or type(labels) is not Tensor or torch.compiler.is_compiling():
        return
    labels = labels.long()
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"labels must be 0...{num_classes - 1} or {ignore_index} (ignored), "
            f"got {sorted(set(wrong.tolist()))[:10]}"
        )


def check_labels_of(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    """Raises an error unless the labels are those of the pixels and classes of the logits."""
    check_shape("logits", logits, "B", "K", "h", "w")
    advice = "; resize the logits bilinearly, or the labels with cpsl.geometry.resize_labels"
    check_shape("labels", labels, len(logits), *logits.shape[2:], advice=advice)
    check_labels(labels, logits.shape[1], ignore_index)


def check_finite(name: str, value: Tensor) -> None:
    """Raises ValueError if a value is NaN or infinite."""
    if value.device.type != "cpu" or type(value) is not Tensor or torch.compiler.is_compiling():
        return
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite")


def check_exact(name: str, labels: Tensor) -> None:
    """Raises ValueError if whole numbers change in float32, which holds them up to 2**24."""
    if labels.device.type != "cpu" or type(labels) is not Tensor or torch.compiler.is_compiling():
        return
    if labels.dtype in (torch.int32, torch.int64) and labels.numel():
        low, high = labels.aminmax()
        if low < -(2**24) or high > 2**24:
            raise ValueError(f"{name} must lie in -2**24...2**24, got {int(low)} to {int(high)}")


def check_probabilities(values: Tensor) -> None:
    """Raises ValueError if values on the CPU, such as logits, cannot be probabilities; NaN is accepted."""
    if values.device.type != "cpu" or type(values) is not Tensor or torch.compiler.is_compiling():
        return
    if values.numel():
        low, high = values.aminmax()
        if low < 0 or high > 1.001:
            raise ValueError(
                f"soft labels must lie in 0...1, got {float(low):.3g} to {float(high):.3g}; they are "
                "probabilities: apply softmax(dim=1) to logits"
            )
