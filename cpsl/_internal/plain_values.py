"""Plain Python values, which a file can hold without code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_stored(value: Any, stored: Any) -> bool:
    """Returns whether a value equals the one that a file holds, whatever the device of tensors."""
    if isinstance(value, Tensor):
        return isinstance(stored, Tensor) and torch.equal(value.cpu(), stored)
    if isinstance(value, Mapping):
        return isinstance(stored, Mapping) and all(is_stored(value[key], stored.get(key)) for key in value)
    if isinstance(value, list | tuple):
        same_length = isinstance(stored, list | tuple) and len(stored) == len(value)
        return same_length and all(map(is_stored, value, stored))
    return bool(value == stored)


def plain(value: Any) -> Any:
    """Converts a value to plain Python types, which a file can store without code."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # a subclass, such as an enumeration, is code
    raise ValueError(
        f"the network cannot be saved: its arguments contain a {type(value).__name__}, not a plain value"
    )
