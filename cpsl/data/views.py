"""Views for training: how they are drawn at random, and how images are drawn through them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from cpsl.data.changes import ColorOperation, StrongChanges
from cpsl.data.labels import IGNORE_INDEX
from cpsl.geometry import View

Move = tuple[str, float]

# What lies outside an image is shown as mid grey: no class looks like it, and it shifts no mean much.
OUTSIDE = 127


@dataclass(frozen=True)
class WeakView:
    """Draws a weak view: resize, crop, flip. The defaults are the paper's.

    Attributes:
        full_size: (H, W) that an image is brought to first, which settles its aspect.
        crop: (H, W) of the view.
        width: Width in pixels before the crop, times the random scale.
        scale: Range of the random scale, uniform. Where the scaled image would be smaller than the crop,
            it is enlarged to fit: a view never shows the outside.
        flip: Whether half of the views are mirrored.

    Raises:
        ValueError: A size, the width or a scale is not positive.

    Example:
        >>> weak = WeakView(full_size=(128, 256), crop=(64, 128), width=300)
        >>> view = weak.draw(size=(720, 1280), random=np.random.default_rng(0))
        >>> view.size
        (64, 128)
    """

    full_size: tuple[int, int] = (1024, 2048)
    crop: tuple[int, int] = (512, 896)
    width: int = 2200
    scale: tuple[float, float] = (0.5, 1.5)
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("full_size", "crop", "width", "scale"):
            value = getattr(self, name)
            if not all(number > 0 for number in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{name} must be positive, got {value}")

    def draw(self, size: tuple[int, int], random: np.random.Generator) -> View:
        """Returns a random view of an image.

        Args:
            size: (H, W) of the image as stored.
            random: Where the randomness comes from.
        """
        width = self.width * random.uniform(*self.scale)
        height = width * self.full_size[0] / self.full_size[1]
        enlarge = max(self.crop[0] / height, self.crop[1] / width, 1)
        scaled = (math.ceil(height * enlarge), math.ceil(width * enlarge))
        top = int(random.integers(scaled[0] - self.crop[0] + 1))
        left = int(random.integers(scaled[1] - self.crop[1] + 1))
        flip = self.flip and random.random() < 0.5
        return View.whole(size).resized(scaled).cropped(top, left, self.crop).flipped(flip)


@dataclass(frozen=True)
class StrongAugmentation:
    """Draws a strong view of a weak one: other colours, another geometry, a hole. Defaults: the paper's.

    Flip, blur, colour jitter and RandAugment's operations (Cubuk et al., 2020; the pool is FixMatch's) each
    happen with probability one half, the cutout always. Colours change on the image as drawn, in the order
    drawn; geometry is composed and sampled once.

    `order` and `translation` say how the view that is returned, by which labels are carried, follows the
    image. Their defaults are the truth; the other words restore what the authors' release does to labels.

    Attributes:
        blur: Radius of the Gaussian blur, in pixels.
        jitter: Largest relative change of brightness, contrast, saturation; of hue, as a part of its circle.
        operations: RandAugment operations drawn for each image.
        cutout: Side of the cutout as a part of the view's short side.
        order: "drawn" moves labels as the image was moved. "fixed" moves them by flip, shear x, shear y,
            translate x, translate y, rotate in this order, and of an operation that was drawn twice by the
            last alone.
        translation: "exact" translates labels as far as the image. "stretched" translates them
            horizontally by W/H times as much.

    Raises:
        ValueError: `order` or `translation` is another word.

    Example:
        >>> image = torch.zeros(3, 64, 128, dtype=torch.uint8)
        >>> weak = View.whole((64, 128))
        >>> strong, view = StrongAugmentation().draw(image, weak, np.random.default_rng(0))
        >>> strong.shape, view.size
        (torch.Size([3, 64, 128]), (64, 128))
    """

    blur: float = 1.0
    jitter: float = 0.4
    operations: int = 2
    cutout: float = 1 / 3
    order: Literal["drawn", "fixed"] = "drawn"
    translation: Literal["exact", "stretched"] = "exact"

    def __post_init__(self) -> None:
        if self.order not in ("drawn", "fixed"):
            raise ValueError(f'order must be "drawn" or "fixed", got {self.order!r}')
        if self.translation not in ("exact", "stretched"):
            raise ValueError(
                f'translation must be "exact" or "stretched", got {self.translation!r}'
            )

    def draw(self, image: Tensor, weak: View, random: np.random.Generator) -> tuple[Tensor, View]:
        """Returns a strong view and the image in it.

        Args:
            image: (3, h, w) uint8, the weak view of the image.
            weak: That view, of one image.
            random: Where the randomness comes from.

        Returns:
            (3, h, w) uint8, and the view by which labels are carried, like `weak` of the original.
        """
        changes, view = self.draw_changes(weak, random)
        return render_strong(image, changes), view

    def draw_changes(self, weak: View, random: np.random.Generator) -> tuple[StrongChanges, View]:
        """Draws a strong view and leaves it to be rendered: by `render_strong` or `render_strong_batch`.

        Args:
            weak: View of the weak image.
            random: Where the randomness comes from.

        Returns:
            What to change in the weak image, and the view by which labels are carried.
        """
        height, width = weak.size
        moves: list[Move] = []
        colors = [(ColorOperation.IDENTITY, 0.0)] * 4
        if random.random() < 0.5:
            moves.append(("flip", 1.0))
        blurred = random.random() < 0.5
        if random.random() < 0.5:
            colors = self._draw_jitter(random)
        for name in random.choice(len(_POOL), self.operations):
            magnitude = random.integers(1, 10) / 10
            sign = 1 if random.random() < 0.5 else -1
            operation, amount = ColorOperation.IDENTITY, 0.0
            if random.random() >= 0.5:
                change = _POOL[name]
                if isinstance(change, str):
                    moves.append((change, sign * magnitude * _LARGEST[change]))
                else:
                    operation, amount = change, _amount(change, magnitude)
            colors.append((operation, amount))
        side = int(min(height, width) * self.cutout)
        y, x = random.integers(height - side + 1), random.integers(width - side + 1)
        box = torch.tensor([x, y, x + side, y + side], dtype=torch.float32)

        changes = StrongChanges(
            blurred=torch.tensor([blurred]),
            operations=torch.tensor([[operation for operation, _ in colors]]),
            amounts=torch.tensor([[amount for _, amount in colors]], dtype=torch.float32),
            view=move(View.whole((height, width)), moves).with_cutout(box),
            blur=self.blur,
        )
        return changes, self.label_view(weak, moves).with_cutout(box)

    def label_view(self, weak: View, moves: Sequence[Move]) -> View:
        """Returns the view by which labels are carried where an image was moved.

        Args:
            weak: View to append to.
            moves: What was drawn, in this order, as `move` takes it.
        """
        if self.order == "fixed":
            last = dict(moves)
            moves = [(name, last[name]) for name in _MOVES if name in last]
        if self.translation == "stretched":
            stretch = weak.size[1] / weak.size[0]
            moves = [(n, by * stretch if n == "translate_x" else by) for n, by in moves]
        return move(weak, moves)

    def _draw_jitter(self, random: np.random.Generator) -> list[tuple[ColorOperation, float]]:
        brightness, contrast, color = 1 + random.uniform(-self.jitter, self.jitter, 3)
        hue = random.uniform(-self.jitter, self.jitter)
        changes = [
            (ColorOperation.BRIGHTNESS, float(brightness)),
            (ColorOperation.CONTRAST, float(contrast)),
            (ColorOperation.COLOR, float(color)),
            (ColorOperation.HUE, float(int(hue * 255))),
        ]
        return [changes[index] for index in random.permutation(len(changes))]


# Geometric operations are names, see `move`.
_POOL: tuple[str | ColorOperation, ...] = (
    ColorOperation.AUTOCONTRAST,
    ColorOperation.BRIGHTNESS,
    ColorOperation.COLOR,
    ColorOperation.CONTRAST,
    ColorOperation.EQUALIZE,
    ColorOperation.IDENTITY,
    ColorOperation.POSTERIZE,
    "rotate",
    ColorOperation.SHARPNESS,
    "shear_x",
    "shear_y",
    ColorOperation.SOLARIZE,
    "translate_x",
    "translate_y",
)


def _amount(operation: ColorOperation, magnitude: float) -> float:
    """Returns the amount of a RandAugment operation of magnitude 0.1...0.9."""
    if operation == ColorOperation.POSTERIZE:
        return 8 - math.ceil(4 * magnitude)
    if operation == ColorOperation.SOLARIZE:
        return int(256 * (1 - magnitude))
    # FixMatch (Sohn et al., 2020, table 12) draws the factor from 0.05...0.95: 1 is the image as it is.
    return 0.05 + 0.9 * magnitude


# In degrees, or as a part of the view's size.
_LARGEST = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}

# In the order of the release's labels; each takes a view and by how much.
_MOVES: dict[str, Callable[[View, float], View]] = {
    "flip": lambda view, by: view.flipped(),
    "shear_x": lambda view, by: view.sheared(x=by),
    "shear_y": lambda view, by: view.sheared(y=by),
    "translate_x": lambda view, by: view.translated(x=by * view.size[1]),
    "translate_y": lambda view, by: view.translated(y=by * view.size[0]),
    "rotate": lambda view, by: view.rotated(by),
}


def move(view: View, moves: Sequence[Move]) -> View:
    """Appends geometric operations to a view, one after the other.

    Args:
        view: Of one image.
        moves: Pairs of an operation and by how much: "flip" (any number), "shear_x" and "shear_y" (pixels
            a pixel), "translate_x" and "translate_y" (parts of the view's width or height), "rotate"
            (degrees).

    Returns:
        The moved view.
    """
    for name, by in moves:
        view = _MOVES[name](view, by)
    return view


def render(image: Tensor, view: View) -> Tensor:
    """Draws an image through a view.

    Views that only resize, crop and flip are drawn with antialiasing, others bilinearly.

    Args:
        image: (3, H, W) uint8.
        view: Of one image of this size.

    Returns:
        (3, h, w) uint8; mid grey where the view shows the outside.

    Raises:
        ValueError: The image has another shape or dtype, or there are several views.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).expand(3, 1, 4)
        >>> render(image, View.whole((1, 4)).flipped())[0]
        tensor([[3, 2, 1, 0]], dtype=torch.uint8)
    """
    _check_image(image)
    return _to_tensor(_draw(_to_pillow(image), view, Image.Resampling.BILINEAR, (OUTSIDE,) * 3))


def render_strong(image: Tensor, changes: StrongChanges) -> Tensor:
    """Draws the strong view of a weak one.

    Args:
        image: (3, h, w) uint8.
        changes: Of one image of this size.

    Returns:
        (3, h, w) uint8; mid grey in the cutout and where the outside is shown.

    Raises:
        ValueError: The image has another shape or dtype, or there are several changes.

    Example:
        >>> image = torch.full((3, 9, 9), 200, dtype=torch.uint8)
        >>> weak = View.whole((9, 9))
        >>> changes, view = StrongAugmentation().draw_changes(weak, np.random.default_rng(0))
        >>> x0, y0, x1, y1 = view.hidden[0].int().tolist()
        >>> render_strong(image, changes)[:, y0:y1, x0:x1].unique()
        tensor([127], dtype=torch.uint8)
    """
    _check_image(image)
    if len(changes) != 1:
        raise ValueError(f"one image is drawn with one view's changes, got {len(changes)}")
    picture = _to_pillow(image)
    if changes.blurred[0]:
        picture = picture.filter(ImageFilter.GaussianBlur(changes.blur))
    steps = zip(changes.operations[0].tolist(), changes.amounts[0].tolist(), strict=True)
    for operation, amount in steps:
        picture = _recolored(picture, ColorOperation(operation), amount)
    drawn = render(_to_tensor(picture), changes.view)
    if changes.view.hidden is not None:
        left, top, right, bottom = changes.view.hidden[0].int().tolist()
        drawn[:, top:bottom, left:right] = OUTSIDE
    return drawn


_ENHANCEMENTS: dict[ColorOperation, Callable[[Image.Image], Any]] = {
    ColorOperation.BRIGHTNESS: ImageEnhance.Brightness,
    ColorOperation.COLOR: ImageEnhance.Color,
    ColorOperation.CONTRAST: ImageEnhance.Contrast,
    ColorOperation.SHARPNESS: ImageEnhance.Sharpness,
}


def _recolored(picture: Image.Image, operation: ColorOperation, amount: float) -> Image.Image:
    match operation:
        case ColorOperation.AUTOCONTRAST:
            return ImageOps.autocontrast(picture)
        case ColorOperation.EQUALIZE:
            return ImageOps.equalize(picture)
        case ColorOperation.HUE:
            hue, saturation, value = picture.convert("HSV").split()
            hue = hue.point([(step + int(amount)) % 256 for step in range(256)])
            return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        case ColorOperation.IDENTITY:
            return picture
        case ColorOperation.POSTERIZE:
            return ImageOps.posterize(picture, int(amount))
        case ColorOperation.SOLARIZE:
            return ImageOps.solarize(picture, int(amount))
    enhanced: Image.Image = _ENHANCEMENTS[operation](picture).enhance(amount)
    return enhanced


def render_label(label: Tensor, view: View) -> Tensor:
    """Draws a label map through a view.

    Args:
        label: (H, W) uint8.
        view: Of one image of this size.

    Returns:
        (h, w) uint8, the nearest label; 255 where the view shows the outside.

    Raises:
        ValueError: The label has another shape or dtype, or there are several views.

    Example:
        >>> label = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
        >>> render_label(label, View.whole((1, 4)).flipped()).tolist()
        [[3, 2, 1, 0]]
    """
    if label.dtype != torch.uint8 or label.ndim != 2:
        raise ValueError(
            f"a label must be uint8 (H, W), got {label.dtype} of shape {tuple(label.shape)}"
        )
    picture = Image.fromarray(label.numpy())
    return torch.from_numpy(np.array(_draw(picture, view, Image.Resampling.NEAREST, IGNORE_INDEX)))


def _draw(
    picture: Image.Image,
    view: View,
    resample: Image.Resampling,
    outside: int | tuple[int, int, int],
) -> Image.Image:
    if len(view) != 1:
        raise ValueError(f"one image is drawn through one view, got {len(view)}")
    (a, b, x), (c, d, y) = view.matrix[0].tolist()
    height, width = view.size
    left, right = sorted((x, x + a * width))
    top, bottom = y, y + d * height
    # A hair of rounding beyond the border is still inside.
    inside = min(left, top, picture.width - right, picture.height - bottom) > -1e-3
    if b == c == 0 and d > 0 and inside:
        box = (max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height))
        drawn = picture.resize((width, height), resample, box=box)
        return ImageOps.mirror(drawn) if a < 0 else drawn
    return picture.transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, x, c, d, y),
        resample,
        fillcolor=outside,
    )


def _check_image(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"an image must be uint8 (3, H, W), got {image.dtype} of shape {tuple(image.shape)}"
        )


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
