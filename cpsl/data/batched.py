"""Strong views of a whole batch by tensor operations, on whatever device it lies.

Each operation is computed for all images, and each image takes the one that was drawn for it: nothing waits
for the device. Values are rounded as Pillow rounds them, to uint8 after each operation, so that both ways to
draw a strong view agree.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from cpsl.data.changes import ColorOperation, StrongChanges
from cpsl.data.views import OUTSIDE
from cpsl.geometry import View, carry


def render_strong_batch(images: Tensor, changes: StrongChanges) -> Tensor:
    """Draws the strong views of a batch of weak ones; `render_strong` does it for one image with Pillow.

    Args:
        images: (B, 3, h, w) uint8, at least 3 pixels high and wide.
        changes: What to change in each, on the same device.

    Returns:
        (B, 3, h', w') uint8, of the size of `changes.view`; mid grey in the cutout and where the outside is
        shown.

    Raises:
        ValueError: The images have another shape or dtype, or there are not as many changes.

    Example:
        >>> import numpy as np
        >>> from cpsl.data import StrongAugmentation, render_strong
        >>> image = torch.arange(3 * 16 * 16).reshape(3, 16, 16).to(torch.uint8)
        >>> changes, _ = StrongAugmentation().draw_changes(
        ...     View.whole((16, 16)), np.random.default_rng(1)
        ... )
        >>> batch = render_strong_batch(image[None], changes)
        >>> bool(((batch[0].int() - render_strong(image, changes).int()).abs() <= 1).all())
        True
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (B, 3, h, w), got {images.dtype} of shape {tuple(images.shape)}"
        )
    if len(images) != len(changes):
        raise ValueError(f"{len(images)} images need as many changes, got {len(changes)}")
    blurred = changes.blurred[:, None, None, None]
    changed = torch.where(blurred, _gaussian_blur(images, changes.blur), images)
    steps = zip(changes.operations.unbind(1), changes.amounts.unbind(1), strict=True)
    for step, (operation, amount) in enumerate(steps):
        candidates = _JITTER if step < len(_JITTER) else _RAND_AUGMENT
        changed = _choose(changed, operation, amount, candidates)
    whole = View.whole((images.shape[2], images.shape[3]), len(images), images.device)
    carried = carry(changed.float(), whole, changes.view, fill=OUTSIDE)
    # Pillow cuts off what it has interpolated; a hair keeps whole numbers from falling to the one below.
    return (carried.values + 0.01).to(torch.uint8)


# Takes images (B, 3, h, w) uint8 and amounts (B, 1, 1, 1), returns changed images.
Change = Callable[[Tensor, Tensor], Tensor]


def _choose(
    images: Tensor,
    operation: Tensor,
    amount: Tensor,
    candidates: tuple[tuple[ColorOperation, Change], ...],
) -> Tensor:
    """Changes each image by the operation (B,) drawn for it, or by none where it is not a candidate."""
    operation, amount = operation[:, None, None, None], amount[:, None, None, None]
    chosen = images
    for candidate, change in candidates:
        chosen = torch.where(operation == int(candidate), change(images, amount), chosen)
    return chosen


def _gaussian_blur(images: Tensor, radius: float) -> Tensor:
    """Blurs by three box filters along each axis (Gwosdek et al., 2011), in 24 bits of fixed point."""
    if radius == 0:
        return images
    reach, inner = _box(radius)
    outer = (2**24 - (2 * reach + 1) * inner) // 2
    values = images.long()
    for axis in (3, 3, 3, 2, 2, 2):
        extent = values.shape[axis]
        places = torch.arange(-reach - 1, extent + reach + 1, device=values.device)
        padded = values.index_select(axis, places.clamp(0, extent - 1))
        whole = padded.narrow(axis, 1, extent + 2 * reach)
        whole = whole.unfold(axis, 2 * reach + 1, 1).sum(dim=-1)
        ends = padded.narrow(axis, 0, extent) + padded.narrow(axis, 2 * reach + 2, extent)
        values = (whole * inner + ends * outer + 2**23) >> 24
    return values.to(torch.uint8)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _box(radius: float) -> tuple[int, int]:
    """Returns how many pixels the box reaches whole to each side, and their weight in 24 bits.

    Equations 7, 11 and 14 of Gwosdek et al. In float32 like Pillow, since another digit is another weight.
    """
    exact = np.float32
    variance = exact(radius) * exact(radius) / exact(3)
    reach = math.floor((exact(math.sqrt(12 * float(variance) + 1)) - 1) / 2)
    part = exact(2 * reach + 1) * (exact(reach * (reach + 1)) - exact(3) * variance)
    part /= exact(6) * (variance - exact((reach + 1) ** 2))
    return reach, int(exact(2**24) / ((exact(reach) + part) * exact(2) + exact(1)))


def _blend(without: Tensor, images: Tensor, amount: Tensor) -> Tensor:
    """Returns without + amount · (images − without), cut off to whole numbers in 0...255."""
    without = without.float()
    return (without + amount * (images.float() - without)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Returns the luma of ITU-R 601-2, 0.299 R + 0.587 G + 0.114 B, in 16 bits of fixed point."""
    red, green, blue = images.int().split(1, dim=1)
    grey: Tensor = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return grey


def _autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    # In float64 and for each of the 256 values, which are few: in float32 the largest may miss 255.
    low = images.amin(dim=(2, 3)).double()[:, :, None]
    high = images.amax(dim=(2, 3)).double()[:, :, None]
    values = torch.arange(256, device=images.device, dtype=torch.float64)
    scale = torch.full_like(high, 255) / (high - low)
    table = torch.where(high > low, values * scale - low * scale, values).clamp(0, 255)
    stretched = table.to(torch.uint8).gather(2, images.flatten(2).long())
    return stretched.view_as(images)


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, amount)


def _color(images: Tensor, amount: Tensor) -> Tensor:
    return _blend(_grey(images), images, amount)


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    pixels = images.shape[2] * images.shape[3]
    total = _grey(images).sum(dim=(1, 2, 3), keepdim=True)
    return _blend((2 * total + pixels) // (2 * pixels), images, amount)


def _equalize(images: Tensor, amount: Tensor) -> Tensor:
    equalized: Tensor = VF.equalize_image(images)
    return equalized


def _posterize(images: Tensor, amount: Tensor) -> Tensor:
    dropped = (8 - amount).clamp(0, 7).to(torch.uint8)
    kept: Tensor = (images >> dropped) << dropped
    return kept


def _sharpness(images: Tensor, amount: Tensor) -> Tensor:
    # Pillow's SMOOTH: the center counts five times, and the border stays as it is.
    around = F.avg_pool2d(images.float(), 3, stride=1, divisor_override=1)
    smooth = images.float()
    center = smooth[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = ((around + 4 * center + 6.5) / 13).floor()
    return _blend(smooth, images, amount)


def _solarize(images: Tensor, amount: Tensor) -> Tensor:
    return torch.where(images < amount, images, 255 - images)


def _hue(images: Tensor, amount: Tensor) -> Tensor:
    """Turns the hue of HSV (Smith, 1978), all three in uint8.

    One step of hue is up to six of a channel, so that this is float32 and float64 just where Pillow's is.
    """
    value = images.amax(dim=1, keepdim=True).float()
    chroma = value - images.amin(dim=1, keepdim=True).float()
    red, green, blue = images.float().split(1, dim=1)
    # Of grey pixels, of which all of these are zero, a hue and a saturation of zero come out.
    to_red, to_green, to_blue = (
        ((value - channel) / chroma.clamp_min(1)).double() for channel in (red, green, blue)
    )
    sixth = torch.where(green == value, 2 + to_red - to_blue, 4 + to_green - to_red)
    sixth = torch.where(red == value, to_blue - to_green, sixth).float().double()
    hue = ((sixth / 6 + 1).fmod(1).float().double() * 255).int()
    saturation = ((chroma / value.clamp_min(1)).double() * 255).floor()

    place = ((hue + amount.int()) & 255).double() * 6 / 255
    sector = place.floor()
    rising, saturation = (place - sector).float(), (saturation / 255).float()
    value = value.double()
    low = (value * (1 - saturation.double()) + 0.5).floor()
    down = (value * (1 - (saturation * rising).double()) + 0.5).floor()
    up = (value * (1 - saturation.double() * (1 - rising.double())) + 0.5).floor()
    # Red over the six sectors is value, down, low, low, up, value; green and blue follow by two each.
    behind = 2 * torch.arange(3, device=images.device)[:, None, None]
    sector = (sector - behind).remainder(6)
    turned = torch.where((sector == 0) | (sector == 5), value, low)
    turned = torch.where(sector == 1, down, turned)
    return torch.where(sector == 4, up, turned).to(torch.uint8)


_JITTER: tuple[tuple[ColorOperation, Change], ...] = (
    (ColorOperation.BRIGHTNESS, _brightness),
    (ColorOperation.COLOR, _color),
    (ColorOperation.CONTRAST, _contrast),
    (ColorOperation.HUE, _hue),
)

_RAND_AUGMENT: tuple[tuple[ColorOperation, Change], ...] = (
    (ColorOperation.AUTOCONTRAST, _autocontrast),
    (ColorOperation.BRIGHTNESS, _brightness),
    (ColorOperation.COLOR, _color),
    (ColorOperation.CONTRAST, _contrast),
    (ColorOperation.EQUALIZE, _equalize),
    (ColorOperation.POSTERIZE, _posterize),
    (ColorOperation.SHARPNESS, _sharpness),
    (ColorOperation.SOLARIZE, _solarize),
)
