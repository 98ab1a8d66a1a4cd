"""Color transfer: an image takes the mean and standard deviation of another image in CIELAB."""

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
_LIGHTNESS_OFFSET = 16


def _decode(value: Tensor) -> Tensor:
    """Converts sRGB values to linear ones, both in 0...1."""
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _encode(value: Tensor) -> Tensor:
    """Converts linear values to sRGB, 0...255 uint8."""
    encoded = torch.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)
    return (255 * encoded).round().to(torch.uint8)


# Powers are slow on the host and therefore tabulated there: 256 values to decode; 4096 to encode, by the
# square root of the linear value, since dark colors need finer steps.
_DECODED = _decode(torch.arange(256) / 255)
_STEPS = 4095
_ENCODED = _encode((torch.arange(_STEPS + 1) / _STEPS) ** 2)


class LabStatistics(NamedTuple):
    """Means and standard deviations of L*, a* and b* in an image, (3,), or in each of a batch, (B, 3)."""

    mean: Tensor
    deviation: Tensor


def rgb_to_lab(image: Tensor) -> Tensor:
    """Converts sRGB (..., 3, H, W) uint8 to CIELAB under D65, float32 of the same shape.

    L* is in 0...100, a* and b* are in about -110...110.
    """
    if _on_host(image):
        linear = _DECODED.index_select(0, image.flatten().int()).reshape(image.shape)
    else:
        linear = _decode(image.float() / 255)
    xyz = _mix(_TO_XYZ, linear)
    # f of CIE 15: a cube root, linear near zero. torch has no cube root, and its power is slower.
    root = torch.from_numpy(np.cbrt(xyz.numpy())) if _on_host(xyz) else xyz ** (1 / 3)
    f = torch.where(xyz > 216 / 24389, root, (24389 / 27 * xyz + 16) / 116)
    lab = _mix(_TO_LAB, f)
    lab[..., 0, :, :] -= _LIGHTNESS_OFFSET
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Converts CIELAB (..., 3, H, W) float32 to sRGB uint8 and clips colors outside of it."""
    lab = lab.clone()
    lab[..., 0, :, :] += _LIGHTNESS_OFFSET
    f = _mix(_FROM_LAB, lab)
    xyz = torch.where(f > 6 / 29, f * f * f, (116 * f - 16) * (27 / 24389))
    linear = _mix(_FROM_XYZ, xyz).clamp(0, 1)
    if _on_host(linear):
        steps = (linear.sqrt() * _STEPS + 0.5).int()
        return _ENCODED.index_select(0, steps.flatten()).reshape(lab.shape)
    return _encode(linear)


def lab_statistics(image: Tensor, pixels: int = 20_000) -> LabStatistics:
    """Measures mean and standard deviation of an image (3, H, W) uint8 in CIELAB.

    About `pixels` evenly spaced pixels are measured; 20,000 give two digits.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"the image must be uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
    step = max(int((image.shape[1] * image.shape[2] / pixels) ** 0.5), 1)
    lab = rgb_to_lab(image[:, ::step, ::step].contiguous()).flatten(1)
    return LabStatistics(lab.mean(dim=1), lab.std(dim=1, correction=0))


def transfer_color(image: Tensor, target: LabStatistics, source: LabStatistics | None = None) -> Tensor:
    """Gives an image, or each of a batch, another mean and deviation in CIELAB (Reinhard et al., 2001).

    It runs on any device without synchronizing; results of devices differ by at most one gray level.

    Args:
        image: (3, H, W) uint8, or a batch (B, 3, H, W).
        target: Statistics to take, (3,) or (B, 3), on the same device.
        source: Statistics of the whole image if `image` is a crop, so that both get the same colors; None
            measures `image`, which must be a single one.

    Returns:
        uint8 of the shape of `image`.

    Raises:
        ValueError: The images have another shape or dtype, or the number of statistics differs.

    Example:
        >>> gray = torch.full((3, 4, 4), 128, dtype=torch.uint8)
        >>> bool((transfer_color(gray, lab_statistics(gray // 2)) == 64).all())
        True
    """
    source = lab_statistics(image) if source is None else source
    if image.dtype != torch.uint8 or image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(
            f"images must be uint8 (3, H, W) or (B, 3, H, W), got {image.dtype} {tuple(image.shape)}"
        )
    for part in (*target, *source):
        if part.shape != image.shape[:-2]:
            raise ValueError(f"the statistics must be {tuple(image.shape[:-2])}, got {tuple(part.shape)}")
    gain = (target.deviation / source.deviation.clamp_min(1e-3))[..., None, None]
    shift = target.mean[..., None, None] - source.mean[..., None, None] * gain
    return lab_to_rgb(rgb_to_lab(image) * gain + shift)


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _mix(matrix: Tensor, image: Tensor) -> Tensor:
    """Multiplies the channels of (..., 3, H, W) by a matrix (3, 3) on the host."""
    if _on_host(image):
        with torch.autocast("cpu", enabled=False):
            return (matrix @ image.flatten(-2)).reshape(image.shape)
    # Copying the matrix to the device would synchronize, and TF32 or autocast would round its product.
    red, green, blue = image.unbind(-3)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix.tolist()], dim=-3)
