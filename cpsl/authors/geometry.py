"""Warping of features as in the authors' code."""

import torch
from torch import Tensor

from cpsl._internal.affine import compose, inverse, positions
from cpsl.geometry import View


def warp_upsampled(
    maps: Tensor,
    source: View,
    target: View,
    size: tuple[int, int] | torch.Size,
    enlarged: tuple[int, int] | torch.Size,
) -> Tensor:
    """Warps a feature map, after upsampling it, to (B, C, h', w') float32.

    Equals `F.interpolate(maps, enlarged, mode="bilinear", align_corners=True)` followed by `warp`, but never
    allocates the enlarged map. If the views differ in scale, position and flip only, both steps are matrix
    products on either side of the map M,

        V = (S_y R_y) M (S_x R_x)ᵀ,   R, S = max(0, 1 - |position - node|)

    and the small matrices are multiplied first.

    Args:
        maps: (B, C, h, w) floating, corner-aligned.
        source: View in which the map was computed.
        target: View of the result. It may neither be rotated nor sheared relative to `source` (not checked).
        size: (h', w') of the result, corner-aligned.
        enlarged: (H, W) of the upsampled map.

    Raises:
        ValueError: The number of maps differs from the number of views.

    Example:
        >>> import torch.nn.functional as F
        >>> from cpsl import warp
        >>> maps, image = torch.rand(1, 8, 5, 9), View.whole((32, 64))
        >>> view = image.resized((40, 80)).cropped(4, 8, (16, 32)).flipped()
        >>> got = warp_upsampled(maps, image, view, (4, 8), enlarged=(8, 16))
        >>> large = F.interpolate(maps, (8, 16), mode="bilinear", align_corners=True)
        >>> wanted = warp(large, image, view, (4, 8), align_corners=True).values
        >>> torch.allclose(got, wanted, atol=1e-5)
        True
    """
    if not len(maps) == len(source) == len(target):
        raise ValueError(f"{len(maps)} maps need as many views, got {len(source)} and {len(target)}")
    matrix = compose(inverse(source.matrix), target.matrix)
    with torch.autocast(maps.device.type, enabled=False):
        sides = []
        for axis in (0, 1):  # down, across
            along = positions(target.size[axis], size[axis], True, maps.device)
            row = matrix[:, 1 - axis]
            along = row[:, 1 - axis, None] * along + row[:, 2, None]
            node = (along - 0.5) * ((enlarged[axis] - 1) / max(source.size[axis] - 1, 1))
            step = (maps.shape[2 + axis] - 1) / max(enlarged[axis] - 1, 1)
            between = torch.arange(enlarged[axis], device=maps.device) * step
            sample = _hats(node.clamp(0, enlarged[axis] - 1), enlarged[axis])
            sides.append(sample @ _hats(between, maps.shape[2 + axis]))
        down, across = sides
        # Channels innermost, as in channels-last outputs of networks: neither product copies the map.
        wide: Tensor = across[:, None] @ maps.float().movedim(1, 3)
        values: Tensor = (down @ wide.flatten(2)).unflatten(2, wide.shape[2:])
        return values.movedim(3, 1)


def _hats(positions: Tensor, nodes: int) -> Tensor:
    """Returns the weights (..., n, nodes) of bilinear interpolation at positions (..., n), 0...nodes - 1."""
    node = torch.arange(nodes, device=positions.device)
    return (1 - (positions[..., None] - node).abs()).clamp_min(0)
