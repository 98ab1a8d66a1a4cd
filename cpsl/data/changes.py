"""What a strong view changes, as numbers: drawn once, rendered image by image or as a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from cpsl.geometry import View


class ColorOperation(IntEnum):
    """Operations on the colours of an image, and what their amount means.

    Enhancements blend the image with one that has none of it: 0 shows that one, 1 the image as it is.
    """

    AUTOCONTRAST = 0
    """Stretches each channel to 0...255; takes no amount."""
    BRIGHTNESS = 1
    """Enhancement against black."""
    COLOR = 2
    """Enhancement against the image in grey."""
    CONTRAST = 3
    """Enhancement against the image's mean grey."""
    EQUALIZE = 4
    """Flattens each channel's histogram; takes no amount."""
    HUE = 5
    """Turns the hue by so many 255ths of its circle."""
    IDENTITY = 6
    """Changes nothing; takes no amount."""
    POSTERIZE = 7
    """Keeps so many bits of each value, 1...8."""
    SHARPNESS = 8
    """Enhancement against the image smoothed."""
    SOLARIZE = 9
    """Inverts values from so many on, 0...256."""


@dataclass(frozen=True)
class StrongChanges:
    """What makes strong images of weak ones, for a batch.

    Attributes:
        blurred: (B,) bool, whether an image is blurred, which comes first.
        operations: (B, 4 + n) int64, the `ColorOperation`s in their order: four of colour jitter, which are
            BRIGHTNESS, COLOR, CONTRAST, HUE or IDENTITY, then n of RandAugment, which are any but HUE.
        amounts: (B, 4 + n) float32, how much each operation changes.
        view: Geometry of the strong image as a view of the weak one, with the cutout; comes last.
        blur: Radius of the Gaussian blur in pixels, one for all.

    Example:
        >>> import numpy as np
        >>> from cpsl.data import StrongAugmentation
        >>> weak, random = View.whole((64, 128)), np.random.default_rng(0)
        >>> drawn = [StrongAugmentation().draw_changes(weak, random)[0] for _ in range(3)]
        >>> changes = StrongChanges.stack(drawn)
        >>> len(changes), changes.operations.shape
        (3, torch.Size([3, 6]))
    """

    blurred: Tensor
    operations: Tensor
    amounts: Tensor
    view: View
    blur: float

    @staticmethod
    def stack(changes: Sequence["StrongChanges"]) -> "StrongChanges":
        """Joins changes into a batch.

        Raises:
            ValueError: The radii of the blur, or the sizes of the views, differ.
        """
        radii = {part.blur for part in changes}
        if len(radii) != 1:
            raise ValueError(f"images of one batch must have one blur, got {sorted(radii)}")
        return StrongChanges(
            torch.cat([part.blurred for part in changes]),
            torch.cat([part.operations for part in changes]),
            torch.cat([part.amounts for part in changes]),
            View.stack([part.view for part in changes]),
            changes[0].blur,
        )

    def __len__(self) -> int:
        return len(self.blurred)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StrongChanges":
        """Moves the changes to a device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "StrongChanges":
        """Returns a copy in page-locked memory, from which a GPU copies without waiting."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> "StrongChanges":
        return replace(
            self,
            blurred=function(self.blurred),
            operations=function(self.operations),
            amounts=function(self.amounts),
            view=function(self.view),
        )
