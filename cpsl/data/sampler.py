"""Sampling of images as a function of seed and iteration."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import count

import torch
from torch.utils.data import Sampler

from cpsl._internal.randomness import derive_seed
from cpsl.data.training import SeededIndex


@dataclass(eq=False)
class SeededSampler(Sampler[list[SeededIndex]]):
    """Yields endless batches of `SeededIndex`, which depend on the seed and the number of the batch alone.

    In each epoch all images are sampled once, in another random order. The batches of all ranks together are
    the batch of a single rank. Each index has its own seed of the augmentation, so that the views depend
    neither on the number of workers nor on interruptions.

    Attributes:
        length: Number of images.
        batch_size: Images per batch of this rank.
        seed: Seed of order and augmentation.
        start: Number of the first batch.
        rank: Rank of this process.
        world_size: Number of ranks.

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

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("there are no images to sample")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        self._epoch, self._permutation = -1, list[int]()

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        for batch in count(self.start):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [self._item(position) for position in range(first, first + self.batch_size)]

    def _item(self, position: int) -> SeededIndex:
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._epoch = epoch
            self._permutation = torch.randperm(self.length, generator=generator).tolist()
        return SeededIndex(self._permutation[index], derive_seed(self.seed, "draw", position))
