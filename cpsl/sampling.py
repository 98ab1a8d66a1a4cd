"""Drawing of pixels from a batch: in proportion to the classes, or uniformly."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cpsl.alignment import class_counts
from cpsl.distributed import all_reduce_sum, rank_and_size


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
    _check_labels(labels)
    labels, counts = _with_counts(labels, len(class_distribution))
    return _draw(labels, class_distribution, total, counts[None], rank=0).positions


class SharedDraw(NamedTuple):
    """Pixels that several ranks have drawn together.

    Attributes:
        positions: (total,) int64 positions in the labels of this rank, of use where `mine` is true.
        mine: (total,) bool, whether the pixel is one of this rank's; true on exactly one rank.
    """

    positions: Tensor
    mine: Tensor


def draw_over_ranks(
    labels: Tensor,
    class_distribution: Tensor,
    total: int,
    group: dist.ProcessGroup | None = None,
) -> SharedDraw:
    """Draws pixels from the joined labels of all ranks, as `draw_class_proportional` draws from one's own.

    The quotas are those of one process that had all the labels: a class that only one rank sees is drawn
    as often as its share of the whole asks for. Of each class a rank gives in proportion to its pixels, by
    largest remainder. Only the numbers of pixels are exchanged, K + 1 from each rank.

    Args:
        labels: (P,) integer class indices; anything outside 0...K-1 is ignored. P may differ.
        class_distribution: (K,) δ, the same on every rank.
        total: Number of pixels to draw from all ranks together.
        group: None is the default group, or this process alone where there is none.

    Returns:
        The drawn pixels in one order for all ranks, by class.

    Example:
        >>> labels = torch.tensor([0, 1, 1])
        >>> drawn = draw_over_ranks(labels, torch.tensor([0.5, 0.5]), total=4)
        >>> labels[drawn.positions], drawn.mine
        (tensor([0, 0, 1, 1]), tensor([True, True, True, True]))
    """
    _check_labels(labels)
    rank, ranks = rank_and_size(group)
    labels, own = _with_counts(labels, len(class_distribution))
    counts = own.new_zeros(ranks, len(own))
    counts[rank] = own
    return _draw(labels, class_distribution, total, all_reduce_sum(counts, group), rank)


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


def _check_labels(labels: Tensor) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels must be (P,), got shape {tuple(labels.shape)}")
    if not len(labels):
        raise ValueError("there are no pixels to draw from")


def _with_counts(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns labels (P,) with K where they are ignored, and the pixels of each class and none (K + 1,)."""
    valid = (labels >= 0) & (labels < num_classes)
    labels = labels.long().masked_fill(~valid, num_classes)
    return labels, class_counts(labels, num_classes + 1, ignore_index=num_classes + 1)


def _draw(
    labels: Tensor, class_distribution: Tensor, total: int, counts: Tensor, rank: int
) -> SharedDraw:
    """Draws from the labels of one of R ranks what it has to give; `counts` (R, K + 1) are those of all."""
    # Without any valid pixel all of them count as one class, which makes the draw uniform.
    none_valid = counts[:, :-1].sum() == 0
    labels = labels.masked_fill(none_valid, 0)
    counts = torch.where(none_valid, counts.roll(1, dims=1), counts)[:, :-1]
    quotas = class_quotas(counts.sum(dim=0) > 0, class_distribution, total)
    blocks = _shares_of_ranks(quotas, counts).t().flatten()  # class by class, in each rank by rank

    # Sorted by class and shuffled within: the first pixels of each class are a draw without replacement.
    shuffled = _shuffled_within(labels)
    draw = torch.arange(total, device=labels.device)
    last = blocks.cumsum(0)
    block = torch.searchsorted(last, draw, right=True).clamp_max(len(last) - 1)
    drawn_class, giver = block // len(counts), block % len(counts)
    own = counts[rank]
    place = (draw - (last - blocks)[block]) % own[drawn_class].clamp_min(1)
    mine = giver == rank
    # Where another rank gives, this one has nothing: its first pixel stands in.
    return SharedDraw(shuffled[((own.cumsum(0) - own)[drawn_class] + place) * mine], mine)


def _shares_of_ranks(quotas: Tensor, counts: Tensor) -> Tensor:
    """Shares out the quotas (K,) among the ranks, in proportion to their pixels (R, K), as (R, K) int64."""
    share = quotas.double() * counts / counts.sum(dim=0).clamp_min(1)
    whole = share.floor()
    left_over = quotas - whole.sum(dim=0)
    return (whole + (_rank_of_largest(share - whole) < left_over)).long()


def _shuffled_within(group: Tensor) -> Tensor:
    """Returns the positions of (P,) groups, sorted by group and in random order within each."""
    # Integers are sorted by their digits, several times faster than floating-point numbers.
    return (group * 2**31 + torch.randint(2**31, group.shape, device=group.device)).argsort()


def _rank_of_largest(values: Tensor) -> Tensor:
    """Returns each entry's position in descending order along the first axis, 0 for the largest."""
    return values.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
