"""Generated pictures of crop fields from above with exact labels: 0 soil, 1 crop, 2 weed.

Merging 1 and 2 gives the two-class task soil and plant: `np.minimum(label, 1)`.

There are two styles, which differ like two public data sets by different cameras. Only the meaning of the
labels is the same.

- "robot": false color of a multispectral camera near the ground. Violet-gray soil, mint-colored plants that
  are bright in the near infrared, flat light, sharp, few large plants.
- "phone": natural color of a camera held by hand. Dry and wet brown soil, green plants, sun and hard shadows,
  blur, many small plants.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image

from .plants import Leaf, Stamp, rosette, weed
from .texture import Bytes, Floats, blur, jpeg, octaves, quantize, sensor_noise

SOIL, CROP, WEED = 0, 1, 2
CLASSES = ("soil", "crop", "weed")
Style = Literal["robot", "phone"]
Range = tuple[float, float]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """What a style draws its pictures from; lengths are in units of the picture's shorter side."""

    soils: tuple[Color, ...]
    leaves: tuple[Color, ...]
    crop_radius: Range
    weed_radius: Range
    row_spacing: Range
    row_angle: float  # standard deviation, radians
    coverage: Range  # of all plants, as a fraction of the picture
    crop_share: Range  # of the plants' area
    relief: Range  # contrast of the soil's clods
    shadow: Range
    blur: Range  # pixels


LOOKS: dict[Style, Look] = {
    "robot": Look(
        soils=((0.43, 0.37, 0.50), (0.38, 0.34, 0.43), (0.47, 0.40, 0.52)),
        leaves=((0.55, 0.85, 0.76), (0.50, 0.78, 0.76), (0.62, 0.86, 0.70)),
        crop_radius=(0.13, 0.20),
        weed_radius=(0.05, 0.12),
        row_spacing=(0.50, 0.65),
        row_angle=0.06,
        coverage=(0.07, 0.15),
        crop_share=(0.45, 0.75),
        relief=(0.05, 0.10),
        shadow=(0.05, 0.18),
        blur=(0.2, 0.5),
    ),
    "phone": Look(
        soils=((0.47, 0.37, 0.27), (0.36, 0.27, 0.20), (0.56, 0.47, 0.36), (0.42, 0.30, 0.22)),
        leaves=((0.30, 0.47, 0.16), (0.38, 0.52, 0.22), (0.22, 0.38, 0.17), (0.46, 0.55, 0.24)),
        crop_radius=(0.055, 0.095),
        weed_radius=(0.022, 0.06),
        row_spacing=(0.20, 0.32),
        row_angle=0.7,
        coverage=(0.08, 0.17),
        crop_share=(0.5, 0.8),
        relief=(0.12, 0.26),
        shadow=(0.35, 0.65),
        blur=(0.5, 1.3),
    ),
}


def field(style: Style, random: Generator, size: tuple[int, int] = (240, 320)) -> tuple[Bytes, Bytes]:
    """Draws one picture.

    Args:
        style: "robot" or "phone".
        random: Source of all random numbers.
        size: Height and width in pixels, at least 64 each.

    Returns:
        The image (H, W, 3) uint8 and its label (H, W) uint8 of 0 soil, 1 crop, 2 weed.

    Raises:
        ValueError: The style is unknown or the size too small.

    Example:
        >>> image, label = field("phone", np.random.default_rng(0), (96, 128))
        >>> image.shape, np.unique(label).tolist()
        ((96, 128, 3), [0, 1, 2])
    """
    if style not in LOOKS:
        raise ValueError(f"style must be one of {', '.join(LOOKS)}, got {style!r}")
    if min(size) < 64:
        raise ValueError(f"size must be at least (64, 64), got {size}")
    look = LOOKS[style]
    sun = random.uniform(0, 2 * np.pi)  # the direction in which shadows fall
    label = np.zeros(size, np.uint8)
    plants = list(_grow(look, random, label))
    image = _soil(look, random, size, sun)
    image *= _shade([leaf for _, leaves in plants for leaf in leaves], look, random, sun, size)[..., None]
    base = np.array(look.leaves[random.integers(len(look.leaves))], np.float32)
    for kind, leaves in plants:
        # Species differ a little in color, plants too; shape has to tell them apart.
        color = base * np.exp(random.normal(0, 0.06, 3)) * (1.0 if kind == CROP else random.uniform(0.9, 1.1))
        for leaf in leaves:
            leaf.paint(image, color.astype(np.float32), sun)

    return _photograph(image, look, style, random), label


def fields(
    style: Style, count: int, size: tuple[int, int] = (240, 320), seed: int = 0
) -> Iterator[tuple[Bytes, Bytes]]:
    """Yields `count` images and labels of one style; picture i depends on the style, the seed and i only.

    Example:
        >>> [label.shape for _, label in fields("robot", 2, (64, 80))]
        [(64, 80), (64, 80)]
    """
    for index in range(count):
        yield field(style, np.random.default_rng([seed, index, list(LOOKS).index(style)]), size)


def write_fields(
    folder: Path, style: Style, count: int, size: tuple[int, int] = (240, 320), seed: int = 0
) -> None:
    """Writes `images/NNNN.png` and `labels/NNNN.png` (8-bit gray, the class indices) into a folder."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, (image, label) in enumerate(fields(style, count, size, seed)):
        Image.fromarray(image).save(folder / "images" / f"{index:04}.png")
        Image.fromarray(label).save(folder / "labels" / f"{index:04}.png")


def _grow(look: Look, random: Generator, label: Bytes) -> Iterator[tuple[int, list[Stamp]]]:
    """Yields plants and writes them into the label until they cover what the look asks for.

    Crop grows along rows, weeds in groups of one kind.
    """
    size, side, target = label.shape, min(label.shape), random.uniform(*look.coverage)

    def plant(kind: int, leaves: list[Leaf]) -> tuple[int, list[Stamp]]:
        stamps = [Stamp(leaf, (size[0], size[1])) for leaf in leaves]
        for stamp in stamps:
            label[stamp.place][stamp.alpha > 0.5] = kind
        return kind, stamps

    def covered() -> float:
        return np.count_nonzero(label) / label.size

    radius = side * random.uniform(*look.crop_radius)
    crop_target = target * random.uniform(*look.crop_share)
    for y, x in _rows(look, random, (size[0], size[1]), radius):
        if covered() >= crop_target:
            break
        yield plant(CROP, rosette(random, y, x, radius * np.exp(random.normal(0, 0.2))))

    kinds = random.permutation(3)[: random.integers(1, 4)]
    while covered() < target:
        center, spread = random.uniform(0, 1, 2) * size, side * random.uniform(0.04, 0.25)
        shape = int(random.choice(kinds))
        for _ in range(1 + int(random.geometric(0.3))):
            y, x = center + random.normal(0, spread, 2)
            if covered() < target and 0 <= y < size[0] and 0 <= x < size[1]:
                yield plant(WEED, weed(random, shape, y, x, side * random.uniform(*look.weed_radius)))


def _rows(look: Look, random: Generator, size: tuple[int, int], radius: float) -> list[tuple[float, float]]:
    """Returns positions of crop plants on parallel rows, with jitter, in random order."""
    reach, side = float(np.hypot(*size)), min(size)
    between, angle = side * random.uniform(*look.row_spacing), random.normal(0, look.row_angle)
    apart = radius * random.uniform(1.5, 2.1)
    row, step = np.meshgrid(np.arange(-reach, reach, between), np.arange(-reach, reach, apart))
    row = row + random.uniform(0, between) + random.normal(0, 0.1 * radius, row.shape)
    step = step + random.normal(0, 0.2 * apart, row.shape)
    y = size[0] / 2 + step * np.cos(angle) + row * np.sin(angle)
    x = size[1] / 2 - step * np.sin(angle) + row * np.cos(angle)
    inside = (y > 0) & (y < size[0]) & (x > 0) & (x < size[1])
    positions = np.stack([y[inside], x[inside]], 1)
    return [(float(y), float(x)) for y, x in random.permutation(positions)]


def _soil(look: Look, random: Generator, size: tuple[int, int], sun: float) -> Floats:
    """Returns (H, W, 3) soil: a relief of clods lit by the sun, wet patches, stones and straw."""
    side = min(size)
    relief = octaves(size, random, random.uniform(0.06, 0.15) * side, 2.5)
    relief += 0.1 * blur(random.standard_normal(size, dtype=np.float32), 0.7)
    # What rises along the light's direction faces the sun and is bright.
    down, right = np.gradient(relief)
    slope = np.sin(sun) * down + np.cos(sun) * right
    tone = octaves(size, random, 0.6 * side, 0.1 * side)
    contrast = random.uniform(*look.relief)
    light = 1 + contrast * (0.5 * relief + slope / (slope.std() + 1e-6)) + 0.08 * tone
    color = np.array(look.soils[random.integers(len(look.soils))], np.float32)
    color = color * np.exp(random.normal(0, 0.05, 3)) * random.uniform(0.85, 1.15)
    hue = octaves(size, random, 0.4 * side, 2)[..., None] * random.normal(0, 0.02, 3)
    image = (light[..., None] * color * (1 + hue)).astype(np.float32)
    if random.random() < 0.5:
        wet = 1 / (1 + np.exp(-6 * (octaves(size, random, 0.5 * side, 4) - random.uniform(0.2, 1.2))))
        image *= (1 - 0.35 * wet)[..., None]
    stones = random.integers(0, 40) if random.random() < 0.7 else 0
    for _ in range(stones):
        _pebble(image, random, side, sun)
    for _ in range(random.integers(0, 25) if random.random() < 0.6 else 0):
        y, x = random.uniform(0, 1, 2) * size
        length, pale = side * random.uniform(0.03, 0.15), color * 1.1 + 0.18
        straw = Leaf(y, x, random.uniform(0, 2 * np.pi), length, 0.9, bend=random.normal(0, 0.1))
        Stamp(straw, size).paint(image, (pale * random.uniform(0.8, 1.2)).astype(np.float32), sun)
    soil: Floats = np.maximum(image, 0.02)
    return soil


def _pebble(image: Floats, random: Generator, side: int, sun: float) -> None:
    """Paints a stone in the color of a brighter or darker, grayer soil, with a shadow away from the sun."""
    radius, squeeze, angle = side * random.gamma(2, 0.006), random.uniform(0.5, 1), random.uniform(0, np.pi)
    y, x = int(random.uniform(0, image.shape[0])), int(random.uniform(0, image.shape[1]))
    reach = int(2 * radius) + 2
    place = slice(max(0, y - reach), y + reach), slice(max(0, x - reach), x + reach)
    rows, columns = np.mgrid[place[0], place[1]].astype(np.float32)
    part = image[place]
    rows, columns = rows[: part.shape[0], : part.shape[1]] - y, columns[: part.shape[0], : part.shape[1]] - x

    def disk(down: float, right: float) -> Floats:
        a, b = rows - down, columns - right
        u, v = np.cos(angle) * b + np.sin(angle) * a, (np.cos(angle) * a - np.sin(angle) * b) / squeeze
        coverage: Floats = np.clip(radius - np.hypot(u, v) + 0.5, 0, 1).astype(np.float32)
        return coverage[..., None]

    shadow = disk(0.4 * radius * np.sin(sun), 0.4 * radius * np.cos(sun))
    part *= 1 - 0.4 * shadow
    color = part.mean((0, 1))
    gray = (0.5 * color + 0.5 * color.mean()) * random.uniform(0.8, 1.7)
    lit = 1 - 0.25 * ((np.sin(sun) * rows + np.cos(sun) * columns) / (radius + 1))[..., None]
    part += disk(0, 0) * (gray * lit - part)


def _shade(leaves: list[Stamp], look: Look, random: Generator, sun: float, size: tuple[int, int]) -> Floats:
    """Returns the fraction of light left on the soil: shadows away from the sun, longer below long leaves."""
    side = min(size)
    strength, length = random.uniform(*look.shadow), side * random.uniform(0.01, 0.035)
    shadow = np.zeros(size, np.float32)
    for stamp in leaves:
        leaf = stamp.leaf
        for part in (0.0, 0.5, 1.0):
            away = part * length * min(1.0, 10 * leaf.length / side)
            cast = Stamp(replace(leaf, y=leaf.y + away * np.sin(sun), x=leaf.x + away * np.cos(sun)), size)
            shadow[cast.place] = np.maximum(shadow[cast.place], cast.alpha)
    light: Floats = 1 - strength * blur(shadow, 0.8)
    return light


def _photograph(image: Floats, look: Look, style: Style, random: Generator) -> Bytes:
    """Returns what the camera of the style stores."""
    size = (image.shape[0], image.shape[1])
    if style == "phone":
        if random.random() < 0.4:
            # Someone's or something's shadow across the picture, bluish as the sky's light.
            edge = octaves(size, random, 1.2 * max(size), 0.3 * max(size)) - random.uniform(0.3, 1.2)
            dark = blur((edge > 0).astype(np.float32), random.uniform(1, 4))[..., None]
            image = image * (1 - dark * np.array([0.55, 0.5, 0.42], np.float32))
        image = image * np.exp(random.normal((0.05, 0, -0.05), 0.06)).astype(np.float32)
        image = image * random.uniform(0.8, 1.35)
        image = blur(image, random.uniform(*look.blur))
        image = sensor_noise(image, random, shot=1e-4, read=random.uniform(0.003, 0.012))
        return jpeg(quantize(image), int(random.integers(55, 90)))
    # The filter in front of a multispectral sensor adds a tint; no compression, fine grain.
    image = image * random.uniform(0.92, 1.08)
    image = blur(image, random.uniform(*look.blur))
    return quantize(sensor_noise(image, random, shot=2e-4, read=0.01))
