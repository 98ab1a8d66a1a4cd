"""Sampling of images as a function of seed and iteration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import accumulate, count

import torch
from torch.utils.data import Sampler

from cpsl._internal.randomness import derive_seed
from cpsl.data.training import SeededIndex

Sampling = Callable[[int, int], SeededIndex]
"""Function of a seed and a position 0, 1, 2, ... in the endless sequence of samples."""


@dataclass(eq=False)
class SeededSampler(Sampler[list[SeededIndex]]):
    """Yields endless batches of `SeededIndex`, which depend on the seed and the number of the batch alone.

    By default all images are sampled once in each epoch, in another random order. The batches of all ranks
    together are the batch of a single rank. Each index has its own seed of the augmentation, so that the
    views depend neither on the number of workers nor on interruptions.

    Attributes:
        length: Number of images.
        batch_size: Images per batch of this rank.
        seed: Seed of order and augmentation.
        start: Number of the first batch.
        rank: Rank of this process.
        world_size: Number of ranks.
        sampling: Samples the images, such as `MixedSampling` or `RareClassSampling`; None samples each once
            per epoch.

    Raises:
        ValueError: length or batch_size is not positive.

    Example:
        >>> from itertools import islice
        >>> first = list(islice(SeededSampler(3, batch_size=2, seed=0), 4))
        >>> first[2:] == list(islice(SeededSampler(3, batch_size=2, seed=0, start=2), 2))
        True
        >>> sorted(item.index for batch in first[:3] for item in batch)
        [0, 0, 1, 1, 2, 2]
    """

    length: int
    batch_size: int
    seed: int
    _: KW_ONLY
    start: int = 0
    rank: int = 0
    world_size: int = 1
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("there are no images to sample")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        self._permutation = _Permutation(self.length)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        for batch in count(self.start):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [self._item(position) for position in range(first, first + self.batch_size)]

    def _item(self, position: int) -> SeededIndex:
        if self.sampling is not None:
            return self.sampling(self.seed, position)
        index = self._permutation(self.seed, position)
        return SeededIndex(index, derive_seed(self.seed, "draw", position))


@dataclass
class MixedSampling:
    """Samples images of several sources, joined one after the other, in the ratio of weights.

    In an epoch, which has as many samples as there are images, each source gets its share, at least one
    sample. A source goes through all its images, in random order, before it repeats one.

    Attributes:
        lengths: Number of images of each source.
        weights: Weight of each source, of any sum.

    Raises:
        ValueError: A source has no images or no positive weight, or the numbers of both differ.

    Example:
        >>> mixed = MixedSampling([90, 10], weights=[1, 1])
        >>> sum(mixed(0, position).index >= 90 for position in range(100))
        50
    """

    lengths: Sequence[int]
    weights: Sequence[float]
    shares: list[int] = field(init=False)
    """Samples of each source in an epoch."""

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.weights):
            raise ValueError(f"{len(self.lengths)} sources need as many weights, got {len(self.weights)}")
        if not (self.lengths and min(self.lengths) > 0):
            raise ValueError(f"each source needs images, got {list(self.lengths)}")
        if not all(0 < weight < float("inf") for weight in self.weights):  # NaN is refused too
            raise ValueError(f"weights must be positive and finite, got {list(self.weights)}")
        samples, total = sum(self.lengths), sum(self.weights)
        self.shares = [max(round(samples * weight / total), 1) for weight in self.weights]
        self._order = _Permutation(sum(self.shares))
        self._of_source = [_Permutation(length, f"source {i}") for i, length in enumerate(self.lengths)]
        self._first_slots = [0, *accumulate(self.shares)]
        self._first_images = [0, *accumulate(self.lengths)]

    def __call__(self, seed: int, position: int) -> SeededIndex:
        """Returns the image at a position of the sequence of a seed."""
        epoch, slot = position // sum(self.shares), self._order(seed, position)
        source = next(i for i, end in enumerate(self._first_slots[1:]) if slot < end)
        nth = epoch * self.shares[source] + slot - self._first_slots[source]
        index = self._first_images[source] + self._of_source[source](seed, nth)
        return SeededIndex(index, derive_seed(seed, "draw", position))


class _Permutation:
    """Endless sequence in which each epoch is a random permutation of 0...length - 1."""

    def __init__(self, length: int, *purpose: str) -> None:
        self._length, self._purpose = length, purpose
        self._epochs = dict[tuple[int, int], list[int]]()

    def __call__(self, seed: int, position: int) -> int:
        epoch, index = divmod(position, self._length)
        if (seed, epoch) not in self._epochs:
            generator = torch.Generator().manual_seed(derive_seed(seed, "order", *self._purpose, epoch))
            while len(self._epochs) > 1:  # two: samples of a source cross from one into the next
                del self._epochs[next(iter(self._epochs))]
            self._epochs[seed, epoch] = torch.randperm(self._length, generator=generator).tolist()
        return self._epochs[seed, epoch][index]
