"""Choice of a few images that show all classes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

EXAMPLES = 6
"""Largest number of images that are chosen."""


class ClassExamples:
    """Chooses images that show all classes, while the images of a data set are counted one by one.

    It keeps the image with the largest share of each class, so that its memory does not grow with the images.

    Args:
        classes: Number K of classes.

    Example:
        >>> examples = ClassExamples(classes=2)
        >>> for index, counts in enumerate([[10, 0], [8, 2], [1, 9]]):
        ...     examples.add(index, np.array(counts))
        >>> examples.choose(usable=[0, 1, 2, 3], count=2)
        [0, 2]
    """

    def __init__(self, classes: int) -> None:
        self._largest = np.zeros(classes)
        self._index_of = np.full(classes, -1)
        self._shares: dict[int, npt.NDArray[np.float64]] = {}

    def add(self, index: int, counts: npt.NDArray[np.int64]) -> None:
        """Counts an image: the pixels of each class, (K,)."""
        shares = counts / max(counts.sum(), 1)
        better = shares > self._largest
        if better.any():
            self._largest[better] = shares[better]
            self._index_of[better] = index
            self._shares[index] = shares
            for outdone in self._shares.keys() - set(self._index_of.tolist()):
                del self._shares[outdone]

    def choose(self, usable: Sequence[int], count: int = EXAMPLES) -> list[int]:
        """Returns indices in ascending order: images that show the most classes, then evenly spaced ones.

        Args:
            usable: Indices of all images that may be chosen, ascending; those that were added among them.
            count: Largest number of images.
        """
        # A class is shown if much of it is: a single pixel would not be noticed.
        shown = {i: set(np.flatnonzero((s > 0) & (s >= self._largest / 10))) for i, s in self._shares.items()}
        chosen, left = list[int](), set(np.flatnonzero(self._largest))
        while left and len(chosen) < count:
            best = max(sorted(shown), key=lambda index: len(shown[index] & left))
            chosen.append(best)
            left -= shown[best]
        others = [index for index in usable if index not in chosen]
        more = min(count - len(chosen), len(others))
        return sorted(chosen + [others[i * len(others) // more] for i in range(more)])
