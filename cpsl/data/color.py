"""Colour transfer: an image takes the mean and deviation of another in CIELAB."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Linear sRGB to CIE XYZ (IEC 61966-2-1), divided by its white point D65 so that white is (1, 1, 1).
_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_TO_XYZ = _XYZ / _XYZ.sum(dim=1, keepdim=True)
_FROM_XYZ = _TO_XYZ.inverse()
# CIE 15: L* = 116 f(Y) - 16, a* = 500 (f(X) - f(Y)), b* = 200 (f(Y) - f(Z)).
_TO_LAB = torch.tensor([[0.0, 116, 0], [500, -500, 0], [0, 200, -200]])
_FROM_LAB = _TO_LAB.inverse()
_OFFSET = torch.tensor([[-16.0], [0], [0]])
# As numbers, for a batch on some device.
_TO_XYZ_ROWS: list[list[float]] = _TO_XYZ.tolist()
_FROM_XYZ_ROWS: list[list[float]] = _FROM_XYZ.tolist()


def _linear(value: Tensor) -> Tensor:
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _encoded(value: Tensor) -> Tensor:
    return torch.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


# Powers are slow, so each is looked up: 256 steps in, 4096 steps back, which is finer than uint8 needs.
_LINEAR = _linear(torch.arange(256) / 255)
_STEPS = 4095
_ENCODED = (255 * _encoded((torch.arange(_STEPS + 1) / _STEPS) ** 2)).round().to(torch.uint8)


class LabStatistics(NamedTuple):
    """Colours of an image, summed up.

    Attributes:
        mean: (3,) of L*, a*, b*.
        deviation: (3,) standard deviations.
    """

    mean: Tensor
    deviation: Tensor


def rgb_to_lab(image: Tensor) -> Tensor:
    """Converts sRGB to CIELAB under D65.

    Args:
        image: (3, H, W) uint8.

    Returns:
        (3, H, W) float32: L* in 0...100, a* and b* in about -110...110.

    Example:
        >>> rgb_to_lab(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten().round().abs()
        tensor([100.,   0.,   0.])
    """
    linear = _LINEAR.index_select(0, image.flatten().int()).reshape(3, -1)
    xyz = _TO_XYZ @ linear
    # f of CIE 15: a cube root with a straight line near zero. torch has no cube root but the slower power.
    root = torch.from_numpy(np.cbrt(xyz.numpy()))
    f = torch.where(xyz > 216 / 24389, root, (24389 / 27 * xyz + 16) / 116)
    return (_TO_LAB @ f + _OFFSET).reshape(image.shape)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Converts CIELAB to sRGB; colours that a screen cannot show are clipped.

    Args:
        lab: (3, H, W) float32.

    Returns:
        (3, H, W) uint8.
    """
    f = _FROM_LAB @ (lab.flatten(1) - _OFFSET)
    xyz = torch.where(f > 6 / 29, f * f * f, (116 * f - 16) * (27 / 24389))
    linear = (_FROM_XYZ @ xyz).clamp(0, 1)
    # Looked up by the square root, which spends the steps where the eye sees them.
    steps = (linear.sqrt() * _STEPS + 0.5).int()
    return _ENCODED.index_select(0, steps.flatten()).reshape(lab.shape)


def lab_statistics(image: Tensor, pixels: int = 20_000) -> LabStatistics:
    """Measures mean and deviation in CIELAB.

    Args:
        image: (3, H, W) uint8.
        pixels: About as many pixels are looked at, evenly spaced; enough for both to two digits.

    Raises:
        ValueError: The image has another shape or dtype.

    Example:
        >>> white = lab_statistics(torch.full((3, 8, 8), 255, dtype=torch.uint8))
        >>> round(float(white.mean[0])), round(float(white.deviation[0]))
        (100, 0)
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"the image must be uint8 (3, H, W), got {image.dtype} of shape {tuple(image.shape)}"
        )
    step = max(int((image.shape[1] * image.shape[2] / pixels) ** 0.5), 1)
    lab = rgb_to_lab(image[:, ::step, ::step].contiguous()).flatten(1)
    return LabStatistics(lab.mean(dim=1), lab.std(dim=1, correction=0))


def transfer_color(
    image: Tensor, target: LabStatistics, source: LabStatistics | None = None
) -> Tensor:
    """Gives an image the mean and deviation of another in CIELAB (Reinhard et al., 2001).

    Args:
        image: (3, H, W) uint8.
        target: Statistics of the other image.
        source: Statistics of the image that this one was cropped from, so that a crop looks as in its
            image; measured on this one if None.

    Returns:
        (3, H, W) uint8.

    Example:
        >>> grey = torch.full((3, 4, 4), 128, dtype=torch.uint8)
        >>> bool((transfer_color(grey, lab_statistics(grey // 2)) == 64).all())
        True
    """
    source = lab_statistics(image) if source is None else source
    gain = (target.deviation / source.deviation.clamp_min(1e-3))[:, None, None]
    shift = target.mean[:, None, None] - source.mean[:, None, None] * gain
    return lab_to_rgb(rgb_to_lab(image) * gain + shift)


def transfer_color_batch(images: Tensor, target: LabStatistics, source: LabStatistics) -> Tensor:
    """Does `transfer_color` for each image of a batch, on whatever device it lies, without waiting for it.

    Args:
        images: (B, 3, H, W) uint8.
        target: Statistics (B, 3) of the other images, on the same device.
        source: Statistics (B, 3) of the images that these were cropped from, on the same device.

    Returns:
        (B, 3, H, W) uint8, within one grey level of `transfer_color`, which looks powers up in tables.

    Raises:
        ValueError: The images have another shape or dtype, or the statistics are not one an image.

    Example:
        >>> grey = torch.full((1, 3, 4, 4), 128, dtype=torch.uint8)
        >>> of_grey = LabStatistics(torch.tensor([[53.6, 0, 0]]), torch.ones(1, 3))
        >>> darker = LabStatistics(torch.tensor([[27.1, 0, 0]]), torch.ones(1, 3))
        >>> bool((transfer_color_batch(grey, darker, of_grey) == 64).all())
        True
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (B, 3, H, W), got {images.dtype} of shape {tuple(images.shape)}"
        )
    for part in (*target, *source):
        if part.shape != (len(images), 3):
            raise ValueError(
                f"statistics of {len(images)} images must be ({len(images)}, 3), "
                f"got shape {tuple(part.shape)}"
            )
    gain = (target.deviation / source.deviation.clamp_min(1e-3))[:, :, None, None]
    shift = target.mean[:, :, None, None] - source.mean[:, :, None, None] * gain
    xyz = _mixed(_TO_XYZ_ROWS, _linear(images.float() / 255))
    f = torch.where(xyz > 216 / 24389, xyz ** (1 / 3), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f.unbind(1)
    lab = torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
    lightness, a, b = (lab * gain + shift).unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=1)
    xyz = torch.where(f > 6 / 29, f * f * f, (116 * f - 16) * (27 / 24389))
    linear = _mixed(_FROM_XYZ_ROWS, xyz).clamp(0, 1)
    return (255 * _encoded(linear)).round().to(torch.uint8)


def _mixed(matrix: list[list[float]], images: Tensor) -> Tensor:
    """Returns (B, 3, H, W) images with their channels mixed by a matrix (3, 3)."""
    # Numbers travel with the instructions: a tensor on the host would be copied, and waited for. Not a
    # product of matrices, which autocast would round.
    red, green, blue = images.unbind(1)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix], dim=1)
