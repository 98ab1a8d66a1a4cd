"""Colors for classes without colors of their own."""

import functools

import torch

from cpsl.data.color import rgb_to_lab

STEP = 25.5
"""Distance of the values of red, green and blue from which colors are composed."""

LIGHTNESS, CHROMA = (35, 85), 80
"""Range of the lightness and upper limit of the chroma in CIELAB: neither dark, nor pale, nor garish."""


def distinct_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns colors that are easy to distinguish from each other, from black and from white.

    Each color is the one whose smallest distance to those before it is largest, in CIELAB (after Glasbey et
    al., 2007). Hence a longer palette begins with a shorter one.

    Args:
        count: Number of colors, 0...255.

    Raises:
        ValueError: The number is outside this range.

    Example:
        >>> distinct_palette(3)
        ((230, 0, 128), (51, 153, 0), (0, 102, 230))
    """
    if not 0 <= count <= 255:
        raise ValueError(f"a palette has 0 to 255 colors, not {count}")
    return _colors()[:count]


@functools.cache
def _colors() -> tuple[tuple[int, int, int], ...]:
    values = torch.arange(0, 256, STEP).round().to(torch.uint8)
    colors = torch.cartesian_prod(values, values, values)
    positions = rgb_to_lab(colors.T[..., None])[..., 0].T
    lightness, chroma = positions[:, 0], positions[:, 1:].norm(dim=1)
    suitable = (lightness >= LIGHTNESS[0]) & (lightness <= LIGHTNESS[1]) & (chroma <= CHROMA)
    black_and_white = positions[[0, -1]]
    colors, positions = colors[suitable], positions[suitable]
    distance = torch.cdist(positions, black_and_white).amin(dim=1)
    chosen = []
    for _ in range(255):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = torch.minimum(distance, (positions - positions[farthest]).norm(dim=1))
    return tuple((red, green, blue) for red, green, blue in colors[chosen].tolist())
