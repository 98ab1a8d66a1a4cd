"""Tables from the numbers that labels store to class indices."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.unknown import UnknownValuesError

Stored = npt.NDArray[np.integer]
IdTable = npt.NDArray[np.int16]
NO_CLASS = -1  # in an `IdTable`: this stored value is unknown


def id_table(ids: Mapping[int, int]) -> IdTable:
    """Returns the class index or 255 of each stored value 0...65535, for `to_classes`."""
    table = np.full(65536, NO_CLASS, np.int16)
    for stored, index in ids.items():
        if not 0 <= stored < len(table):
            raise ValueError(f"a label file holds numbers in 0...65535, not the id {stored}")
        table[stored] = index
    return table


def to_classes(stored: Stored, table: IdTable, path: Path, *, ignore_unknown: bool = False) -> Tensor:
    """Converts stored values of a file to class indices uint8, 255 where ignored.

    Raises:
        UnknownValuesError: Values are not in the table, and are not ignored.
    """
    inside = stored if stored.dtype.kind == "u" and stored.itemsize <= 2 else stored.clip(0, len(table) - 1)
    classes = table[inside]
    if inside is not stored:
        classes[stored != inside] = NO_CLASS
    if ignore_unknown:
        classes[classes == NO_CLASS] = IGNORE_INDEX
    if classes.min(initial=0) == NO_CLASS:
        unknown, counts = np.unique(stored[classes == NO_CLASS], return_counts=True)
        listed = ", ".join(f"{i} ({n} pixels)" for i, n in zip(unknown[:8], counts[:8], strict=True))
        known = np.flatnonzero(table != NO_CLASS)
        raise UnknownValuesError(
            f"{path} has {len(unknown)} unknown id(s): {listed}. The {len(known)} known ids are "
            f"{', '.join(map(str, known[:40]))}{', ...' if len(known) > 40 else ''}",
            dict(zip(unknown.tolist(), counts.tolist(), strict=True)),
            stored.size,
        )
    return torch.from_numpy(classes.astype(np.uint8))
