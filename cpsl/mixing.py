"""CutMix of a labelled image into a pseudo-labelled one."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """Images and labels after mixing.

    Attributes:
        image: (B, 3, H, W) of the dtype that came in.
        labels: (B, h, w) int64.
        pasted: (B,) bool, whether a rectangle was pasted into the image.
    """

    image: Tensor
    labels: Tensor
    pasted: Tensor


def cutmix(
    image: Tensor,
    labels: Tensor,
    other_image: Tensor,
    other_labels: Tensor,
    *,
    probability: float = 0.5,
) -> Mixed:
    """Pastes a rectangle of another image, half the area, with its labels (French et al., 2020).

    Each image of the batch is mixed or left alone by itself. The rectangle's height is drawn
    log-uniformly between half and all of the image's, its width makes the area one half.

    Args:
        image: (B, 3, H, W).
        labels: (B, h, w) on a grid whose corners are those of the image, such as a network's output.
        other_image: (B, 3, H, W).
        other_labels: (B, H, W) integer, one for each pixel.
        probability: How often an image is mixed, 0...1.

    Returns:
        The mixed images and labels.

    Raises:
        ValueError: The shapes do not fit, or the probability lies outside 0...1.

    Example:
        >>> zeros, ones = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)
        >>> mixed = cutmix(zeros, zeros[:, 0].long(), ones, ones[:, 0].long(), probability=1)
        >>> torch.equal(mixed.image[:, 0].long(), mixed.labels)
        True
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in 0...1, got {probability}")
    if image.ndim != 4:
        raise ValueError(f"images must be (B, 3, H, W), got shape {tuple(image.shape)}")
    batch, _, height, width = image.shape
    if other_image.shape != image.shape or other_labels.shape != (batch, height, width):
        raise ValueError(
            f"the other images and labels must be {tuple(image.shape)} and {(batch, height, width)}, "
            f"got {tuple(other_image.shape)} and {tuple(other_labels.shape)}"
        )
    if labels.ndim != 3 or labels.shape[0] != batch:
        raise ValueError(f"labels must be ({batch}, h, w), got shape {tuple(labels.shape)}")
    device = image.device
    mix, tall, down, right = torch.rand(4, batch, 1, device=device)
    box_height = torch.exp(tall * math.log(0.5))
    box_width = 0.5 / box_height
    top, left = down * (1 - box_height), right * (1 - box_width)

    def inside(rows: Tensor, columns: Tensor) -> Tensor:
        y = (rows + 0.5) / height
        x = (columns + 0.5) / width
        in_rows = (y >= top) & (y < top + box_height) & (mix < probability)
        in_columns = (x >= left) & (x < left + box_width)
        return torch.logical_and(in_rows[:, :, None], in_columns[:, None, :])

    pixel_rows = torch.arange(height, device=device)
    pixel_columns = torch.arange(width, device=device)
    node_rows = torch.linspace(0, height - 1, labels.shape[1], device=device).round().long()
    node_columns = torch.linspace(0, width - 1, labels.shape[2], device=device).round().long()

    pasted = inside(pixel_rows, pixel_columns)[:, None]
    labels_pasted = inside(node_rows, node_columns)
    other = other_labels[:, node_rows][:, :, node_columns].long()
    return Mixed(
        torch.where(pasted, other_image, image),
        torch.where(labels_pasted, other, labels.long()),
        mix[:, 0] < probability,
    )
