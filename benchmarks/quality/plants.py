"""Plants seen from above: leaves, the rosettes and weeds made of them, and how a leaf is painted."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator

from .texture import Floats


@dataclass(frozen=True)
class Leaf:
    """One leaf; lengths are in pixels, angles in radians.

    The half width at u in 0...1 along the blade is proportional to u^p (1 - u)^q, and is `width` at `peak`.

    Attributes:
        y: Row where the stalk begins.
        x: Column where the stalk begins.
        angle: Direction of growth, from the x axis toward the y axis.
        length: Length with the stalk.
        width: Largest half width.
        stalk: Fraction of the length without a blade.
        peak: Where the blade is broadest, 0...1.
        bend: Sideways displacement of the tip, as a fraction of the length.
        tone: Factor of the brightness.
    """

    y: float
    x: float
    angle: float
    length: float
    width: float
    stalk: float = 0.0
    peak: float = 0.5
    bend: float = 0.0
    tone: float = 1.0


def rosette(random: Generator, y: float, x: float, radius: float) -> list[Leaf]:
    """Returns a crop plant: 4 to 9 broad, stalked leaves around a center, the young ones on top."""
    count, first = int(random.integers(4, 10)), random.uniform(0, 2 * np.pi)
    leaves = []
    for index in range(count):
        angle = first + 2.4 * index + random.normal(0, 0.15)  # the golden angle, as leaves grow
        length = radius * (1 - 0.5 * index / count) * random.uniform(0.85, 1.1)
        width = length * random.uniform(0.2, 0.27)
        tone = random.uniform(0.85, 1.0) + 0.2 * index / count
        leaves.append(Leaf(y, x, angle, length, width, 0.25, 0.5, random.normal(0, 0.12), tone))
    return leaves


def weed(random: Generator, shape: int, y: float, x: float, radius: float) -> list[Leaf]:
    """Returns a weed: 0 narrow blades like grass, 1 feathery leaves, 2 small round leaves."""
    first = random.uniform(0, 2 * np.pi)
    tone = random.uniform(0.8, 1.15)
    leaves = []
    if shape == 0:
        for angle in random.uniform(0, 2 * np.pi, random.integers(4, 9)):
            length, bend = radius * random.uniform(0.8, 1.6), random.normal(0, 0.3)
            leaves.append(Leaf(y, x, angle, length, 0.7 + 0.05 * length, 0.0, 0.3, bend, tone))
    elif shape == 1:
        for index in range(int(random.integers(4, 7))):
            angle, length = first + 2.4 * index, radius * random.uniform(0.8, 1.2)
            leaves.append(Leaf(y, x, angle, length, 0.6 + 0.02 * length, 0.0, 0.5, 0.0, 0.9 * tone))
            for along in np.linspace(0.3, 0.95, 5):
                at = (y + along * length * np.sin(angle), x + along * length * np.cos(angle))
                part = 0.45 * length * (1.15 - along)
                for turn in (-0.9, 0.9):
                    leaves.append(Leaf(*at, angle + turn, part, 0.4 + 0.16 * part, 0.0, 0.6, 0.0, tone))
    else:
        for index in range(int(random.integers(2, 7))):
            length = 0.75 * radius * random.uniform(0.7, 1.1)
            angle = first + (np.pi * index if index < 2 else 2.4 * index)
            leaves.append(Leaf(y, x, angle, length, 0.34 * length, 0.3, 0.55, 0.0, tone))
    return leaves


class Stamp:
    """A leaf on the pixels of a picture of a given size.

    Attributes:
        leaf: The leaf.
        place: Slices of the part of the picture that the leaf can reach; empty outside the picture.
        along: (h, w) position along the leaf, 0 at its beginning and 1 at its tip.
        across: (h, w) position across the leaf in units of its largest half width.
        inside: (h, w) distance to the edge in pixels, positive inside, -inf before and behind the leaf.
    """

    def __init__(self, leaf: Leaf, size: tuple[int, int]) -> None:
        cos, sin = np.float32(np.cos(leaf.angle)), np.float32(np.sin(leaf.angle))
        margin = leaf.length * abs(leaf.bend) + leaf.width + 2
        vertical = _span(leaf.y, leaf.length * float(sin), margin, size[0])
        horizontal = _span(leaf.x, leaf.length * float(cos), margin, size[1])
        self.leaf = leaf
        self.place = (vertical, horizontal)
        down = np.arange(vertical.start, vertical.stop, dtype=np.float32)[:, None] - np.float32(leaf.y)
        right = np.arange(horizontal.start, horizontal.stop, dtype=np.float32)[None] - np.float32(leaf.x)
        self.along = (cos * right + sin * down) / np.float32(leaf.length)
        across = cos * down - sin * right - np.float32(leaf.bend * leaf.length) * self.along**2
        self.across = across / np.float32(leaf.width)

        blade = np.clip((self.along - leaf.stalk) / (1 - leaf.stalk), 0, 1)
        p, q = 1.6 * leaf.peak, 1.6 * (1 - leaf.peak)
        half = leaf.width * blade**p * (1 - blade) ** q / (leaf.peak**p * (1 - leaf.peak) ** q)
        if leaf.stalk:
            on_stalk = (self.along > 0) & (self.along < leaf.stalk + 0.1)
            half = np.maximum(half, np.where(on_stalk, 0.05 * leaf.length, 0))
        self.inside = np.where(half > 0, half - np.abs(across), -np.inf).astype(np.float32)

    @cached_property
    def alpha(self) -> Floats:
        """Coverage of each pixel, 0...1."""
        alpha: Floats = np.clip(self.inside + 0.5, 0, 1)
        return alpha

    def paint(self, image: Floats, color: Floats, sun: float) -> None:
        """Paints a bright midrib, side veins, one half toward the sun, and a shadow on what is below."""
        leaf = self.leaf
        shade = leaf.tone * (0.82 + 0.25 * self.along)
        shade = shade * (1 + 0.16 * np.sin(leaf.angle - sun) * np.sign(self.across))
        if leaf.width > 2.5:
            midrib = np.exp(-0.5 * (self.across * leaf.width / 0.7) ** 2)
            veins = np.sin(2 * np.pi * (5 * self.along - 0.9 * np.abs(self.across)))
            shade = shade * (1 + 0.22 * midrib + 0.05 * veins)
        under = np.clip(1 + self.inside / (1 + 0.08 * leaf.length), 0, 1)[..., None]
        below = image[self.place] * (1 - 0.25 * under)
        image[self.place] = below + self.alpha[..., None] * (shade[..., None] * color - below)


def _span(start: float, extent: float, margin: float, end: int) -> slice:
    """Returns the pixels from `start` to `start + extent`, with a margin, that lie in 0...end."""
    low = min(max(int(min(start, start + extent) - margin), 0), end)
    high = min(max(int(max(start, start + extent) + margin) + 1, low), end)
    return slice(low, high)
