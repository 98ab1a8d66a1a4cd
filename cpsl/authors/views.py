"""Strong views with the label geometry of the authors' code."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpsl.data.views import MOVES, Move, StrongAugmentation, move
from cpsl.geometry import View


@dataclass(frozen=True)
class AuthorsStrongAugmentation(StrongAugmentation):
    """`StrongAugmentation` with the label geometry of the authors' code; the images are the same.

    Attributes:
        fixed_label_order: Labels are transformed in the order flip, shear x, shear y, translate x, translate
            y, rotate, and only by the last of two operations of one kind, unlike the image.
        stretched_label_translation: Labels are translated horizontally by W/H times as much as the image.

    Example:
        >>> exact = AuthorsStrongAugmentation().label_view(View.whole((4, 8)), [("translate_x", 0.25)])
        >>> authors = AuthorsStrongAugmentation(stretched_label_translation=True)
        >>> stretched = authors.label_view(View.whole((4, 8)), [("translate_x", 0.25)])
        >>> exact.matrix[0, 0, 2], stretched.matrix[0, 0, 2]
        (tensor(2.), tensor(4.))
    """

    fixed_label_order: bool = False
    stretched_label_translation: bool = False

    def label_view(self, weak: View, moves: Sequence[Move]) -> View:
        """Returns the view of the labels, given the operations that transformed the image.

        Args:
            weak: View before the operations.
            moves: Operations in the order in which they were applied; see `move`.
        """
        if self.fixed_label_order:
            last = dict(moves)
            moves = [(name, last[name]) for name in MOVES if name in last]
        if self.stretched_label_translation:
            stretch = weak.size[1] / weak.size[0]
            moves = [(n, by * stretch if n == "translate_x" else by) for n, by in moves]
        return move(weak, moves)
