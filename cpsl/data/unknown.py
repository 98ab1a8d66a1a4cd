"""The error of labels with values that have no class."""

from collections.abc import Mapping


class UnknownValuesError(ValueError):
    """A label holds values without a class.

    Attributes:
        values: Pixels of each of these values; colors are written "#rrggbb".
        pixels: Number of pixels of the label.

    Example:
        >>> error = UnknownValuesError("a.png has the unknown id 7", {7: 2}, 8)
        >>> str(error), error.values, error.pixels
        ('a.png has the unknown id 7', {7: 2}, 8)
    """

    # The message alone is enough, as loaders raise errors of their workers again with nothing else.
    def __init__(self, message: str, values: Mapping[int | str, int] | None = None, pixels: int = 0) -> None:
        super().__init__(message)
        self.values: dict[int | str, int] = dict(values or {})
        self.pixels = pixels
