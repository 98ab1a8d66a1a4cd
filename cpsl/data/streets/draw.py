"""One generated street scene as image and labels."""

from random import Random

import torch
from torch import Tensor

from cpsl.data.streets.rendering import paint, photograph
from cpsl.data.streets.street import draw_scene
from cpsl.data.streets.styles import CAMERAS, TOWNS, Style
from cpsl.randomness import derive_seed


def draw_street(
    seed: int, style: Style, size: tuple[int, int] = (128, 256)
) -> tuple[Tensor, Tensor]:
    """Draws one street scene and its labels.

    The scene depends on seed and style alone, the size is that of the paper it is drawn on. Both styles
    have the same 19 kinds of things with the same shapes; they differ in what domains differ in: colours,
    light, haze, texture, blur, noise, and how wide, green and crowded the streets are.

    Args:
        seed: Any integer; the same seed, style and size give the same bytes on every machine (another
            version of Pillow may blend single pixels of an edge differently).
        style: "game": clean, saturated, wide streets. "real": dull light, rough surfaces, sensor noise,
            narrow and crowded streets, the bonnet of the camera's own car.
        size: Height and width in pixels, at least 32 each.

    Returns:
        Image (3, H, W) uint8 and label (H, W) uint8: Cityscapes' train ids, 255 ignored.

    Raises:
        ValueError: Unknown style, or a size that is too small.

    Example:
        >>> image, label = draw_street(7, "real", (64, 128))
        >>> image.shape, label.shape
        (torch.Size([3, 64, 128]), torch.Size([64, 128]))
    """
    check_street(style, size)
    random = Random(derive_seed(seed, style))
    image, label = paint(draw_scene(TOWNS[style], random), size)
    image = photograph(image, label, CAMERAS[style], random)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label)


def check_street(style: Style, size: tuple[int, int]) -> None:
    """Raises a ValueError if there is no such style, or nothing could be seen at this size."""
    if style not in TOWNS:
        raise ValueError(f'style must be "game" or "real", got {style!r}')
    if min(size) < 32:
        raise ValueError(f"size (height, width) must be at least 32 pixels each, got {size}")
