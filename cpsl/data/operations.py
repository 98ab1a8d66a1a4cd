"""Operations on the appearance of an image: with Pillow on the host, with torchvision on any device.

An operation is a name and an amount:

- autocontrast: stretches each channel to 0...255; the amount is not used.
- blur: Gaussian blur; the amount is the standard deviation in pixels.
- brightness, contrast, saturation, sharpness: the amount is a factor. 1 keeps the image; 0 gives black, the
  mean gray, the image in gray, or a smooth image.
- equalize: flattens each channel's histogram; the amount is not used.
- hue: rotates the hue by an integer number of 256ths of the color circle.
- posterize: the amount is the number of bits kept per value, 1...8.
- solarize: inverts the values from the amount on, 0...255.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

Operation = tuple[str, float]
"""Name and amount."""


def apply_to_picture(picture: Image.Image, operation: Operation) -> Image.Image:
    """Applies an operation to an RGB picture with Pillow."""
    name, amount = operation
    return _WITH_PILLOW[name](picture, amount)


def _rotate_hue(picture: Image.Image, amount: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(step + int(amount)) % 256 for step in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_WITH_PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda picture, amount: ImageOps.autocontrast(picture),
    "blur": lambda picture, amount: picture.filter(ImageFilter.GaussianBlur(amount)),
    "brightness": lambda picture, amount: ImageEnhance.Brightness(picture).enhance(amount),
    "contrast": lambda picture, amount: ImageEnhance.Contrast(picture).enhance(amount),
    "equalize": lambda picture, amount: ImageOps.equalize(picture),
    "hue": _rotate_hue,
    "posterize": lambda picture, amount: ImageOps.posterize(picture, int(amount)),
    "saturation": lambda picture, amount: ImageEnhance.Color(picture).enhance(amount),
    "sharpness": lambda picture, amount: ImageEnhance.Sharpness(picture).enhance(amount),
    "solarize": lambda picture, amount: ImageOps.solarize(picture, int(amount)),
}


def apply_to_tensor(image: Tensor, operation: Operation) -> Tensor:
    """Applies an operation to an image (3, H, W) uint8 with torchvision, without synchronizing.

    H and W must be 3 or more. The result differs from Pillow's by at most one gray level on average, for hues
    of saturated colors two: Pillow rounds hues and grays to integers, and approximates the Gaussian by three
    box filters.
    """
    from torchvision.transforms.v2 import functional as tv  # slow to import, rarely needed

    name, amount = operation
    changed: Tensor
    match name:
        case "autocontrast" | "equalize":
            changed = getattr(tv, name)(image)
        case "blur":
            border = math.ceil(3 * amount)  # extended like Pillow's; torchvision would mirror it
            extended = tv.pad(image, border, padding_mode="edge")
            changed = tv.gaussian_blur(extended, 2 * border + 1, amount)
            changed = changed[:, border:-border, border:-border]
        case "brightness" | "contrast" | "saturation":
            changed = getattr(tv, f"adjust_{name}")(image, amount)
        case "hue":
            # Pillow truncates a hue to 256 steps: half a step less on average. Wrapped to -0.5...0.5.
            changed = tv.adjust_hue(image, (amount + 127.5) % 256 / 256 - 0.5)
        case "posterize":
            changed = tv.posterize(image, int(amount))
        case "sharpness":
            changed = _sharpness(image, amount)
        case "solarize":
            changed = tv.solarize(image, amount)
    return changed


def apply_operations(image: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Applies operations to an image (3, H, W) uint8 with Pillow, in their order."""
    picture = to_picture(image)
    for operation in operations:
        picture = apply_to_picture(picture, operation)
    return to_tensor(picture)


def apply_operations_to_batch(images: Tensor, operations: Sequence[Sequence[Operation]]) -> Tensor:
    """Applies operations to each image of a batch (B, 3, H, W) uint8 on its device, see `apply_to_tensor`.

    Raises:
        ValueError: The images have another shape or dtype, or the number of operations differs.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (B, 3, h, w), got {images.dtype} {tuple(images.shape)}")
    if len(images) != len(operations):
        raise ValueError(f"{len(images)} images need as many changes, got {len(operations)}")
    changed = []
    with torch.autocast(images.device.type, enabled=False):
        for image, each in zip(images, operations, strict=True):
            for operation in each:
                image = apply_to_tensor(image, operation)
            changed.append(image)
    return torch.stack(changed)


def to_picture(image: Tensor) -> Image.Image:
    """Converts an image (3, H, W) uint8 to a picture of Pillow; raises ValueError for others."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image must be uint8 (3, H, W), got {image.dtype} of shape {tuple(image.shape)}")
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def to_tensor(picture: Image.Image) -> Tensor:
    """Converts an RGB picture of Pillow to (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _sharpness(image: Tensor, factor: float) -> Tensor:
    """Blends with the image smoothed by Pillow's filter, all ones but 5 at the center, except at the border.

    torchvision's `adjust_sharpness` copies this filter from the host, which synchronizes.
    """
    sharp = image.float()
    center = sharp[:, 1:-1, 1:-1]
    around = F.avg_pool2d(sharp, 3, stride=1, divisor_override=1)
    smooth = sharp.clone()
    smooth[:, 1:-1, 1:-1] = ((around + 4 * center) / 13).round()
    return (smooth + factor * (sharp - smooth)).clamp(0, 255).to(torch.uint8)
