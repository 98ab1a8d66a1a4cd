"""Mixed and masked images: CutMix, ClassMix, and patches without content."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl._internal.affine import positions
from cpsl._internal.checking import check_shape


class Mixed(NamedTuple):
    """Images and labels after mixing.

    Attributes:
        image: (B, 3, H, W), dtype of the input.
        labels: (B, h, w) int64.
        pasted: (B, h, w) bool, which labels are those of the other image.
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
    align_corners: bool = True,
) -> Mixed:
    """Pastes a rectangle of another image, half the area, with its labels (French et al., 2020).

    Each image is mixed independently. The rectangle's height is sampled log-uniformly from half to all of
    the image's height, and its width is chosen such that its area is half of the image.

    Args:
        image: (B, 3, H, W).
        labels: (B, h, w) integer, at any resolution, such as that of a network's output.
        other_image: (B, 3, H, W).
        other_labels: (B, H, W) integer, one per pixel.
        probability: Probability that an image is mixed, 0...1.
        align_corners: Corner-aligned or half-pixel grid of the labels, as in
            `torch.nn.functional.interpolate`.

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
    node_rows, node_columns = (
        (positions(extent, count, align_corners, device) - 0.5).round().long()  # indices of pixels
        for extent, count in zip((height, width), labels.shape[1:], strict=True)
    )

    images = torch.where(inside(pixel_rows, pixel_columns)[:, None], other_image, image)
    other = other_labels[:, node_rows][:, :, node_columns].long()
    pasted = inside(node_rows, node_columns)
    return Mixed(images, torch.where(pasted, other, labels.long()), pasted)


def classmix(
    image: Tensor, labels: Tensor, other_image: Tensor, other_labels: Tensor, *, ignore_index: int = 255
) -> Mixed:
    """Pastes half of the classes of another image with its labels (Olsson et al., 2021).

    The classes are sampled for each image, and an odd number is rounded up. Objects keep their outlines, and
    rare classes are pasted as often as frequent ones. As in DACS (Tranheden et al., 2021), the other image is
    a labeled one, so that the pasted labels are correct.

    Args:
        image: (B, 3, H, W).
        labels: (B, H, W) integer class indices below 256.
        other_image: (B, 3, H, W).
        other_labels: (B, H, W) integer class indices below 256.
        ignore_index: Label of pixels of the other image that are never pasted.

    Raises:
        ValueError: The shapes do not match.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> mixed = classmix(torch.zeros(1, 3, 1, 4), labels, torch.ones(1, 3, 1, 4), labels + 2)
        >>> mixed.pasted.sum(), torch.equal(mixed.pasted, mixed.image[:, 0] == 1)
        (tensor(2), True)
    """
    check_shape("image", image, "B", 3, "H", "W")
    batch, _, height, width = image.shape
    check_shape("labels", labels, batch, height, width)
    check_shape("other_image", other_image, *image.shape)
    check_shape("other_labels", other_labels, batch, height, width)
    classes = other_labels.long().flatten(1)
    ignored = classes == ignore_index
    # Ignored pixels have a column of their own, since the label may be negative.
    columns = classes.masked_fill(ignored, 256)
    # One sort instead of a loop over the classes, which would synchronize with the device.
    present = torch.zeros(batch, 257, dtype=torch.bool, device=image.device).scatter_(1, columns, True)[
        :, :256
    ]
    order = torch.rand(batch, 256, device=image.device, dtype=torch.float32).masked_fill(~present, 2)
    half = (present.sum(dim=1, keepdim=True) + 1) // 2
    chosen = present & (order.argsort(dim=1).argsort(dim=1) < half)
    pasted = (chosen.gather(1, classes.masked_fill(ignored, 0)) & ~ignored).reshape(batch, height, width)
    images = torch.where(pasted[:, None], other_image, image)
    return Mixed(images, torch.where(pasted, other_labels.long(), labels.long()), pasted)


def mask_patches(image: Tensor, patch: int, share: float) -> Tensor:
    """Masks random square patches of images with their mean color (MIC, Hoyer et al., 2023).

    Args:
        image: (B, C, H, W) floating point.
        patch: Side of a patch in pixels; those at the right and lower border may be smaller.
        share: Probability that a patch is masked, 0...1.

    Raises:
        TypeError: The images are not floating point.
        ValueError: The shape, the side or the share is invalid.

    Example:
        >>> image = torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> mask_patches(image, patch=2, share=1.0)
        tensor([[[[1.5000, 1.5000, 1.5000, 1.5000]]]])
    """
    check_shape("image", image, "B", "C", "H", "W")
    if not image.is_floating_point():
        raise TypeError(f"images must be floating point, got {image.dtype}")
    if patch < 1 or not 0 <= share <= 1:
        raise ValueError(f"patch must be positive and share in 0...1, got {patch} and {share}")
    batch, _, height, width = image.shape
    rows, columns = -(-height // patch), -(-width // patch)
    masked = torch.rand(batch, 1, rows, columns, device=image.device, dtype=torch.float32) < share
    masked = masked.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)[..., :height, :width]
    return torch.where(masked, image.mean(dim=(2, 3), keepdim=True), image)
