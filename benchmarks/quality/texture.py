"""Noise, blur and compression that both `weather` and `fields` use; images are float32 in 0...1."""

import io

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def resize(field: Floats, size: tuple[int, int]) -> Floats:
    """Resizes an (h, w) field to size (H, W), bicubically."""
    resized = Image.fromarray(field).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)


def octaves(size: tuple[int, int], random: Generator, coarsest: float, finest: float = 1.0) -> Floats:
    """Draws (H, W) noise of mean 0 and standard deviation 1 with details from `coarsest` to `finest` pixels.

    Each octave has half the cell and 0.6 of the amplitude of the one before.
    """
    total, cell, amplitude = np.zeros(size, np.float32), coarsest, 1.0
    while cell >= finest:
        grid = (int(size[0] / cell) + 2, int(size[1] / cell) + 2)
        noise = random.standard_normal(grid, dtype=np.float32)
        total += amplitude * resize(noise, size)
        cell, amplitude = cell / 2, amplitude * 0.6
    normalized: Floats = (total - total.mean()) / (total.std() + 1e-6)
    return normalized


def blur(image: Floats, sigma: float) -> Floats:
    """Blurs an (H, W) or (H, W, C) image with a Gaussian of `sigma` pixels; the border is repeated."""
    if sigma < 0.1:
        return image
    radius = int(3 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(np.moveaxis(image, axis, 0), [(radius, radius)] + [(0, 0)] * (image.ndim - 1), "edge")
        length = image.shape[axis]
        total = np.zeros_like(padded[:length])
        for shift, tap in enumerate(taps):
            total += np.float32(tap) * padded[shift : shift + length]
        image = np.moveaxis(total, 0, axis)
    return image


def luminance(image: Floats) -> Floats:
    """Returns the (H, W, 1) luminance of an (H, W, 3) linear image (Rec. 709)."""
    return image @ np.array([[0.2126], [0.7152], [0.0722]], np.float32)


def sensor_noise(linear: Floats, random: Generator, shot: float, read: float) -> Floats:
    """Adds noise of variance shot * signal + read² and a smoother noise of color to a linear image."""
    fine = random.standard_normal(linear.shape, dtype=np.float32)
    coarse = blur(random.standard_normal(linear.shape, dtype=np.float32), 1.0)
    deviation = np.sqrt(shot * np.clip(linear, 0, 1) + read**2)
    noisy: Floats = linear + deviation * (fine + 1.5 * coarse)
    return noisy


def quantize(image: Floats) -> Bytes:
    """Rounds an image in 0...1 to uint8."""
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)


def jpeg(image: Bytes, quality: int) -> Bytes:
    """Returns the image after JPEG compression of a quality from 1 to 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
