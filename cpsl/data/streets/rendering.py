"""From polygons to a picture: painting them, then what a camera makes of the sight."""

from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.streets.scene import LABEL, Polygon, Range

OVERSAMPLING = 2
"""Pixels of the canvas for one of the picture, along each axis: smooth edges in the image."""

# How rough the surface of a class is, from 0 to 1; the others are smooth.
_ROUGHNESS = np.zeros(256, np.float32)
for _name, _value in {
    "vegetation": 1.0,
    "terrain": 0.7,
    "wall": 0.5,
    "fence": 0.4,
    "building": 0.4,
    "sidewalk": 0.4,
    "road": 0.35,
    "person": 0.2,
    "rider": 0.2,
}.items():
    _ROUGHNESS[LABEL[_name]] = _value


@dataclass(frozen=True)
class Photograph:
    """How a camera records what it sees; ranges are drawn from once a picture.

    Attributes:
        texture: Relative deviation of brightness on the roughest surface.
        exposure: Factor of all brightness.
        balance: Factor of red, green, blue.
        balance_deviation: How much that varies from picture to picture.
        saturation: 0 is grey, 1 leaves colours as they are.
        veil: Stray light added everywhere, 0...255.
        vignette: Loss of brightness in the corners, 0...1.
        blur: Radius in image heights.
        noise: Deviation of the sensor's noise, 0...255.
    """

    texture: Range
    exposure: Range
    balance: tuple[float, float, float]
    balance_deviation: float
    saturation: Range
    veil: Range
    vignette: Range
    blur: Range
    noise: Range


def paint(
    polygons: list[Polygon], size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Paints polygons one over the other.

    Args:
        polygons: In the order of painting.
        size: Height and width in pixels.

    Returns:
        Image (H, W, 3) with smooth edges, label map (H, W) with hard ones.
    """
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
    image: npt.NDArray[np.uint8],
    label: npt.NDArray[np.uint8],
    camera: Photograph,
    random: Random,
) -> npt.NDArray[np.uint8]:
    """Adds texture, light, colour cast, blur and noise.

    Every step is elementwise float32 arithmetic or Pillow's integer filters, so that the result is the
    same on every machine.

    Args:
        image: (H, W, 3).
        label: (H, W), which says how rough a surface is.
        camera: What to add.
        random: Source of all that varies.

    Returns:
        Image (H, W, 3).
    """

    def between(limits: Range) -> np.float32:
        return np.float32(limits[0] + (limits[1] - limits[0]) * random.random())

    height, width = label.shape
    texture = between(camera.texture) * (
        _grain(label.shape, 0.01, random) + _grain(label.shape, 0.04, random)
    )
    light = 1 + _ROUGHNESS[label] * texture
    light *= between(camera.exposure)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    light *= 1 - between(camera.vignette) * (x * x + y * y) / 2

    seen = image.astype(np.float32) * light[..., None]
    grey = (0.3 * seen[..., 0] + 0.6 * seen[..., 1] + 0.1 * seen[..., 2])[..., None]
    seen = grey + between(camera.saturation) * (seen - grey)
    cast = [
        between((factor - camera.balance_deviation, factor + camera.balance_deviation))
        for factor in camera.balance
    ]
    seen = seen * np.array(cast, np.float32) + between(camera.veil)
    picture = Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(float(between(camera.blur)) * height))
    noise = between(camera.noise) * _noise((height, width, 3), random)
    recorded: npt.NDArray[np.uint8] = np.clip(np.asarray(picture) + noise + 0.5, 0, 255).astype(
        "u1"
    )
    return recorded


def _noise(shape: tuple[int, ...], random: Random) -> npt.NDArray[np.float32]:
    """Returns independent noise of mean 0 and deviation 1: the sum of four uniform numbers."""
    count = int(np.prod(shape))
    # PCG64's raw stream is guaranteed; those of numpy's distributions may change with its version.
    words = np.random.PCG64(random.getrandbits(63)).random_raw((count + 1) // 2)
    four = words.astype("<u8").view(np.uint8).reshape(-1, 4)[:count]
    total = four[:, 0].astype(np.int16)
    for k in range(1, 4):
        total += four[:, k]
    return ((total - np.int16(510)) * np.float32(1 / 147.8)).reshape(shape)


def _grain(shape: tuple[int, ...], size: float, random: Random) -> npt.NDArray[np.float32]:
    """Returns smooth noise around 0 whose spots are `size` image heights large."""
    height, width = shape
    spots = (round(1 / size), max(1, round(width / height / size)))
    noise = np.clip(128 + 48 * _noise(spots, random), 0, 255).astype(np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    return (np.asarray(smooth, np.float32) - 128) * np.float32(1 / 48)
