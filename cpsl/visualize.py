"""Pictures of labels and maps, as tensors that any image library writes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Anchors of a perceptually even map from dark blue over green to yellow (after viridis, Smith and van der
# Walt, 2015).
_HEAT = torch.tensor(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=torch.float32
)


def colorize(label: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
    """Shows classes in their colours.

    Args:
        label: (H, W) integer class indices; what is no class is black.
        palette: K colours (R, G, B), 0...255.

    Returns:
        (3, H, W) uint8.

    Example:
        >>> colorize(torch.tensor([[0, 255]]), [(10, 20, 30)]).flatten(1)
        tensor([[10,  0],
                [20,  0],
                [30,  0]], dtype=torch.uint8)
    """
    colors = torch.tensor([*palette, (0, 0, 0)], dtype=torch.uint8, device=label.device)
    label = label.long()
    known = (label >= 0) & (label < len(palette))
    return colors[torch.where(known, label, len(palette))].movedim(-1, 0)


def overlay(
    image: Tensor, label: Tensor, palette: Sequence[tuple[int, int, int]], alpha: float = 0.5
) -> Tensor:
    """Lays classes over an image; ignored pixels show the image alone.

    Args:
        image: (3, H, W) uint8.
        label: (H, W) integer class indices.
        palette: K colours (R, G, B), 0...255.
        alpha: Weight of the colours, 0...1.

    Returns:
        (3, H, W) uint8.
    """
    known = (label >= 0) & (label < len(palette))
    mixed = image.float().lerp(colorize(label, palette).float(), alpha).round().to(torch.uint8)
    return torch.where(known, mixed, image)


def heatmap(values: Tensor) -> Tensor:
    """Shows values from dark blue (0) to yellow (1).

    Args:
        values: (H, W) floating; clipped to 0...1.

    Returns:
        (3, H, W) uint8.
    """
    place = values.float().nan_to_num().clamp(0, 1) * (len(_HEAT) - 1)
    low = place.floor().long().clamp_max(len(_HEAT) - 2)
    heat = _HEAT.to(values.device)
    return (
        heat[low]
        .lerp(heat[low + 1], (place - low)[..., None])
        .round()
        .to(torch.uint8)
        .movedim(-1, 0)
    )


def panel(images: Sequence[Tensor], columns: int, gap: int = 4) -> Tensor:
    """Arranges pictures of one size in a grid on white.

    Args:
        images: (3, H, W) uint8 each, row by row.
        columns: Pictures in a row.
        gap: Pixels between them.

    Returns:
        (3, H', W') uint8.

    Raises:
        ValueError: The sizes differ.
    """
    if len({image.shape for image in images}) != 1:
        raise ValueError("pictures of one panel must have one size")
    padded = [F.pad(image, (0, gap, 0, gap), value=255) for image in images]
    blank = torch.full_like(padded[0], 255)
    padded += [blank] * (-len(padded) % columns)
    rows = [torch.cat(padded[i : i + columns], dim=2) for i in range(0, len(padded), columns)]
    return torch.cat(rows, dim=1)[:, : -gap or None, : -gap or None]
