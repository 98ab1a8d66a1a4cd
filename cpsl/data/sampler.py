"""The order in which images are drawn, as a function of the seed and the iteration alone."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from cpsl.data.training import Draw
from cpsl.randomness import derive_seed


class DrawSampler(Sampler[list[Draw]]):
    """Yields endless batches of draws, starting at any iteration as if it had run from the first.

    All images are drawn once in random order, then again in another order, and so on. The ranks share
    each batch: the batches of all of them together are those of one rank alone, whatever their number. Each
    draw carries the seed of its augmentation, so that neither the number of workers nor an interruption
    changes anything.

    Args:
        length: Number of images N.
        batch_size: Images a batch of this rank.
        seed: Seed of the run and what the draws are for.
        start: Batch to start with.
        rank: Rank of this process.
        world_size: Number of ranks.

    Raises:
        ValueError: There are no images, or none in a batch.

    Example:
        >>> from itertools import islice
        >>> first = list(islice(DrawSampler(3, batch_size=2, seed=0), 4))
        >>> first[2:] == list(islice(DrawSampler(3, batch_size=2, seed=0, start=2), 2))
        True
        >>> sorted(draw.index for batch in first[:3] for draw in batch)
        [0, 0, 1, 1, 2, 2]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if length < 1:
            raise ValueError("there are no images to draw from")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._permutation: list[int] = []

    def __iter__(self) -> Iterator[list[Draw]]:
        batch = self.start
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [self._draw(position) for position in range(first, first + self.batch_size)]
            batch += 1

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.length)
        return Draw(self._order(epoch)[place], derive_seed(self.seed, "draw", position))

    def _order(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._epoch = epoch
            self._permutation = torch.randperm(self.length, generator=generator).tolist()
        return self._permutation
