"""The batches of the last iterations, so that one of these can be repeated."""

from collections.abc import Iterator
from typing import Any, TypeVar

B = TypeVar("B")


class BatchMemory:
    """Passes batches on and remembers those of the last iterations.

    Args:
        depth: Iterations that are remembered beside the current one.

    Example:
        >>> memory = BatchMemory(depth=1)
        >>> batches = memory.watch(iter("abcdef"))
        >>> for iteration in range(3):
        ...     memory.begin(iteration)
        ...     print(next(batches), next(batches))
        a b
        c d
        e f
        >>> memory.begin(1, again=True)
        >>> print(next(batches), next(batches))
        c d
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._iteration = 0
        self._again = False
        self._kept: list[dict[int, list[Any]]] = []
        self._turns: list[int] = []

    def watch(self, source: Iterator[B]) -> Iterator[B]:
        """Yields the batches of an endless source, or those of the iteration that is repeated."""
        place = len(self._kept)
        kept: dict[int, list[B]] = {}
        self._kept.append(kept)
        self._turns.append(0)
        while True:
            if not self._again:
                kept.setdefault(self._iteration, []).append(next(source))
            turn = self._turns[place]
            self._turns[place] += 1
            yield kept[self._iteration][turn]

    def begin(self, iteration: int, again: bool = False) -> None:
        """Begins an iteration, or one that is remembered again."""
        self._iteration, self._again = iteration, again
        self._turns = [0] * len(self._kept)
        if not again:
            for kept in self._kept:
                for old in [number for number in kept if number < iteration - self._depth]:
                    del kept[old]

    def names(self, iteration: int) -> list[str]:
        """Returns the images of an iteration's batches, as far as these tell."""
        batches = (batch for kept in self._kept for batch in kept.get(iteration, []))
        return [name for batch in batches for name in getattr(batch, "names", [])]
