"""Drawing of pixels from a batch: in proportion to the classes, or uniformly."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl.alignment import class_counts


def class_quotas(present: Tensor, class_distribution: Tensor, total: int) -> Tensor:
    """Shares out a number of draws among the classes that are present.

    quota_k = δ_k · total by largest remainder, at least one for each class that is present; the shares of
    absent classes are spread over the others in proportion. Where there are fewer draws than classes the
    most frequent get one each.

    Args:
        present: (K,) bool.
        class_distribution: (K,) δ, non-negative.
        total: Number of draws.

    Returns:
        (K,) int64, sums to `total` where any class is present.

    Raises:
        ValueError: The shapes differ, or `total` is negative.

    Example:
        >>> class_quotas(torch.tensor([True, True, False]), torch.tensor([0.6, 0.0, 0.4]), total=8)
        tensor([7, 1, 0])
    """
    if present.ndim != 1 or present.shape != class_distribution.shape:
        raise ValueError(
            "present and class_distribution must be (K,), got "
            f"{tuple(present.shape)} and {tuple(class_distribution.shape)}"
        )
    if total < 0:
        raise ValueError(f"total must be 0 or more, got {total}")
    share = class_distribution.double() * present
    # δ may be zero for every class that is present: then they are drawn alike.
    share = torch.where(share.sum() > 0, share, present.double())
    share = share / share.sum().clamp_min(1e-12) * total

    guaranteed = present & (_rank_of_largest(share.masked_fill(~present, -1)) < total)
    rest = total - guaranteed.sum()
    beyond = (share - 1).clamp_min(0)
    # `total` equal to the number of classes leaves nothing beyond the first draw of each.
    beyond = torch.where(beyond.sum() > 0, beyond, present.double())
    beyond = beyond / beyond.sum().clamp_min(1e-12) * rest
    whole = beyond.floor()
    left_over = rest - whole.sum()
    extra = present & (_rank_of_largest(beyond - whole) < left_over)
    return (guaranteed + whole + extra).long()


def draw_class_proportional(labels: Tensor, class_distribution: Tensor, total: int) -> Tensor:
    """Draws pixels so that each class is drawn in proportion to the class distribution.

    Without replacement within a class, unless the class has fewer pixels than its quota: then each of its
    pixels is drawn about equally often. Ignored pixels are never drawn, unless there are no others.

    Args:
        labels: (P,) integer class indices; anything outside 0...K-1 is ignored.
        class_distribution: (K,) δ.
        total: Number of pixels to draw.

    Returns:
        (total,) int64 positions in `labels`, ordered by class.

    Raises:
        ValueError: The labels have another shape, or there are none.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 255])
        >>> drawn = draw_class_proportional(labels, torch.tensor([0.5, 0.5]), total=4)
        >>> labels[drawn]
        tensor([0, 0, 1, 1])
    """
    if labels.ndim != 1:
        raise ValueError(f"labels must be (P,), got shape {tuple(labels.shape)}")
    if not len(labels):
        raise ValueError("there are no pixels to draw from")
    num_classes = len(class_distribution)
    valid = (labels >= 0) & (labels < num_classes)
    # Without any valid pixel all of them count as one class, which makes the draw uniform.
    labels = labels.long().masked_fill(~valid, num_classes).masked_fill(~valid.any(), 0)
    counts = class_counts(labels, num_classes, ignore_index=num_classes)
    quotas = class_quotas(counts > 0, class_distribution, total)

    # Sorted by class and shuffled within: the first pixels of each class are a draw without replacement.
    shuffled = _shuffled_within(labels)
    draw = torch.arange(total, device=labels.device)
    last = quotas.cumsum(0)
    drawn_class = torch.searchsorted(last, draw, right=True).clamp_max(num_classes - 1)
    rank = (draw - (last - quotas)[drawn_class]) % counts[drawn_class].clamp_min(1)
    return shuffled[(counts.cumsum(0) - counts)[drawn_class] + rank]


def draw_uniform(num_images: int, pixels_per_image: int, per_image: int, like: Tensor) -> Tensor:
    """Draws the same number of pixels from each image, without replacement where there are enough.

    Args:
        num_images: B.
        pixels_per_image: P pixels of an image.
        per_image: n pixels to draw from each.
        like: Tensor on the device to draw on.

    Returns:
        (B, n) int64 positions in the flattened batch, b · P + pixel.

    Raises:
        ValueError: There are no pixels.

    Example:
        >>> drawn = draw_uniform(2, pixels_per_image=4, per_image=4, like=torch.empty(0))
        >>> drawn.sort().values
        tensor([[0, 1, 2, 3],
                [4, 5, 6, 7]])
    """
    if pixels_per_image < 1:
        raise ValueError("there are no pixels to draw from")
    image = torch.arange(num_images, device=like.device).repeat_interleave(
        pixels_per_image, output_size=num_images * pixels_per_image
    )
    shuffled = _shuffled_within(image).reshape(num_images, pixels_per_image)
    draw = torch.arange(per_image, device=like.device) % pixels_per_image
    return shuffled[:, draw]


def labels_of_crop(crop_labels: Tensor, size: tuple[int, int], per_image: int) -> Tensor:
    """Returns the labels that the authors' release remembers beside the pixels that it drew.

    It drew the pixels at random from the whole image. The labels are those of the crop, stretched over the
    grid of the whole image, and of them the first in reading order: they belong to other places. This is
    here to reproduce the release; for anything else use the labels at the drawn positions.

    Args:
        crop_labels: (B, h, w) integer labels of a crop.
        size: (H, W) of the grid of the whole image.
        per_image: n pixels that were drawn from each image.

    Returns:
        (B, n), repeated where the grid has fewer pixels.

    Raises:
        ValueError: The labels have another shape.

    Example:
        >>> labels_of_crop(torch.tensor([[[3, 7]]]), size=(2, 4), per_image=5)
        tensor([[3, 3, 7, 7, 3]])
    """
    if crop_labels.ndim != 3:
        raise ValueError(f"labels must be (B, h, w), got shape {tuple(crop_labels.shape)}")
    stretched = F.interpolate(crop_labels[:, None].float(), size).flatten(1)
    first = torch.arange(per_image, device=crop_labels.device) % stretched.shape[1]
    return stretched[:, first].to(crop_labels.dtype)


def _shuffled_within(group: Tensor) -> Tensor:
    """Returns the positions of (P,) groups, sorted by group and in random order within each."""
    # Integers are sorted by their digits, several times faster than floating-point numbers.
    return (group * 2**31 + torch.randint(2**31, group.shape, device=group.device)).argsort()


def _rank_of_largest(values: Tensor) -> Tensor:
    """Returns each entry's position in descending order, 0 for the largest."""
    return values.argsort(descending=True, stable=True).argsort()
