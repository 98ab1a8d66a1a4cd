"""State that keeps its precision in half-precision networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Convert = Callable[[Tensor], Tensor]


class FullPrecision(nn.Module):
    """A module whose parameters and buffers are never converted to a lower precision.

    `.to(torch.bfloat16)` and `.half()` of a network that contains it do not change them. In half precision a
    moving average would not change: its increments are smaller than the spacing of the numbers.
    """

    def _apply(self, fn: Convert, recurse: bool = True) -> "FullPrecision":
        super()._apply(keep_precision(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32, and keeps float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def keep_precision(convert: Convert) -> Convert:
    """Wraps a conversion of tensors such that it never lowers their precision; devices change as before.

    Example:
        >>> convert = keep_precision(lambda tensor: tensor.to(torch.float32))
        >>> dtypes = torch.float64, torch.float16, torch.int64
        >>> [convert(torch.zeros(1, dtype=dtype)).dtype for dtype in dtypes]
        [torch.float64, torch.float32, torch.int64]
    """

    def converted(tensor: Tensor) -> Tensor:
        new = convert(tensor)
        higher = tensor.is_floating_point() and torch.promote_types(tensor.dtype, new.dtype) == new.dtype
        return new if higher or new.dtype == tensor.dtype else tensor.to(new.device)

    return converted


def is_low_precision(tensor: Tensor) -> bool:
    """Returns whether a tensor is floating point with fewer than 32 bits."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
