"""Label spaces: the classes of a data set, their order, names and colours."""

from dataclasses import dataclass

IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelSpace:
    """The classes that a model tells apart, in the order of their indices.

    Attributes:
        names: K class names.
        palette: K colours (R, G, B), 0...255.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)
