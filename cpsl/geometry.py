"""Views of an image as affine maps: composed by multiplication, and one function that carries maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["pixels", "corners"]


@dataclass(frozen=True)
class View:
    """A batch of views: which place of the original each place of a view shows.

    Coordinates are (x, y) in full-resolution pixels; pixel i has its centre at i + 0.5, an image of width
    W spans 0...W. Every operation appends to the view and returns a new one; its arguments are numbers,
    or tensors (B,) with one value a sample.

    Attributes:
        matrix: (B, 2, 3) float32 maps a place of the view (x, y, 1) to the place of the original.
        size: (H, W) of the view.
        hidden: (B, 4) box x0, y0, x1, y1 of the view, half-open, that nothing is seen through; None
            where there is none.

    Example:
        The right half of an image, mirrored: its top left pixel is the original's top right one.

        >>> view = View.whole((4, 8)).cropped(0, 4, (4, 4)).flipped()
        >>> view.matrix @ torch.tensor([0.5, 0.5, 1.0])
        tensor([[7.5000, 0.5000]])
    """

    matrix: Tensor
    size: tuple[int, int]
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        if self.matrix.ndim != 3 or self.matrix.shape[1:] != (2, 3):
            raise ValueError(f"matrix must be (B, 2, 3), got shape {tuple(self.matrix.shape)}")
        if self.matrix.dtype != torch.float32:
            raise TypeError(f"matrix must be float32, got {self.matrix.dtype}")
        if min(self.size) < 1:
            raise ValueError(f"the size must be positive, got {self.size}")

    @staticmethod
    def whole(size: tuple[int, int], batch: int = 1, device: torch.device | str = "cpu") -> "View":
        """Returns the view that shows originals of one size as they are."""
        return View(torch.eye(2, 3, device=device).repeat(batch, 1, 1), size)

    @staticmethod
    def stack(views: Sequence["View"]) -> "View":
        """Joins views of one size into a batch.

        Raises:
            ValueError: The sizes differ.
        """
        sizes = {view.size for view in views}
        if len(sizes) != 1:
            raise ValueError(f"views of one batch must have one size, got {sorted(sizes)}")
        matrix = torch.cat([view.matrix for view in views])
        if all(view.hidden is None for view in views):
            return View(matrix, views[0].size)
        return View(matrix, views[0].size, torch.cat([view._hidden_box() for view in views]))

    def __len__(self) -> int:
        return len(self.matrix)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "View":
        """Moves the view to a device."""
        hidden = self.hidden
        if hidden is not None:
            hidden = hidden.to(device, non_blocking=non_blocking)
        return replace(
            self, matrix=self.matrix.to(device, non_blocking=non_blocking), hidden=hidden
        )

    def pin_memory(self) -> "View":
        """Returns a copy in page-locked memory, from which a GPU copies without waiting."""
        hidden = None if self.hidden is None else self.hidden.pin_memory()
        return replace(self, matrix=self.matrix.pin_memory(), hidden=hidden)

    def resized(self, size: tuple[int, int]) -> "View":
        """Stretches the view to another (H, W)."""
        if min(size) < 1:
            raise ValueError(f"the size must be positive, got {size}")
        across, down = self.size[1] / size[1], self.size[0] / size[0]
        return replace(self._append([[across, 0, 0], [0, down, 0]]), size=size)

    def cropped(self, top: float | Tensor, left: float | Tensor, size: tuple[int, int]) -> "View":
        """Shows (H, W) from a corner on; what lies outside the view is not clipped."""
        return replace(self._append([[1, 0, left], [0, 1, top]]), size=size)

    def flipped(self, flip: bool | Tensor = True) -> "View":
        """Mirrors left and right, where `flip` says so."""
        mirror = self._per_sample(flip)
        return self._append([[1 - 2 * mirror, 0, self.size[1] * mirror], [0, 1, 0]])

    def sheared(self, x: float | Tensor = 0.0, y: float | Tensor = 0.0) -> "View":
        """Reads (x, y) from (x + a·y, y) or (x, y + b·x), with a and b the arguments."""
        return self._append([[1, x, 0], [y, 1, 0]])

    def translated(self, x: float | Tensor = 0.0, y: float | Tensor = 0.0) -> "View":
        """Reads (x, y) from (x + a, y + b), with a and b the arguments, in pixels of the view."""
        return self._append([[1, 0, x], [0, 1, y]])

    def rotated(self, degrees: float | Tensor) -> "View":
        """Turns the view counter-clockwise about its centre."""
        angle = self._per_sample(degrees).deg2rad()
        cos, sin = angle.cos(), angle.sin()
        x, y = self.size[1] / 2, self.size[0] / 2
        # The y axis points down, so that this maps output to input of a counter-clockwise turn.
        return self._append([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])

    def with_cutout(self, box: Tensor) -> "View":
        """Hides a box; comes last.

        Args:
            box: (B, 4) or (4,) x0, y0, x1, y1, half-open.

        Raises:
            ValueError: There is a cutout already, or the box has another shape.
        """
        if box.shape not in ((4,), (len(self), 4)):
            raise ValueError(f"box must be (4,) or ({len(self)}, 4), got {tuple(box.shape)}")
        if self.hidden is not None:
            raise ValueError("a view has one cutout, and this one has it already")
        return replace(self, hidden=box.to(self.matrix).expand(len(self), 4))

    def _append(self, rows: Sequence[Sequence[float | Tensor]]) -> "View":
        """Appends a map from the new view's places to this one's."""
        if self.hidden is not None:
            raise ValueError("a cutout comes last: apply other operations before with_cutout")
        entries = [self._per_sample(entry) for row in rows for entry in row]
        operation = torch.stack(entries, dim=1).reshape(-1, 2, 3)
        return replace(self, matrix=_compose(self.matrix, operation))

    def _per_sample(self, value: float | Tensor) -> Tensor:
        """Returns one value a sample, (B,)."""
        if not isinstance(value, Tensor):
            # Filled in on the device: a copy of a number from the host would wait for it.
            return self.matrix.new_full((len(self),), value)
        if value.shape not in ((), (len(self),)):
            raise ValueError(
                f"{len(self)} views take one value or as many, got shape {tuple(value.shape)}"
            )
        return value.to(self.matrix).expand(len(self))

    def _hidden_box(self) -> Tensor:
        return self.matrix.new_zeros(len(self), 4) if self.hidden is None else self.hidden


class Carried(NamedTuple):
    """A map in another view.

    Attributes:
        values: (B, C, h, w) or (B, h, w), of the dtype that came in; the fill where nothing was seen.
        seen: (B, h, w) bool.
    """

    values: Tensor
    seen: Tensor


def carry(
    maps: Tensor,
    source: View,
    target: View,
    size: tuple[int, int] | torch.Size | None = None,
    *,
    layout: Layout = "pixels",
    output_layout: Layout | None = None,
    fill: float | None = None,
) -> Carried:
    """Carries a map that was made in one view of an image into another view of the same image.

    Each place of the target is looked up where the source shows it, by one sampling of the whole batch.

    Args:
        maps: (B, C, h, w) floating, sampled bilinearly; or (B, h, w) integer labels, of which the nearest
            is taken. Any resolution: the map spans the source view.
        source: View that the map was made in.
        target: View to carry it to.
        size: (h', w') of the result; that of the target view if None.
        layout: Where the values lie: "pixels" in the centres of equal cells, as in images and labels, or
            "corners" on nodes of which the outer ones are the centres of the view's outer pixels, as in
            the output of a network that was made with aligned corners.
        output_layout: Layout of the result; `layout` if None.
        fill: Value where nothing is seen; 0 for floating maps and 255 for labels if None.

    Returns:
        The map in the target view, and where it was seen: inside the source view and not hidden in
        either of the two.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> image = View.whole((2, 4))
        >>> labels = torch.tensor([[[0, 1, 2, 3], [4, 5, 6, 7]]])
        >>> carry(labels, image, image.translated(x=2)).values
        tensor([[[  2,   3, 255, 255],
                 [  6,   7, 255, 255]]])
    """
    is_label = not maps.is_floating_point()
    if maps.ndim != (3 if is_label else 4):
        raise ValueError(
            "maps must be floating (B, C, h, w) or integer (B, h, w), "
            f"got {maps.dtype} of shape {tuple(maps.shape)}"
        )
    if not len(maps) == len(source) == len(target):
        raise ValueError(
            f"{len(maps)} maps need as many views, got {len(source)} and {len(target)}"
        )
    output_layout = output_layout or layout
    if not {layout, output_layout} <= {"pixels", "corners"}:
        raise ValueError(f'a layout is "pixels" or "corners", got {layout!r}, {output_layout!r}')
    size = target.size if size is None else (size[0], size[1])
    height, width = source.size

    x = _places(target.size[1], size[1], output_layout, maps.device)
    y = _places(target.size[0], size[0], output_layout, maps.device)[:, None]
    seen = ~_inside(x, y, target._hidden_box()[:, :, None, None].unbind(1))
    matrix = _compose(_inverse(source.matrix), target.matrix)[:, :, :, None, None]
    x, y = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in matrix.unbind(1))
    seen = seen & _inside(x, y, (0, 0, width, height))
    seen = seen & ~_inside(x, y, source._hidden_box()[:, :, None, None].unbind(1))
    grid = torch.stack([_normalized(x, width, layout), _normalized(y, height, layout)], dim=3)

    with torch.autocast(maps.device.type, enabled=False):
        values = F.grid_sample(
            (maps[:, None] if is_label else maps).float(),
            grid,
            mode="nearest" if is_label else "bilinear",
            # At the border the outermost value counts alone; beyond it `seen` is false.
            padding_mode="border",
            align_corners=layout == "corners",
        ).to(maps.dtype)
    if fill is None:
        fill = 255 if is_label else 0
    # A number in torch.where would be copied to the device, and waited for.
    values = values.masked_fill(~seen[:, None], fill)
    return Carried(values[:, 0] if is_label else values, seen)


def carry_enlarged(
    maps: Tensor,
    source: View,
    target: View,
    size: tuple[int, int] | torch.Size,
    enlarged: tuple[int, int] | torch.Size,
) -> Tensor:
    """Enlarges a network's output and carries it into another view, without ever making the enlarged map.

    The result is that of a bilinear resizing with aligned corners, followed by `carry`. Between views that
    differ in scale, place and mirroring only, both are products with a matrix on either side of the map,

        V = (S_y R_y) M (S_x R_x)ᵀ,   R, S = max(0, 1 - |place - node|)

    of which the small ones are multiplied first.

    Args:
        maps: (B, C, h, w) floating, on nodes of which the outer ones are the centres of the corner pixels.
        source: View that the map was made in.
        target: View to carry it to; neither turned nor sheared against the source, which is not checked.
        size: (h', w') of the result, on nodes like `maps`.
        enlarged: (H, W) of the map in between.

    Returns:
        (B, C, h', w') float32; the outermost value where the target shows what the source does not.

    Raises:
        ValueError: The numbers of maps and views differ.

    Example:
        >>> maps, image = torch.rand(1, 8, 5, 9), View.whole((32, 64))
        >>> view = image.resized((40, 80)).cropped(4, 8, (16, 32)).flipped()
        >>> got = carry_enlarged(maps, image, view, (4, 8), enlarged=(8, 16))
        >>> large = F.interpolate(maps, (8, 16), mode="bilinear", align_corners=True)
        >>> wanted = carry(large, image, view, (4, 8), layout="corners").values
        >>> torch.allclose(got, wanted, atol=1e-5)
        True
    """
    if not len(maps) == len(source) == len(target):
        raise ValueError(
            f"{len(maps)} maps need as many views, got {len(source)} and {len(target)}"
        )
    matrix = _compose(_inverse(source.matrix), target.matrix)
    with torch.autocast(maps.device.type, enabled=False):
        sides = []
        for axis in (0, 1):  # down, across
            place = _places(target.size[axis], size[axis], "corners", maps.device)
            row = matrix[:, 1 - axis]
            place = row[:, 1 - axis, None] * place + row[:, 2, None]
            node = (place - 0.5) * ((enlarged[axis] - 1) / max(source.size[axis] - 1, 1))
            step = (maps.shape[2 + axis] - 1) / max(enlarged[axis] - 1, 1)
            between = torch.arange(enlarged[axis], device=maps.device) * step
            sample = _hats(node.clamp(0, enlarged[axis] - 1), enlarged[axis])
            sides.append(sample @ _hats(between, maps.shape[2 + axis]))
        down, across = sides
        # Channels innermost, as networks give them: then neither product has to copy the map.
        wide: Tensor = across[:, None] @ maps.float().movedim(1, 3)
        values: Tensor = (down @ wide.flatten(2)).unflatten(2, wide.shape[2:])
        return values.movedim(3, 1)


def _hats(places: Tensor, nodes: int) -> Tensor:
    """Returns the weights (..., n, nodes) of bilinear interpolation at places (..., n) in 0...nodes - 1."""
    node = torch.arange(nodes, device=places.device)
    return (1 - (places[..., None] - node).abs()).clamp_min(0)


# Maps are composed and applied by elementwise arithmetic: under autocast or with TF32 a matrix product would
# round coordinates by pixels.
def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Returns outer ∘ inner of (B, 2, 3) maps."""
    product = (outer[:, :, :2, None] * inner[:, None]).sum(dim=2)
    return torch.cat([product[:, :, :2], product[:, :, 2:] + outer[:, :, 2:]], dim=2)


def _inverse(matrix: Tensor) -> Tensor:
    """Returns the inverse of (B, 2, 3) maps."""
    a, b, x, c, d, y = matrix.flatten(1).unbind(1)
    entries = [d, -b, b * y - d * x, -c, a, c * x - a * y]
    return torch.stack(entries, dim=1).reshape(-1, 2, 3) / (a * d - b * c)[:, None, None]


def _places(extent: int, count: int, layout: Layout, device: torch.device) -> Tensor:
    """Returns where along a view the values of a map lie, (count,)."""
    index = torch.arange(count, device=device, dtype=torch.float32)
    if layout == "pixels":
        return (index + 0.5) * (extent / count)
    return index * ((extent - 1) / max(count - 1, 1)) + 0.5


def _normalized(places: Tensor, extent: int, layout: Layout) -> Tensor:
    """Returns places along a view as torch's grid_sample counts them: -1...1 over the map."""
    if layout == "pixels":
        return places * (2 / extent) - 1
    return (places - 0.5) * (2 / max(extent - 1, 1)) - 1


def _inside(x: Tensor, y: Tensor, box: Sequence[float | Tensor]) -> Tensor:
    """Returns whether places lie in the half-open box x0, y0, x1, y1."""
    left, top, right, bottom = box
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)
