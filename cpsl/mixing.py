"""CutMix of a labeled image into a pseudo-labeled one."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl._internal.checking import check_shape


class Mixed(NamedTuple):
    """Images and labels after mixing.

    Attributes:
        image: (B, 3, H, W), dtype of the input.
        labels: (B, h, w) int64.
        pasted: (B,) bool, whether a rectangle was pasted into the image.
    """

    image: Tensor
    labels: Tensor
    pasted: Tensor


def cutmix(
    image: Tensor, labels: Tensor, other_image: Tensor, other_labels: Tensor, *, probability: float = 0.5
) -> Mixed:
    """Pastes a rectangle of another image, half the area, with its labels (French et al., 2020).

    Each image is mixed independently. The rectangle's height is sampled log-uniformly from half to all of
    the image's height, and its width is chosen such that its area is half of the image.

    Args:
        image: (B, 3, H, W).
        labels: (B, h, w) integer, on a corner-aligned grid such as that of a network's output.
        other_image: (B, 3, H, W).
        other_labels: (B, H, W) integer, one per pixel.
        probability: Probability that an image is mixed, 0...1.

    Raises:
        ValueError: The shapes do not match, or the probability is outside 0...1.

    Example:
        >>> zeros, ones = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)
        >>> mixed = cutmix(zeros, zeros[:, 0].long(), ones, ones[:, 0].long(), probability=1)
        >>> torch.equal(mixed.image[:, 0].long(), mixed.labels)
        True
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in 0...1, got {probability}")
    check_shape("image", image, "B", 3, "H", "W")
    batch, _, height, width = image.shape
    check_shape("labels", labels, batch, "h", "w")
    check_shape("other_image", other_image, *image.shape)
    check_shape("other_labels", other_labels, batch, height, width)
    device = image.device
    mix, tall, down, right = torch.rand(4, batch, 1, device=device, dtype=torch.float32)
    box_height = torch.exp(tall * math.log(0.5))
    box_width = 0.5 / box_height
    top, left = down * (1 - box_height), right * (1 - box_width)

    def inside(rows: Tensor, columns: Tensor) -> Tensor:
        y, x = (rows + 0.5) / height, (columns + 0.5) / width
        in_rows = (y >= top) & (y < top + box_height) & (mix < probability)
        in_columns = (x >= left) & (x < left + box_width)
        return torch.logical_and(in_rows[:, :, None], in_columns[:, None, :])

    pixel_rows, pixel_columns = (torch.arange(extent, device=device) for extent in (height, width))
    node_rows = (
        torch.linspace(0, height - 1, labels.shape[1], device=device, dtype=torch.float32).round().long()
    )
    node_columns = (
        torch.linspace(0, width - 1, labels.shape[2], device=device, dtype=torch.float32).round().long()
    )

    images = torch.where(inside(pixel_rows, pixel_columns)[:, None], other_image, image)
    other = other_labels[:, node_rows][:, :, node_columns].long()
    labels = torch.where(inside(node_rows, node_columns), other, labels.long())
    return Mixed(images, labels, mix[:, 0] < probability)
