"""Sampling of pixels from a batch: in proportion to the class distribution, or uniformly."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import all_reduce_sum, rank_and_size
from cpsl.alignment import class_counts


def class_quotas(present: Tensor, class_distribution: Tensor, total: int) -> Tensor:
    """Distributes a number of samples over the classes that are present.

        quota_k = total · δ_k / Σ_{j present} δ_j

    as (K,) int64, rounded by largest remainder, at least one per class that is present. If there are fewer
    samples than classes, the most frequent classes get one each.

    Args:
        present: (K,) bool.
        class_distribution: (K,) δ, non-negative.
        total: Number of samples.

    Raises:
        ValueError: The shapes differ, or `total` is negative.

    Example:
        >>> class_quotas(torch.tensor([True, True, False]), torch.tensor([0.6, 0.0, 0.4]), total=8)
        tensor([7, 1, 0])
    """
    check_shape("present", present, "K")
    check_shape("class_distribution", class_distribution, len(present))
    if total < 0:
        raise ValueError(f"total must be 0 or more, got {total}")
    share = class_distribution.double() * present
    # If δ is zero for all classes that are present, they get equal shares.
    share = torch.where(share.sum() > 0, share, present.double())
    share = share / share.sum().clamp_min(1e-12) * total

    guaranteed = present & (_rank_of_largest(share.masked_fill(~present, -1)) < total)
    rest = total - guaranteed.sum()
    beyond = (share - 1).clamp_min(0)
    # These may all be zero, for example if there are as many samples as classes.
    beyond = torch.where(beyond.sum() > 0, beyond, present.double())
    beyond = beyond / beyond.sum().clamp_min(1e-12) * rest
    whole = beyond.floor()
    left_over = rest - whole.sum()
    extra = present & (_rank_of_largest(beyond - whole) < left_over)
    return (guaranteed + whole + extra).long()


def sample_class_proportional(labels: Tensor, class_distribution: Tensor, total: int) -> Tensor:
    """Samples pixels in proportion to the class distribution, and orders them by class.

    Without replacement within a class. If a class has fewer pixels than its quota, its pixels are repeated
    about equally often. Ignored pixels are sampled only if there are no valid ones.

    Args:
        labels: (P,) integer class indices; values outside 0...K-1 are ignored.
        class_distribution: (K,) δ.
        total: Number of samples.

    Returns:
        (total,) int64 positions in `labels`.

    Raises:
        ValueError: The labels have another shape or are empty.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 255])
        >>> positions = sample_class_proportional(labels, torch.tensor([0.5, 0.5]), total=4)
        >>> labels[positions]
        tensor([0, 0, 1, 1])
    """
    labels, counts = _with_counts(labels, len(class_distribution))
    return _sample(labels, class_distribution, total, counts[None], rank=0).positions


class RankSample(NamedTuple):
    """Pixels that several ranks sampled together.

    Attributes:
        positions: (total,) int64 positions in the labels of this rank, meaningful where `mine` is true.
        mine: (total,) bool, whether the pixel belongs to this rank; true on exactly one rank.
    """

    positions: Tensor
    mine: Tensor


def sample_across_ranks(
    labels: Tensor, class_distribution: Tensor, total: int, group: dist.ProcessGroup | None = None
) -> RankSample:
    """Samples pixels from the joined labels of all ranks; see `sample_class_proportional`.

    The quotas equal those of one process with all labels. Each class is sampled from the ranks in proportion
    to their pixels of it, by largest remainder. The ranks exchange their K + 1 pixel counts only, and get
    the pixels in the same order.

    Args:
        labels: (P,) integer class indices; values outside 0...K-1 are ignored. P may differ between ranks.
        class_distribution: (K,) δ, equal on all ranks.
        total: Number of samples from all ranks together.
        group: Process group; None is the default group, or this process if there is none.

    Raises:
        ValueError: The labels have another shape or are empty.

    Example:
        >>> labels = torch.tensor([0, 1, 1])
        >>> sample = sample_across_ranks(labels, torch.tensor([0.5, 0.5]), total=4)
        >>> labels[sample.positions], sample.mine
        (tensor([0, 0, 1, 1]), tensor([True, True, True, True]))
    """
    rank, ranks = rank_and_size(group)
    labels, own = _with_counts(labels, len(class_distribution))
    counts = own.new_zeros(ranks, len(own))
    counts[rank] = own
    return _sample(labels, class_distribution, total, all_reduce_sum(counts, group), rank)


def sample_uniform(num_images: int, pixels_per_image: int, per_image: int, like: Tensor) -> Tensor:
    """Samples n pixels from each of B images of P pixels, without replacement if there are enough.

    Args:
        num_images: B.
        pixels_per_image: P.
        per_image: n.
        like: Tensor on the device of the result.

    Returns:
        (B, n) int64 positions in the flattened batch, b · P + pixel.

    Raises:
        ValueError: There are no pixels.

    Example:
        >>> positions = sample_uniform(2, pixels_per_image=4, per_image=4, like=torch.empty(0))
        >>> positions.sort().values
        tensor([[0, 1, 2, 3],
                [4, 5, 6, 7]])
    """
    if pixels_per_image < 1:
        raise ValueError("there are no pixels to sample")
    image = torch.arange(num_images, device=like.device)[:, None].expand(-1, pixels_per_image).flatten()
    shuffled = _shuffled_within(image).reshape(num_images, pixels_per_image)
    first = torch.arange(per_image, device=like.device) % pixels_per_image
    return shuffled[:, first]


def pixels_at(maps: Tensor, indices: Tensor) -> Tensor:
    """Returns the L2-normalized vectors (N, C) of a map (B, C, h, w) at positions in the flattened batch."""
    pixels = maps.shape[2] * maps.shape[3]
    image, pixel = indices // pixels, indices % pixels
    return F.normalize(maps.flatten(2)[image, :, pixel].float(), dim=1)


def _with_counts(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns labels (P,) with K for ignored pixels, and the number of pixels of each label (K + 1,)."""
    check_shape("labels", labels, "P")
    if not len(labels):
        raise ValueError("there are no pixels to sample")
    labels = labels.long()  # uint8 could not be compared with 256
    labels = labels.masked_fill((labels < 0) | (labels >= num_classes), num_classes)
    return labels, class_counts(labels, num_classes + 1, ignore_index=num_classes + 1)


def _sample(labels: Tensor, class_distribution: Tensor, total: int, counts: Tensor, rank: int) -> RankSample:
    """Samples from the labels of one of R ranks, given the pixel counts (R, K + 1) of all ranks."""
    # Without a valid pixel all pixels are treated as one class, which makes the sampling uniform.
    none_valid = counts[:, :-1].sum() == 0
    labels = labels.masked_fill(none_valid, 0)
    counts = torch.where(none_valid, counts.roll(1, dims=1), counts)[:, :-1]
    quotas = class_quotas(counts.sum(dim=0) > 0, class_distribution, total)
    blocks = _shares_of_ranks(quotas, counts).t().flatten()  # (K · R,), ordered by class, then by rank

    # Shuffled within each class, so that the first pixels of a class are a sample without replacement.
    shuffled = _shuffled_within(labels)
    sample = torch.arange(total, device=labels.device)
    ends = blocks.cumsum(0)
    block = torch.searchsorted(ends, sample, right=True).clamp_max(len(ends) - 1)
    sampled_class, owner = block // len(counts), block % len(counts)
    own = counts[rank]
    within_class = (sample - (ends - blocks)[block]) % own[sampled_class].clamp_min(1)
    mine = owner == rank
    # Pixels of other ranks get position 0, which is never read.
    positions = ((own.cumsum(0) - own)[sampled_class] + within_class) * mine
    return RankSample(shuffled[positions], mine)


def _shares_of_ranks(quotas: Tensor, counts: Tensor) -> Tensor:
    """Distributes quotas (K,) over the ranks in proportion to their pixels (R, K), as (R, K) int64."""
    share = quotas.double() * counts / counts.sum(dim=0).clamp_min(1)
    whole = share.floor()
    left_over = quotas - whole.sum(dim=0)
    return (whole + (_rank_of_largest(share - whole) < left_over)).long()


def _shuffled_within(group: Tensor) -> Tensor:
    """Returns the positions of (P,) groups, sorted by group and in random order within each."""
    # Sorting integers is several times faster than sorting floating-point numbers.
    return (group * 2**31 + torch.randint(2**31, group.shape, device=group.device)).argsort()


def _rank_of_largest(values: Tensor) -> Tensor:
    """Returns each entry's position in descending order along the first axis, 0 for the largest."""
    return values.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
