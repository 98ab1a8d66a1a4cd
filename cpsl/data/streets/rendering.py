"""From polygons to an image: painting, and the effects of a camera."""

from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.streets.scene import LABEL, Polygon, Range

OVERSAMPLING = 2
"""Pixels of the canvas per pixel of the image along each axis, for smooth edges."""

# Roughness of surfaces, 0...1; others are smooth.
_ROUGH = {
    "vegetation": 1.0, "terrain": 0.7, "wall": 0.5, "fence": 0.4, "building": 0.4, "sidewalk": 0.4,
    "road": 0.35, "person": 0.2, "rider": 0.2,
}  # fmt: skip
_ROUGHNESS = np.zeros(256, np.float32)
_ROUGHNESS[[LABEL[name] for name in _ROUGH]] = list(_ROUGH.values())


@dataclass(frozen=True)
class Photograph:
    """Effects of a camera; a range is sampled once per image."""

    texture: Range  # relative deviation of brightness on the roughest surface
    exposure: Range  # factor of the brightness
    balance: tuple[float, float, float]  # factors of red, green, blue
    balance_deviation: float  # largest deviation of these factors
    saturation: Range  # 0 gives gray, 1 keeps the colors
    veil: Range  # added stray light, 0...255
    vignette: Range  # loss of brightness in the corners, 0...1
    blur: Range  # radius in image heights
    noise: Range  # deviation of the sensor noise, 0...255


def paint(
    polygons: list[Polygon], size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Paints polygons from back to front: an image (H, W, 3) with smooth edges, and a label map (H, W)."""
    height, width = (OVERSAMPLING * side for side in size)
    image, label = Image.new("RGB", (width, height)), Image.new("L", (width, height), IGNORE_INDEX)
    on_image, on_label = ImageDraw.Draw(image, "RGBA"), ImageDraw.Draw(label)
    for points, color, index in polygons:
        pixels = [(x * height + width / 2, y * height) for x, y in points]
        on_image.polygon(pixels, fill=color)
        if index is not None:
            on_label.polygon(pixels, fill=index)
    return (
        np.asarray(image.reduce(OVERSAMPLING)),
        np.ascontiguousarray(np.asarray(label)[::OVERSAMPLING, ::OVERSAMPLING]),
    )


def photograph(
    image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], camera: Photograph, random: Random
) -> npt.NDArray[np.uint8]:
    """Adds texture, light, color cast, blur and noise to an image (H, W, 3); its label is (H, W).

    Only elementwise float32 arithmetic and Pillow's integer filters give the same result on every machine.
    """

    def between(limits: Range) -> np.float32:
        return np.float32(limits[0] + (limits[1] - limits[0]) * random.random())

    height, width = label.shape
    texture = between(camera.texture)
    grain = _grain(label.shape, 0.01, random) + _grain(label.shape, 0.04, random)
    light = 1 + _ROUGHNESS[label] * (texture * grain)
    light *= between(camera.exposure)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    light *= 1 - between(camera.vignette) * (x * x + y * y) / 2

    lit = image.astype(np.float32) * light[..., None]
    gray = (0.3 * lit[..., 0] + 0.6 * lit[..., 1] + 0.1 * lit[..., 2])[..., None]
    lit = gray + between(camera.saturation) * (lit - gray)
    spread = camera.balance_deviation
    cast = [between((factor - spread, factor + spread)) for factor in camera.balance]
    lit = lit * np.array(cast, np.float32) + between(camera.veil)
    picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(float(between(camera.blur)) * height))
    noise = between(camera.noise) * _noise((height, width, 3), random)
    recorded: npt.NDArray[np.uint8] = np.clip(np.asarray(picture) + noise + 0.5, 0, 255).astype("u1")
    return recorded


def _noise(shape: tuple[int, ...], random: Random) -> npt.NDArray[np.float32]:
    """Returns independent noise of mean 0 and deviation 1: the sum of four uniform numbers."""
    count = int(np.prod(shape))
    # NumPy guarantees PCG64's raw stream, but not those of its distributions.
    words = np.random.PCG64(random.getrandbits(63)).random_raw((count + 1) // 2)
    four = words.astype("<u8").view(np.uint8).reshape(-1, 4)[:count]
    total = four[:, 0].astype(np.int16)
    for k in range(1, 4):
        total += four[:, k]
    return ((total - np.int16(510)) * np.float32(1 / 147.8)).reshape(shape)


def _grain(shape: tuple[int, ...], size: float, random: Random) -> npt.NDArray[np.float32]:
    """Returns smooth noise around 0 with spots of `size` image heights."""
    height, width = shape
    spots = (round(1 / size), max(1, round(width / height / size)))
    noise = np.clip(128 + 48 * _noise(spots, random), 0, 255).astype(np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    return (np.asarray(smooth, np.float32) - 128) * np.float32(1 / 48)
