"""Pictures of labels, heatmaps, assignments and views, as uint8 tensors (3, H, W)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl.geometry import View

Color = tuple[int, int, int]
Palette = Sequence[Color]

# Five colors of viridis (Smith and van der Walt, 2015), between which the heatmap interpolates.
_HEAT = torch.tensor(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=torch.float32
)
_RIM = (20, 20, 20)  # around dots, for contrast with a background of their own color


def colorize(label: Tensor, palette: Palette) -> Tensor:
    """Colors each pixel by its class.

    Args:
        label: (H, W) integer class indices; other values are black.
        palette: K colors (R, G, B), 0...255.

    Example:
        >>> colorize(torch.tensor([[0, 255]]), [(10, 20, 30)]).flatten(1)
        tensor([[10,  0],
                [20,  0],
                [30,  0]], dtype=torch.uint8)
    """
    colors = torch.tensor([*palette, (0, 0, 0)], dtype=torch.uint8, device=label.device)
    label = label.long()
    known = (label >= 0) & (label < len(palette))
    return colors[torch.where(known, label, len(palette))].movedim(-1, 0)


def overlay(image: Tensor, label: Tensor, palette: Palette, alpha: float = 0.5) -> Tensor:
    """Blends an image with the colors of its classes; ignored pixels show the image alone.

    Args:
        image: (3, H, W) uint8.
        label: (H, W) integer class indices.
        palette: K colors (R, G, B), 0...255.
        alpha: Weight of the colors, 0...1.

    Raises:
        ValueError: The image is not uint8 (3, H, W), or the label has another size.

    Example:
        >>> image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
        >>> overlay(image, torch.tensor([[0, 255]]), [(200, 0, 0)])[0]
        tensor([[150, 100]], dtype=torch.uint8)
    """
    _check_image(image)
    check_shape("label", label, *image.shape[1:], advice="; resize it with cpsl.geometry.resize_labels")
    known = (label >= 0) & (label < len(palette))
    return _blend(image, colorize(label, palette), alpha * known)


def heatmap(values: Tensor) -> Tensor:
    """Colors values (H, W) from dark blue (0 and below) to yellow (1 and above).

    Example:
        >>> heatmap(torch.tensor([[0.0, 1.0]])).flatten(1).t()
        tensor([[ 68,   1,  84],
                [253, 231,  37]], dtype=torch.uint8)
    """
    position = values.float().nan_to_num().clamp(0, 1) * (len(_HEAT) - 1)
    low = position.floor().long().clamp_max(len(_HEAT) - 2)
    heat = _HEAT.to(values.device)
    colors = heat[low].lerp(heat[low + 1], (position - low)[..., None])
    return colors.round().to(torch.uint8).movedim(-1, 0)


def similarity_map(
    similarity: Tensor,
    size: tuple[int, int] | torch.Size,
    prototype: int | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
    align_corners: bool = True,
) -> Tensor:
    """Colors an image by the similarity to one prototype, or to the most similar one of each pixel.

    The similarities are upsampled bilinearly, like the network's output.

    Args:
        similarity: (K, h, w) cosines of one image, from `prototype_similarity`.
        size: (H, W) of the image.
        prototype: Index of the prototype; None takes the largest cosine of each pixel.
        limits: Cosines shown as dark blue and as yellow; pictures to be compared need the same limits.
        align_corners: Corner-aligned or half-pixel grid of the similarities, as in
            `torch.nn.functional.interpolate`.

    Raises:
        ValueError: The shape is wrong, the prototype does not exist, or the limits are not in order.

    Example:
        A feature equal to the prototype, one orthogonal to it, one opposite:

        >>> cosines = torch.tensor([[[1.0, 0.0, -1.0]]])
        >>> similarity_map(cosines, (1, 3), prototype=0).flatten(1).t()
        tensor([[253, 231,  37],
                [ 33, 145, 140],
                [ 68,   1,  84]], dtype=torch.uint8)
    """
    check_shape("similarity", similarity, "K", "h", "w")
    if prototype is not None and not 0 <= prototype < len(similarity):
        raise ValueError(f"there are prototypes 0...{len(similarity) - 1}, not {prototype}")
    low, high = limits
    if not low < high:
        raise ValueError(f"limits must be (low, high) with low < high, got {limits}")
    if prototype is not None:
        similarity = similarity[prototype : prototype + 1]
    similarity = similarity[None].float()
    resized = F.interpolate(similarity, list(size), mode="bilinear", align_corners=bool(align_corners))
    return heatmap((resized[0].amax(dim=0) - low) / (high - low))


def assignment_map(
    images: Tensor,
    indices: Tensor,
    assignments: Tensor,
    grid: tuple[int, int] | torch.Size,
    palette: Palette,
    radius: int = 3,
    align_corners: bool = True,
) -> Tensor:
    """Draws the pixels sampled by a clustering step as dots in the colors of their classes.

    The color of a dot is that of the largest assignment. Its position is that of the feature in the image.
    Later dots cover earlier ones.

    Args:
        images: (B, 3, H, W) uint8, the clustered batch.
        indices: `ClusteringOutput.indices`, positions of N pixels in the flattened batch, any shape.
        assignments: `ClusteringOutput.assignments`, (N, K) in the order of the indices.
        grid: (h, w) of the features.
        palette: K colors (R, G, B), 0...255.
        radius: Radius of a dot in pixels.
        align_corners: Corner-aligned or half-pixel grid of the features, as in
            `torch.nn.functional.interpolate`.

    Returns:
        (B, 3, H, W) uint8.

    Raises:
        ValueError: A shape is wrong, or (on the CPU) an index is outside of the batch.

    Example:
        The lower right of 2 x 2 features is assigned to the second class:

        >>> images = torch.full((1, 3, 5, 5), 255, dtype=torch.uint8)
        >>> shown = assignment_map(
        ...     images, torch.tensor([[3]]), torch.tensor([[0.1, 0.9]]), (2, 2),
        ...     palette=[(0, 0, 0), (7, 8, 9)], radius=0,
        ... )
        >>> shown[0, :, 4, 4]
        tensor([7, 8, 9], dtype=torch.uint8)
    """
    check_shape("images", images, "B", 3, "H", "W")
    for image in images:
        _check_image(image)
    indices = indices.flatten()
    check_shape("assignments", assignments, len(indices), len(palette))
    nodes = grid[0] * grid[1]
    last = len(images) * nodes - 1
    if indices.device.type == "cpu" and ((indices < 0) | (indices > last)).any():
        raise ValueError(f"indices must be 0...{last}, got {int(indices.min())}...{int(indices.max())}")
    image_of, node = indices // nodes, indices % nodes
    y = _pixel_of_node(node // grid[1], grid[0], images.shape[2], align_corners)
    x = _pixel_of_node(node % grid[1], grid[1], images.shape[3], align_corners)
    color_of = torch.tensor(palette, dtype=torch.uint8, device=images.device)
    color_of = color_of[assignments.argmax(dim=1)].movedim(1, 0)
    rim = torch.tensor(_RIM, dtype=torch.uint8, device=images.device)[:, None, None, None]
    rimmed = _disc_owners(image_of, y, x, radius + 1, images[:, 0])[None] >= 0
    owner = _disc_owners(image_of, y, x, radius, images[:, 0])[None]
    shown = torch.where(rimmed, rim, images.movedim(1, 0))
    if len(indices):
        shown = torch.where(owner >= 0, color_of[:, owner[0].clamp_min(0)], shown)
    return shown.movedim(0, 1)


def outline(image: Tensor, view: View, color: Color = (255, 255, 255), thickness: float = 2.0) -> Tensor:
    """Draws the outlines of a view and of its cutout, as far as they are inside, over the original image.

    A disc marks the upper left corner of the view, which shows whether it is mirrored or rotated.

    Args:
        image: (3, H, W) uint8, the original.
        view: One view of this image.
        color: (R, G, B), 0...255.
        thickness: Thickness of the lines in pixels of the image.

    Raises:
        ValueError: The image is not uint8 (3, H, W), or there are several views.

    Example:
        The upper right quarter of a black image, and the rows of its outline:

        >>> view = View.whole((16, 16)).cropped(0, 8, (8, 8))
        >>> shown = outline(torch.zeros(3, 16, 16, dtype=torch.uint8), view, thickness=1.0)
        >>> (shown[0, :, 12] > 0).nonzero().flatten().tolist()
        [0, 7, 8]
    """
    _check_image(image)
    if len(view) != 1:
        raise ValueError(f"an image needs one view, got {len(view)}")
    height, width = view.size
    boxes = [view.matrix.new_tensor([0, 0, width, height])]
    if view.cutout is not None:
        boxes.append(view.cutout[0])
    y = torch.arange(image.shape[1], device=image.device)[:, None] + 0.5
    x = torch.arange(image.shape[2], device=image.device) + 0.5
    distance = torch.full(image.shape[1:], torch.inf, device=image.device)
    linear, shift = view.matrix[0].to(image.device).split([2, 1], dim=1)
    for left, top, right, bottom in boxes:
        points = torch.stack([left, top, right, top, right, bottom, left, bottom]).reshape(4, 2)
        corners = (points.to(linear)[:, None] * linear).sum(dim=2) + shift[:, 0]
        for start, end in zip(corners, corners.roll(-1, dims=0), strict=True):
            distance = torch.minimum(distance, _distance_to_segment(x, y, start, end))
    origin = torch.hypot(x - shift[0], y - shift[1]) - 2 * thickness
    # A transition of one pixel, for smooth lines of rotated views.
    alpha = (thickness / 2 + 0.5 - torch.minimum(distance, origin)).clamp(0, 1)
    ink = torch.tensor(color, dtype=torch.uint8, device=image.device)[:, None, None]
    return _blend(image, ink.expand_as(image), alpha)


def titled(image: Tensor, title: str, height: int = 22) -> Tensor:
    """Adds a title above a picture, black on white.

    Args:
        image: (3, H, W) uint8.
        title: One line; a title wider than the picture is cut off.
        height: Height of the title in pixels, which is added to that of the picture.

    Raises:
        ValueError: The image is not uint8 (3, H, W), or the height is below 8 pixels.

    Example:
        >>> titled(torch.zeros(3, 40, 80, dtype=torch.uint8), "before").shape
        torch.Size([3, 62, 80])
    """
    _check_image(image)
    if height < 8:
        raise ValueError(f"a title needs a height of 8 pixels or more, got {height}")
    strip = Image.new("RGB", (image.shape[2], height), "white")
    font = ImageFont.load_default(size=round(0.62 * height))
    ImageDraw.Draw(strip).text((1, height // 2), title, fill="black", font=font, anchor="lm")
    heading = torch.from_numpy(np.array(strip)).movedim(-1, 0).to(image.device)
    return torch.cat([heading, image], dim=1)


def panel(images: Sequence[Tensor], columns: int, gap: int = 4) -> Tensor:
    """Arranges pictures of one size in a grid on a white background.

    Args:
        images: (3, H, W) uint8 each, row by row.
        columns: Number of pictures per row.
        gap: Gap between pictures in pixels.

    Raises:
        ValueError: The sizes differ, or the number of columns or the gap is too small.

    Example:
        >>> before, after = torch.zeros(2, 3, 40, 80, dtype=torch.uint8)
        >>> panel([titled(before, "before"), titled(after, "after")], columns=2).shape
        torch.Size([3, 62, 164])
    """
    if len({image.shape for image in images}) != 1:
        raise ValueError("the pictures of a panel must have one size")
    if columns < 1 or gap < 0:
        raise ValueError(f"columns must be 1 or more and gap 0 or more, got {columns} and {gap}")
    padded = [F.pad(image, (0, gap, 0, gap), value=255) for image in images]
    blank = torch.full_like(padded[0], 255)
    padded += [blank] * (-len(padded) % columns)
    rows = [torch.cat(padded[i : i + columns], dim=2) for i in range(0, len(padded), columns)]
    return torch.cat(rows, dim=1)[:, : -gap or None, : -gap or None]


def _check_image(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image must be uint8 (3, H, W), got {image.dtype} of shape {tuple(image.shape)}")


def _blend(image: Tensor, colors: Tensor, alpha: Tensor) -> Tensor:
    """Mixes two (3, H, W) uint8 pictures by the (H, W) weight of the second."""
    return image.float().lerp(colors.float(), alpha.float()).round().to(torch.uint8)


def _pixel_of_node(node: Tensor, nodes: int, pixels: int, align_corners: bool) -> Tensor:
    """Returns the pixel nearest to a node of a grid along one axis."""
    if not align_corners:
        return ((2 * node + 1) * pixels) // (2 * nodes)
    return (node * ((pixels - 1) / max(nodes - 1, 1))).round().long()


def _disc_owners(image_of: Tensor, y: Tensor, x: Tensor, radius: int, like: Tensor) -> Tensor:
    """Returns for each pixel of (B, H, W) the index of the last of N discs that covers it, or -1."""
    batch, height, width = like.shape
    side = torch.arange(-radius, radius + 1, device=like.device)
    # Half a pixel more than the radius makes small discs round.
    dy, dx = (side[:, None] ** 2 + side**2 <= (radius + 0.5) ** 2).nonzero().t() - radius
    y, x = y[:, None] + dy, x[:, None] + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    position = ((image_of[:, None] * height + y) * width + x)[inside]
    number = torch.arange(len(y), device=like.device)[:, None].expand_as(y)[inside]
    owners = torch.full((batch * height * width,), -1, device=like.device)
    return owners.scatter_reduce_(0, position, number, "amax").reshape(like.shape)


def _distance_to_segment(x: Tensor, y: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns the distances (H, W) of the points x (W,), y (H, 1) from a segment."""
    along = end - start
    part = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / along.square().sum()
    part = part.nan_to_num().clamp(0, 1)  # a segment of length 0 is a point
    return torch.hypot(x - start[0] - part * along[0], y - start[1] - part * along[1])
