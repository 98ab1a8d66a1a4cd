"""Colors for classes without colors of their own."""

import functools
import re
from collections.abc import Sequence

import torch

from cpsl.data.color import rgb_to_lab
from cpsl.data.labels import CITYSCAPES_19

STEP = 25.5
"""Distance of the values of red, green and blue from which colors are composed."""

LIGHTNESS, CHROMA = (35, 85), 80
"""Range of the lightness and upper limit of the chroma in CIELAB: neither dark, nor pale, nor garish."""

SYNONYMS = {
    "pavement": "sidewalk", "sign": "traffic sign", "sign symbol": "traffic sign", "tree": "vegetation",
    "trees": "vegetation", "pedestrian": "person", "bicyclist": "rider", "cyclist": "rider", "lorry": "truck",
    "motorbike": "motorcycle", "bike": "bicycle",
}  # fmt: skip
"""Other names of classes of Cityscapes."""

Color = tuple[int, int, int]


def class_colors(names: Sequence[str]) -> tuple[Color, ...]:
    """Returns a color for each class: that of Cityscapes for streets, else one unlike all others.

    A class whose name is one of Cityscapes, or a synonym of it, has the color that the field expects: roads
    are purple, skies blue. Upper and lower case, spaces, hyphens and underscores do not matter. If several
    classes mean the same, one of them has this color. Each further color is the one whose smallest distance
    to those before it, to black and to white is largest, in CIELAB (after Glasbey et al., 2007).

    Args:
        names: K class names, at most 255.

    Raises:
        ValueError: There are more names.

    Example:
        >>> class_colors(["Road", "tree", "soil", "crop"])
        ((128, 64, 128), (107, 142, 35), (255, 102, 51), (0, 178, 255))
    """
    if len(names) > 255:
        raise ValueError(f"there are colors for at most 255 classes, got {len(names)}")
    keys = [_key(name) for name in names]
    index_of: dict[Color, int] = {}
    # The name of Cityscapes itself has its color before any synonym.
    for colors in (_street_colors(), _synonym_colors()):
        for index, key in enumerate(keys):
            if key in colors:
                index_of.setdefault(colors[key], index)
    color_of = {index: color for color, index in index_of.items()}
    others = iter(_distinct_colors(tuple(sorted(index_of))))
    return tuple(color_of[index] if index in color_of else next(others) for index in range(len(names)))


def _key(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())


@functools.cache
def _street_colors() -> dict[str, Color]:
    return {_key(name): color for name, color in zip(CITYSCAPES_19.names, CITYSCAPES_19.palette, strict=True)}


@functools.cache
def _synonym_colors() -> dict[str, Color]:
    return {_key(synonym): _street_colors()[_key(name)] for synonym, name in SYNONYMS.items()}


@functools.lru_cache(maxsize=16)
def _distinct_colors(taken: tuple[Color, ...]) -> tuple[Color, ...]:
    """Returns 255 colors, each as far as possible from those before it and those taken."""
    # Whatever the default device is: that of a network that is only measured has no values.
    values = torch.arange(0, 256, STEP, device="cpu").round().to(torch.uint8)
    colors = torch.cartesian_prod(values, values, values)
    positions = _positions(colors)
    lightness, chroma = positions[:, 0], positions[:, 1:].norm(dim=1)
    # A color of Cityscapes would name a class that is not there.
    street = torch.tensor(CITYSCAPES_19.palette, dtype=torch.uint8, device="cpu")
    named = (colors[:, None] == street).all(dim=2).any(dim=1)
    suitable = ~named & (lightness >= LIGHTNESS[0]) & (lightness <= LIGHTNESS[1]) & (chroma <= CHROMA)
    avoided = _positions(torch.tensor([(0, 0, 0), (255, 255, 255), *taken], dtype=torch.uint8, device="cpu"))
    colors, positions = colors[suitable], positions[suitable]
    distance = torch.cdist(positions, avoided).amin(dim=1)
    chosen = []
    for _ in range(255):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = torch.minimum(distance, (positions - positions[farthest]).norm(dim=1))
    return tuple((red, green, blue) for red, green, blue in colors[chosen].tolist())


def _positions(colors: torch.Tensor) -> torch.Tensor:
    """Converts colors (N, 3) uint8 to CIELAB (N, 3)."""
    return rgb_to_lab(colors.T[..., None])[..., 0].T
