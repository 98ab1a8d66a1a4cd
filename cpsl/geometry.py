"""Views of an image as affine maps, and one function that warps any map between views."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.affine import compose, inverse, positions
from cpsl._internal.checking import check_exact, check_shape


class View:
    """A batch of affine maps from the coordinates of views to those of the original images.

    Coordinates are (x, y) in full-resolution pixels: the center of pixel i is i + 0.5, and an image of width
    W covers 0...W. Operations are applied to the view and return a new one. Their arguments are numbers, or
    tensors (B,) with one value per sample.

    Attributes:
        matrix: (B, 2, 3) float32, maps view coordinates (x, y, 1) to coordinates of the original.
        size: (H, W) of the view.
        cutout: (B, 4) half-open boxes x0, y0, x1, y1 of the view that are not valid, or None.

    Raises:
        ValueError: The matrix has another shape, or the size is not positive.
        TypeError: The matrix is not float32.

    Example:
        The mirrored right half of an image: its top left pixel is the original's top right pixel.

        >>> view = View.whole((4, 8)).cropped(0, 4, (4, 4)).flipped()
        >>> view.matrix @ torch.tensor([0.5, 0.5, 1.0])
        tensor([[7.5000, 0.5000]])
    """

    # Not a dataclass: Lightning converts the tensors of those to the precision of a network, which is too low
    # for positions.
    def __init__(self, matrix: Tensor, size: tuple[int, int], cutout: Tensor | None = None) -> None:
        check_shape("matrix", matrix, "B", 2, 3)
        if matrix.dtype != torch.float32:
            raise TypeError(f"matrix must be float32, got {matrix.dtype}")
        if min(size) < 1:
            raise ValueError(f"the size must be positive, got {size}")
        self.matrix = matrix
        self.size = size
        self.cutout = cutout

    def __repr__(self) -> str:
        return f"View(matrix={self.matrix}, size={self.size}, cutout={self.cutout})"

    @staticmethod
    def whole(size: tuple[int, int], batch: int = 1, device: torch.device | str = "cpu") -> "View":
        """Returns the identity view of images of one size (H, W)."""
        return View(torch.eye(2, 3, dtype=torch.float32, device=device).repeat(batch, 1, 1), size)

    @staticmethod
    def stack(views: Sequence["View"]) -> "View":
        """Concatenates views of one size into a batch.

        Raises:
            ValueError: The sizes differ.
        """
        sizes = {view.size for view in views}
        if len(sizes) != 1:
            raise ValueError(f"views of one batch must have one size, got {sorted(sizes)}")
        matrix = torch.cat([view.matrix for view in views])
        if all(view.cutout is None for view in views):
            return View(matrix, views[0].size)
        return View(matrix, views[0].size, torch.cat([view._cutout_box() for view in views]))

    def __len__(self) -> int:
        return len(self.matrix)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "View":
        """Moves the view to a device."""
        cutout = None if self.cutout is None else self.cutout.to(device, non_blocking=non_blocking)
        return View(self.matrix.to(device, non_blocking=non_blocking), self.size, cutout)

    def pin_memory(self) -> "View":
        """Returns a copy in page-locked memory, for asynchronous copies to a GPU."""
        cutout = None if self.cutout is None else self.cutout.pin_memory()
        return View(self.matrix.pin_memory(), self.size, cutout)

    def resized(self, size: tuple[int, int]) -> "View":
        """Resizes the view to (H, W)."""
        if min(size) < 1:
            raise ValueError(f"the size must be positive, got {size}")
        across, down = self.size[1] / size[1], self.size[0] / size[0]
        return View(self._append([[across, 0, 0], [0, down, 0]]).matrix, size)

    def cropped(self, top: float | Tensor, left: float | Tensor, size: tuple[int, int]) -> "View":
        """Crops (H, W) at the given top left corner, which may exceed the view."""
        return View(self._append([[1, 0, left], [0, 1, top]]).matrix, size)

    def flipped(self, flip: bool | Tensor = True) -> "View":
        """Flips horizontally where `flip` is true."""
        mirror = self._per_sample(flip)
        return self._append([[1 - 2 * mirror, 0, self.size[1] * mirror], [0, 1, 0]])

    def sheared(self, x: float | Tensor = 0.0, y: float | Tensor = 0.0) -> "View":
        """Shears: (x, y) of the new view is (x + a·y, y + b·x) of this one, for arguments a and b."""
        return self._append([[1, x, 0], [y, 1, 0]])

    def translated(self, x: float | Tensor = 0.0, y: float | Tensor = 0.0) -> "View":
        """Translates: (x, y) of the new view is (x + a, y + b) of this one, with a and b in pixels."""
        return self._append([[1, 0, x], [0, 1, y]])

    def rotated(self, degrees: float | Tensor) -> "View":
        """Rotates the image counter-clockwise about the center of the view."""
        angle = self._per_sample(degrees).deg2rad()
        cos, sin = angle.cos(), angle.sin()
        x, y = self.size[1] / 2, self.size[0] / 2
        # The y axis points down, so that this matrix maps output to input of a counter-clockwise rotation.
        return self._append([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])

    def with_cutout(self, box: Tensor) -> "View":
        """Marks a half-open box x0, y0, x1, y1 as not valid, (4,) or (B, 4); must be the last operation.

        Raises:
            ValueError: The view already has a cutout, or the box has another shape.
        """
        if box.shape not in ((4,), (len(self), 4)):
            raise ValueError(f"box must be (4,) or ({len(self)}, 4), got {tuple(box.shape)}")
        if self.cutout is not None:
            raise ValueError("the view already has its one cutout")
        return View(self.matrix, self.size, box.to(self.matrix).expand(len(self), 4))

    def _append(self, rows: Sequence[Sequence[float | Tensor]]) -> "View":
        """Composes with the map from the coordinates of the new view to those of this one."""
        if self.cutout is not None:
            raise ValueError("the cutout must be last: apply other operations before with_cutout")
        entries = [self._per_sample(entry) for row in rows for entry in row]
        operation = torch.stack(entries, dim=1).reshape(-1, 2, 3)
        return View(compose(self.matrix, operation), self.size)

    def _per_sample(self, value: float | Tensor) -> Tensor:
        """Returns one value per sample, (B,)."""
        if not isinstance(value, Tensor):
            # Filled on the device, because a copy from the host would synchronize.
            return self.matrix.new_full((len(self),), value)
        if value.shape not in ((), (len(self),)):
            raise ValueError(f"{len(self)} views need 1 or as many values, got shape {tuple(value.shape)}")
        return value.to(self.matrix).expand(len(self))

    def _cutout_box(self) -> Tensor:
        return self.matrix.new_zeros(len(self), 4) if self.cutout is None else self.cutout


class Warped(NamedTuple):
    """Result of `warp`.

    Attributes:
        values: (B, C, h, w) or (B, h, w), dtype of the input; the fill value where not valid.
        valid: (B, h, w) bool, inside the source view and outside the cutouts of both views.
    """

    values: Tensor
    valid: Tensor


def warp(
    maps: Tensor,
    source: View,
    target: View,
    size: tuple[int, int] | torch.Size | None = None,
    *,
    align_corners: bool = False,
    output_align_corners: bool | None = None,
    fill: float | None = None,
) -> Warped:
    """Warps a map from one view of an image to another view of the same image.

    The composed affine map of both views is sampled once.

    Args:
        maps: (B, C, h, w) floating, sampled bilinearly, or (B, h, w) integer labels, sampled by nearest
            neighbor. Any resolution: the map covers the whole source view.
        source: View of the map.
        target: View of the result.
        size: (h', w') of the result; None is that of the target view.
        align_corners: As in `torch.nn.functional.interpolate`. False: the samples of `maps` are centers of
            equal cells, as in images. True: the outermost samples are centers of the outermost pixels, as in
            the output of a corner-aligned network.
        output_align_corners: The same for the result; None is `align_corners`.
        fill: Value where not valid; None is 0 for floating maps and 255 for labels.

    Raises:
        ValueError: The shapes do not match, or (on the CPU) labels exceed 2**24: float32 changes them.

    Example:
        >>> image = View.whole((2, 4))
        >>> labels = torch.tensor([[[0, 1, 2, 3], [4, 5, 6, 7]]])
        >>> warp(labels, image, image.translated(x=2)).values
        tensor([[[  2,   3, 255, 255],
                 [  6,   7, 255, 255]]])
    """
    is_label = not maps.is_floating_point()
    if maps.ndim != (3 if is_label else 4):
        got = f"{maps.dtype} of shape {tuple(maps.shape)}"
        raise ValueError(f"maps must be floating (B, C, h, w) or integer (B, h, w), got {got}")
    if is_label:
        check_exact("labels", maps)
    if not len(maps) == len(source) == len(target):
        raise ValueError(f"{len(maps)} maps need as many views, got {len(source)} and {len(target)}")
    if output_align_corners is None:
        output_align_corners = align_corners
    size = target.size if size is None else (size[0], size[1])
    height, width = source.size

    x = positions(target.size[1], size[1], output_align_corners, maps.device)
    y = positions(target.size[0], size[0], output_align_corners, maps.device)[:, None]
    valid = ~_inside(x, y, target._cutout_box()[:, :, None, None].unbind(1))
    matrix = compose(inverse(source.matrix), target.matrix)[:, :, :, None, None]
    x, y = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in matrix.unbind(1))
    valid = valid & _inside(x, y, (0, 0, width, height))
    valid = valid & ~_inside(x, y, source._cutout_box()[:, :, None, None].unbind(1))
    grid = torch.stack([_normalized(x, width, align_corners), _normalized(y, height, align_corners)], dim=3)

    with torch.autocast(maps.device.type, enabled=False):
        values = F.grid_sample(
            (maps[:, None] if is_label else maps).float(),
            grid,
            mode="nearest" if is_label else "bilinear",
            # The outermost sample extends to the border of the view; beyond, `valid` is false.
            padding_mode="border",
            align_corners=bool(align_corners),
        ).to(maps.dtype)
    if fill is None:
        fill = 255 if is_label else 0
    # torch.where would copy the number to the device and synchronize.
    values = values.masked_fill(~valid[:, None], fill)
    return Warped(values[:, 0] if is_label else values, valid)


def resize_labels(labels: Tensor, size: tuple[int, int] | torch.Size, align_corners: bool = True) -> Tensor:
    """Resizes labels to the grid of a network's output by nearest neighbor.

    Equal to `warp` with one view of the whole image. Labels of this size are returned unchanged.

    Args:
        labels: (B, H, W) integer, at any resolution.
        size: (h, w) of the grid, which covers the same image.
        align_corners: Convention of the grid, as in `torch.nn.functional.interpolate`: True if its outermost
            samples are the centers of the outermost labels, False if its samples are centers of equal cells.

    Raises:
        ValueError: The labels are not (B, H, W).
        TypeError: The labels are not integers.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 1, 2, 2]]])
        >>> resize_labels(labels, (1, 3))
        tensor([[[0, 1, 2]]])
    """
    check_shape("labels", labels, "B", "H", "W")
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    if labels.is_floating_point():
        raise TypeError(f"labels must be integer class indices, got {labels.dtype}")
    whole = View.whole((labels.shape[1], labels.shape[2]), len(labels), labels.device)
    return warp(labels, whole, whole, size, output_align_corners=align_corners).values


def _normalized(positions: Tensor, extent: int, align_corners: bool) -> Tensor:
    """Converts positions along a side of a view to coordinates of `grid_sample`, -1...1."""
    if align_corners:
        return (positions - 0.5) * (2 / max(extent - 1, 1)) - 1
    return positions * (2 / extent) - 1


def _inside(x: Tensor, y: Tensor, box: Sequence[float | Tensor]) -> Tensor:
    """Returns whether positions are in the half-open box x0, y0, x1, y1."""
    left, top, right, bottom = box
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)
