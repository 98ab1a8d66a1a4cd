"""Random views for training: sampling them, and rendering images and labels in them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cpsl.data.jitter import ColorJitter
from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.operations import Operation, apply_operations, apply_operations_to_batch, to_picture, to_tensor
from cpsl.geometry import View, warp

Move = tuple[str, float]
"""Geometric operation and its amount, see `move`."""

OUTSIDE = 127
"""Gray level outside of an image: no class looks like it, and it hardly changes the mean."""


@dataclass(frozen=True)
class WeakView:
    """Samples weak views: random resize, crop and flip. The defaults are the paper's.

    Attributes:
        full_size: (H, W) to which an image is resized first, which sets its aspect ratio.
        crop: (H, W) of the view.
        width: Width in pixels before the crop, multiplied by the random scale.
        scale: Range of the uniform random scale; images smaller than the crop are enlarged to its size.
        flip: Whether half of the views are mirrored.

    Raises:
        ValueError: A size, the width or a scale is not positive, or the range of the scale is reversed.

    Example:
        >>> weak = WeakView(full_size=(128, 256), crop=(64, 128), width=300)
        >>> weak.sample(size=(720, 1280), random=np.random.default_rng(0)).size
        (64, 128)
    """

    full_size: tuple[int, int] = (1024, 2048)
    crop: tuple[int, int] = (512, 896)
    width: int = 2200
    scale: tuple[float, float] = (0.5, 1.5)
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("full_size", "crop", "width", "scale"):
            if not np.min(getattr(self, name)) > 0:  # NaN is refused too
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be a range from low to high, got {self.scale}")

    @staticmethod
    def of_size(full_size: tuple[int, int]) -> "WeakView":
        """Returns the paper's view at another full size (H, W): crop and width change in proportion.

        Example:
            >>> WeakView.of_size((1024, 2048)) == WeakView()
            True
        """
        height, width = full_size
        return WeakView(full_size, (height // 2, width * 7 // 16), round(width * 2200 / 2048))

    def sample(self, size: tuple[int, int], random: np.random.Generator) -> View:
        """Samples a view of an image of the stored size (H, W)."""
        width = self.width * random.uniform(*self.scale)
        height = width * self.full_size[0] / self.full_size[1]
        enlarge = max(self.crop[0] / height, self.crop[1] / width, 1)
        scaled = (math.ceil(height * enlarge), math.ceil(width * enlarge))
        top = int(random.integers(scaled[0] - self.crop[0] + 1))
        left = int(random.integers(scaled[1] - self.crop[1] + 1))
        flip = self.flip and random.random() < 0.5
        return View.whole(size).resized(scaled).cropped(top, left, self.crop).flipped(flip)


@dataclass(frozen=True)
class StrongChanges:
    """Changes that turn a weak view into a strong one, as plain numbers; see `render_strong`.

    Attributes:
        operations: Operations on the appearance in their order, see `cpsl.data.operations`.
        moves: Geometric operations in their order, see `move`.
        cutout: Box x0, y0, x1, y1 in pixels of the strong view, half-open, that becomes mid gray.
    """

    operations: tuple[Operation, ...]
    moves: tuple[Move, ...]
    cutout: tuple[int, int, int, int]

    def apply_cutout(self, image: Tensor) -> None:
        """Fills the cutout of an image (3, h, w), in place."""
        left, top, right, bottom = self.cutout
        image[:, top:bottom, left:right] = OUTSIDE


@dataclass(frozen=True)
class StrongAugmentation:
    """Samples strong views of weak ones. The defaults are the paper's.

    Flip, blur, color jitter and each RandAugment operation (Cubuk et al., 2020; FixMatch's pool) are applied
    with probability one half, the cutout always. The appearance changes first, in the order sampled; then all
    geometric operations are composed and the image is resampled once.

    Attributes:
        blur: Standard deviation of the Gaussian blur in pixels.
        jitter: Largest relative change of brightness, contrast and saturation, and largest rotation of the
            hue as a fraction of the color circle, 0...0.5.
        operations: Number of RandAugment operations per image.
        cutout: Side of the cutout as a fraction of the view's short side, 0...1.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> image = torch.zeros(3, 64, 128, dtype=torch.uint8)
        >>> weak = View.whole((64, 128))
        >>> strong, view = StrongAugmentation().sample(image, weak, np.random.default_rng(0))
        >>> strong.shape, view.size
        (torch.Size([3, 64, 128]), (64, 128))
    """

    blur: float = 1.0
    jitter: float = 0.4
    operations: int = 2
    cutout: float = 1 / 3

    def __post_init__(self) -> None:
        for name, largest in (("blur", math.inf), ("jitter", 0.5), ("operations", math.inf), ("cutout", 1)):
            value = getattr(self, name)
            if not 0 <= value <= largest or math.isinf(value):
                upper = "0 or more" if math.isinf(largest) else f"in 0...{largest}"
                raise ValueError(f"StrongAugmentation: {name} must be {upper}, got {value}")

    def sample(self, image: Tensor, weak: View, random: np.random.Generator) -> tuple[Tensor, View]:
        """Samples a strong view and renders it.

        Args:
            image: (3, h, w) uint8, the weak view of an image.
            weak: Geometry of that view.
            random: Source of randomness.

        Returns:
            The strong view (3, h, w) uint8, and its geometry relative to the original image.
        """
        changes, view = self.sample_changes(weak, random)
        return render_strong(image, changes), view

    def sample_changes(self, weak: View, random: np.random.Generator) -> tuple[StrongChanges, View]:
        """Samples the changes of a weak view for `render_strong`, and the geometry of the strong view.

        Both geometries are relative to the original image.
        """
        height, width = weak.size
        moves, operations = list[Move](), list[Operation]()
        if random.random() < 0.5:
            moves.append(("flip", 1.0))
        if random.random() < 0.5 and self.blur > 0:
            operations.append(("blur", self.blur))
        if random.random() < 0.5:
            operations += ColorJitter(self.jitter, hue=self.jitter).sample(random)
        for index in random.choice(len(_POOL), self.operations):
            name, magnitude = _POOL[index], random.integers(1, 10) / 10
            sign = 1 if random.random() < 0.5 else -1
            if random.random() < 0.5 or name == "identity":
                continue
            if name in MOVES:
                moves.append((name, sign * magnitude * _LARGEST[name]))
            else:
                operations.append((name, _amount(name, magnitude)))
        side = int(min(height, width) * self.cutout)
        top, left = (int(random.integers(length - side + 1)) for length in (height, width))
        box = (left, top, left + side, top + side)
        view = self.label_view(weak, moves).with_cutout(torch.tensor(box, dtype=torch.float32))
        return StrongChanges(tuple(operations), tuple(moves), box), view

    def label_view(self, weak: View, moves: Sequence[Move]) -> View:
        """Returns the view in which labels follow a weak view after geometric operations, in their order."""
        return move(weak, moves)


_POOL = (
    "autocontrast", "brightness", "saturation", "contrast", "equalize", "identity", "posterize",
    "rotate", "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
)  # fmt: skip

# In degrees, or as a fraction of the view's size.
_LARGEST = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}


def _amount(name: str, magnitude: float) -> float:
    """Returns the amount of a RandAugment operation of magnitude 0.1...0.9."""
    if name == "posterize":
        return 8 - math.ceil(4 * magnitude)
    if name == "solarize":
        return int(256 * (1 - magnitude))
    # FixMatch (Sohn et al., 2020, table 12) samples the factor from 0.05...0.95; 1 keeps the image.
    return 0.05 + 0.9 * magnitude


MOVES: dict[str, Callable[[View, float], View]] = {
    "flip": lambda view, by: view.flipped(),
    "shear_x": lambda view, by: view.sheared(x=by),
    "shear_y": lambda view, by: view.sheared(y=by),
    "translate_x": lambda view, by: view.translated(x=by * view.size[1]),
    "translate_y": lambda view, by: view.translated(y=by * view.size[0]),
    "rotate": lambda view, by: view.rotated(by),
}


def move(view: View, moves: Sequence[Move]) -> View:
    """Appends geometric operations to a single view.

    Names and amounts are "flip" (ignores its amount), "shear_x" and "shear_y" (pixels per pixel),
    "translate_x" and "translate_y" (fractions of the view's width or height), and "rotate" (degrees).
    """
    for name, by in moves:
        view = MOVES[name](view, by)
    return view


def render(image: Tensor, view: View) -> Tensor:
    """Renders an image (3, H, W) uint8 in a single view: (3, h, w) uint8, mid gray outside of the image.

    Views that only resize, crop and flip are resampled with antialiasing, others bilinearly.

    Raises:
        ValueError: The image has another shape or dtype, or there are several views.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).expand(3, 1, 4)
        >>> render(image, View.whole((1, 4)).flipped())[0]
        tensor([[3, 2, 1, 0]], dtype=torch.uint8)
    """
    return to_tensor(_render_picture(to_picture(image), view))


def render_label(label: Tensor, view: View) -> Tensor:
    """Renders a label map (H, W) uint8 in a single view: the nearest labels (h, w), 255 outside of the image.

    Raises:
        ValueError: The label has another shape or dtype, or there are several views.

    Example:
        >>> label = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
        >>> render_label(label, View.whole((1, 4)).flipped()).tolist()
        [[3, 2, 1, 0]]
    """
    if label.dtype != torch.uint8 or label.ndim != 2:
        raise ValueError(f"a label must be uint8 (H, W), got {label.dtype} of shape {tuple(label.shape)}")
    return torch.from_numpy(np.array(_render_picture(Image.fromarray(label.numpy()), view)))


def render_strong(image: Tensor, changes: StrongChanges) -> Tensor:
    """Renders the strong view of a weak one (3, h, w) uint8 with Pillow.

    The result has the same shape; it is mid gray in the cutout and outside of the image.
    """
    picture = to_picture(apply_operations(image, changes.operations))
    view = move(View.whole((picture.height, picture.width)), changes.moves)
    strong = to_tensor(_render_picture(picture, view))
    changes.apply_cutout(strong)
    return strong


def render_strong_batch(images: Tensor, changes: Sequence[StrongChanges]) -> Tensor:
    """Renders the strong views of a batch (B, 3, h, w) uint8 on its device, without synchronizing.

    The result is that of `render_strong` up to rounding, see `apply_to_tensor`; h and w must be 3 or more.
    """
    changed = apply_operations_to_batch(images, [each.operations for each in changes])
    size, device = (images.shape[2], images.shape[3]), images.device
    # The views are computed on the device: numbers need no copy from the host, which would synchronize.
    strong = View.stack([move(View.whole(size, 1, device), each.moves) for each in changes])
    weak = View.whole(size, len(changes), device)
    values = warp(changed.float(), weak, strong, fill=OUTSIDE).values
    # Pillow truncates interpolated values; 0.05 exceeds the rounding error of an exact integer.
    rendered = (values + 0.05).to(torch.uint8)
    for image, each in zip(rendered, changes, strict=True):
        each.apply_cutout(image)
    return rendered


def _render_picture(picture: Image.Image, view: View) -> Image.Image:
    """Renders a picture: RGB bilinearly, a label map with the nearest label."""
    if len(view) != 1:
        raise ValueError(f"one image is rendered in one view, got {len(view)}")
    is_label = picture.mode == "L"
    resample = Image.Resampling.NEAREST if is_label else Image.Resampling.BILINEAR
    (a, b, x), (c, d, y) = view.matrix[0].tolist()
    height, width = view.size
    left, right = sorted((x, x + a * width))
    top, bottom = y, y + d * height
    # Positions that rounding has moved across the border count as inside.
    inside = min(left, top, picture.width - right, picture.height - bottom) > -1e-3
    if b == c == 0 and d > 0 and inside:
        box = (max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height))
        rendered = picture.resize((width, height), resample, box=box)
        return ImageOps.mirror(rendered) if a < 0 else rendered
    affine, fill = (a, b, x, c, d, y), IGNORE_INDEX if is_label else (OUTSIDE,) * 3
    return picture.transform((width, height), Image.Transform.AFFINE, affine, resample, fillcolor=fill)
