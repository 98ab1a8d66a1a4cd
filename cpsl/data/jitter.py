"""Photometric augmentation: random brightness, contrast, saturation, hue and blur."""

from dataclasses import dataclass

import numpy as np

from cpsl.data.operations import Operation

_BLUR = (0.15, 1.15)  # standard deviation in pixels, as DAFormer's (Hoyer et al., 2022)


@dataclass(frozen=True)
class ColorJitter:
    """Samples changes of brightness, contrast, saturation and hue, in random order, and sometimes a blur.

    Attributes:
        strength: Largest relative change of brightness, contrast and saturation, 0...1.
        hue: Largest rotation of the hue as a fraction of the color circle, 0...0.5.
        blur: Probability of a Gaussian blur of 0.15 to 1.15 pixels.

    Raises:
        ValueError: An attribute is out of its range.

    Example:
        >>> jitter = ColorJitter(strength=0.4, hue=0.1)
        >>> sorted(name for name, amount in jitter.sample(np.random.default_rng(0)))
        ['brightness', 'contrast', 'hue', 'saturation']
    """

    strength: float
    hue: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        for name, largest in (("strength", 1), ("hue", 0.5), ("blur", 1)):
            if not 0 <= getattr(self, name) <= largest:  # NaN is refused too
                raise ValueError(f"{name} must lie in 0...{largest}, got {getattr(self, name)}")

    def sample(self, random: np.random.Generator) -> list[Operation]:
        """Samples operations on the appearance, see `cpsl.data.operations`."""
        factors = 1 + random.uniform(-self.strength, self.strength, 3)
        hue = int(random.uniform(-self.hue, self.hue) * 255)
        names = ("brightness", "contrast", "saturation", "hue")
        operations = list(zip(names, (*factors.tolist(), float(hue)), strict=True))
        operations = [operations[index] for index in random.permutation(len(operations))]
        if self.blur and random.random() < self.blur:
            operations.append(("blur", random.uniform(*_BLUR)))
        return operations
