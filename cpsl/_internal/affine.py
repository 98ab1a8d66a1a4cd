"""Arithmetic of affine maps (B, 2, 3), and sample positions along an image side."""

import torch
from torch import Tensor


# Elementwise, because a matrix product under autocast or TF32 would be off by whole pixels.
def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Returns the composition outer ∘ inner of (B, 2, 3) maps."""
    product = (outer[:, :, :2, None] * inner[:, None]).sum(dim=2)
    return torch.cat([product[:, :, :2], product[:, :, 2:] + outer[:, :, 2:]], dim=2)


def inverse(matrix: Tensor) -> Tensor:
    """Returns the inverse of (B, 2, 3) maps."""
    a, b, x, c, d, y = matrix.flatten(1).unbind(1)
    entries = [d, -b, b * y - d * x, -c, a, c * x - a * y]
    return torch.stack(entries, dim=1).reshape(-1, 2, 3) / (a * d - b * c)[:, None, None]


def positions(extent: int, count: int, align_corners: bool, device: torch.device) -> Tensor:
    """Returns the positions (count,) of a map's samples along a side of a view, in pixels.

    They are the centers of equal cells, or, with `align_corners`, centers of pixels up to the outermost.

    Example:
        >>> positions(8, 4, False, torch.device("cpu")), positions(7, 4, True, torch.device("cpu"))
        (tensor([1., 3., 5., 7.]), tensor([0.5000, 2.5000, 4.5000, 6.5000]))
    """
    index = torch.arange(count, device=device, dtype=torch.float32)
    if align_corners:
        return index * ((extent - 1) / max(count - 1, 1)) + 0.5
    return (index + 0.5) * (extent / count)
