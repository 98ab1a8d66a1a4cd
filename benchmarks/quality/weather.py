"""Shifts of labeled day photographs: night, fog and another camera.

Each shift takes an image (H, W, 3) uint8, its label (H, W) or None, and a generator, and returns the shifted
image with the label unchanged. The geometry is kept, so that the label stays exact. The same state of the
generator gives the same image.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .texture import Bytes, Floats, blur, jpeg, luminance, octaves, quantize, resize, sensor_noise

Label = NDArray[np.integer]
SODIUM, WHITE, RED = (1.0, 0.58, 0.18), (0.95, 0.95, 1.0), (1.0, 0.12, 0.05)


def night(
    image: Bytes, label: Label | None, random: Generator, sky: int | None = None
) -> tuple[Bytes, Label | None]:
    """Turns day into dusk or night: dark, tinted, a dark sky, street lamps, and the noise of a high gain.

    A bright sky becomes the darkest or the most colorful part of the image, as it does in the evening: its
    brightness no longer separates it from buildings. It is either bluish or orange from the glow of a city.

    Args:
        image: (H, W, 3) uint8 photograph by day.
        label: (H, W) class indices, returned unchanged.
        random: Source of all random numbers.
        sky: Class index of the sky. Without it or without a label the sky is estimated from the image.

    Raises:
        ValueError: The shape or type of the image, or the shape of the label, is wrong.

    Example:
        >>> day = np.full((48, 64, 3), 200, np.uint8)
        >>> evening, _ = night(day, None, np.random.default_rng(0))
        >>> bool(evening.mean() < 100)
        True
    """
    _check(image, label)
    size = image.shape[:2]
    linear = _linear(image)
    at_sky = _sky(image, label, sky)
    # Sky that shines through branches is labeled as tree, and must not stay bright.
    shines = (blur(at_sky, 0.02 * max(size)) > 0.03) & (image.min(2) > 130)
    at_sky = blur(np.maximum(at_sky, shines), 0.7)[..., None]

    # Ground: little light of one color, uneven, and eyes of a sensor that hardly separate colors.
    warm = random.random() < 0.35
    cast = _around((1.35, 0.9, 0.45) if warm else (0.5, 0.82, 1.5), 0.12, random)
    saturation = random.uniform(0.25, 0.55)
    ground = luminance(linear) + saturation * (linear - luminance(linear))
    uneven = np.exp(0.35 * octaves(size, random, 0.4 * max(size), 0.1 * max(size)))[..., None]
    # Relative to the image's own brightness, so that an already dark photograph does not become black.
    exposure = random.uniform(0.035, 0.09) / (float(np.median(ground)) + 0.08)
    ground = exposure * cast * uneven * np.minimum(ground, 0.6)

    # Sky: a new gradient with clouds, and only a tenth of the old contrast.
    zenith = _around((0.008, 0.014, 0.040), 0.4, random)
    glow = (0.20, 0.085, 0.030) if random.random() < 0.5 else (0.045, 0.070, 0.125)
    horizon = _around(glow, 0.3, random) * random.uniform(0.4, 1.2)
    height = (np.arange(size[0], dtype=np.float32) / size[0])[:, None, None]
    mix = np.clip(height / random.uniform(0.4, 0.7), 0, 1) ** random.uniform(0.8, 1.8)
    clouds = np.exp(random.uniform(0.1, 0.5) * octaves(size, random, 0.3 * max(size), 4))[..., None]
    heaven = ((1 - mix) * zenith + mix * horizon) * clouds
    heaven = heaven * (1 + 0.1 * (luminance(linear) - 0.5))
    scene = at_sky * heaven + (1 - at_sky) * ground

    scene = scene + _lamps(scene, linear, random)
    scene = blur(scene, random.uniform(0.3, 0.9))
    scene = sensor_noise(scene, random, shot=random.uniform(2e-4, 1e-3), read=random.uniform(0.002, 0.006))
    return jpeg(quantize(_encoded(scene)), int(random.integers(60, 90))), label


def fog(
    image: Bytes, label: Label | None, random: Generator, sky: int | None = None
) -> tuple[Bytes, Label | None]:
    """Adds fog: contrast and color decay with depth, and the sky merges with what is far.

    I = J t + A (1 - t) with t = exp(-β d) (Koschmieder). There is no depth in a photograph: d is inversely
    proportional to the distance, mostly vertical, from a point on the horizon, as on a street; the sky is
    the farthest. Arguments, result and errors are those of `night`.

    Example:
        >>> day = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        >>> hazy, _ = fog(day, None, np.random.default_rng(0))
        >>> bool(hazy.std() < day.std())
        True
    """
    _check(image, label)
    height, width = size = image.shape[:2]
    linear = _linear(image)
    at_sky = blur(_sky(image, label, sky), 2.0)

    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    down = (rows / height - random.uniform(0.42, 0.52)) / 0.5
    aside = (columns / width - random.uniform(0.4, 0.6)) / 0.5
    # What rises above the horizon is nearer than the horizon, but much farther than the ground below it.
    vertical = np.where(down > 0, down, -0.45 * down)
    depth = 1 / (0.07 + np.sqrt(vertical**2 + (0.3 * aside) ** 2))
    depth = (1 - at_sky) * depth + at_sky * 40
    patches = np.exp(0.25 * octaves(size, random, 0.5 * max(size), 0.1 * max(size)))
    through = np.exp(-random.uniform(0.22, 0.55) * patches * depth)[..., None]

    air = random.uniform(0.35, 0.75) * _around((0.96, 1.0, 1.04), 0.06, random)
    brighter_above = 1 + random.uniform(0.0, 0.35) * (0.5 - rows / height)[..., None]
    # The sun is gone: flat light of little color on what is left to see.
    gray = luminance(linear)
    flat = np.float32(random.uniform(0.5, 0.9)) * (gray + np.float32(0.6) * (linear - gray))
    # Light scattered forward softens what is far.
    soft = through * blur(flat, 0.5) + (1 - through) * blur(flat, 2.0)
    scene = soft * through + air * brighter_above * (1 - through)
    scene = sensor_noise(scene, random, shot=2e-4, read=random.uniform(0.001, 0.004))
    return jpeg(quantize(_encoded(scene)), int(random.integers(60, 90))), label


def camera(image: Bytes, label: Label | None, random: Generator) -> tuple[Bytes, Label | None]:
    """Takes the photograph with another camera: color, tone, sharpness, vignette, noise and compression.

    Arguments, result and errors are those of `night`.

    Example:
        >>> day = np.full((48, 64, 3), 120, np.uint8)
        >>> other, _ = camera(day, None, np.random.default_rng(0))
        >>> other.shape
        (48, 64, 3)
    """
    _check(image, label)
    height, width = image.shape[:2]
    linear = _linear(image)
    # Rows of sum 1 keep gray; white balance then tints it.
    crosstalk = random.uniform(-0.15, 0.45, (3, 3)) * (1 - np.eye(3))
    matrix = np.eye(3) * (1 - crosstalk.sum(1)) + crosstalk
    warmth = random.choice((-1, 1)) * random.uniform(0.15, 0.4)
    tint = random.uniform(-0.12, 0.12)
    balance = np.exp([warmth, tint, -warmth]) * random.uniform(0.7, 1.3)
    scene = np.maximum(linear @ matrix.T.astype(np.float32), 0) * balance.astype(np.float32)

    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    scene = scene * (1 / (1 + random.uniform(0.1, 0.5) * (rows**2 + columns**2)) ** 2)[..., None]
    scene = blur(scene, random.uniform(0.6, 1.5))
    scene = sensor_noise(scene, random, shot=random.uniform(5e-4, 3e-3), read=random.uniform(0.002, 0.008))
    tone = np.clip(_encoded(scene), 0, 1) ** random.uniform(0.65, 1.6)
    steepness = random.uniform(0.0, 0.8)
    tone = (1 - steepness) * tone + steepness * tone * tone * (3 - 2 * tone)
    black = random.uniform(0.0, 0.12)
    return jpeg(quantize(black + (1 - black) * tone), int(random.integers(20, 55))), label


def _check(image: Bytes, label: Label | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 of shape (H, W, 3), got {image.dtype} of shape {image.shape}")
    if label is not None and label.shape != image.shape[:2]:
        raise ValueError(f"label must have the image's shape {image.shape[:2]}, got {label.shape}")


def _linear(image: Bytes) -> Floats:
    return np.asarray((image.astype(np.float32) / 255) ** 2.2, np.float32)


def _encoded(linear: Floats) -> Floats:
    return np.asarray(np.clip(linear, 0, 1) ** (1 / 2.2), np.float32)


def _around(color: tuple[float, float, float], spread: float, random: Generator) -> Floats:
    """Returns the color with each channel multiplied by exp of a normal number of deviation `spread`."""
    return np.asarray(color * np.exp(random.normal(0, spread, 3)), np.float32)


def _sky(image: Bytes, label: Label | None, sky: int | None) -> Floats:
    """Returns 1 at the sky: by its label, or what is bright, not reddish and reaches the upper border."""
    if label is not None and sky is not None:
        return np.asarray(label == sky, np.float32)
    small = np.asarray(image[::4, ::4], np.int16)
    bright = (small.max(2) > 150) & (small[..., 2] >= small[..., 0] - 8)
    reached = np.zeros_like(bright)
    reached[0] = bright[0]
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= bright
        if (grown == reached).all():
            break
        reached = grown
    # Sharp at the image's resolution: thin branches and poles before the sky are not bright.
    height, width = image.shape[:2]
    coarse = resize(reached.astype(np.float32), (height, width)) > 0.3
    return np.asarray(coarse & (image.max(2) > 130), np.float32)


def _lamps(scene: Floats, day: Floats, random: Generator) -> Floats:
    """Returns the light of 4 to 12 lamps: a core, a halo in the air, and a pool on the surfaces around."""
    height, width = scene.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) / height
    light: Floats = np.zeros_like(scene)
    for _ in range(int(random.integers(4, 13))):
        color = np.asarray((SODIUM, WHITE, RED)[random.choice(3, p=(0.55, 0.3, 0.15))], np.float32)
        y, x = random.uniform(0.2, 0.62), random.uniform(0, width / height)
        radius, power = random.uniform(0.004, 0.012), random.uniform(0.3, 1.0)
        square = (rows - y) ** 2 + (columns - x) ** 2
        core = np.exp(-square / (2 * radius**2))
        halo = 0.05 / (1 + square / (16 * radius**2)) ** 1.5
        pool = 0.25 / (1 + ((rows - y - 0.1) ** 2 + (columns - x) ** 2) / 0.02) ** 2
        light += power * color * ((core + halo)[..., None] + pool[..., None] * np.minimum(day, 0.5))
    return light.astype(np.float32)
