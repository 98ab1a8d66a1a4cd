import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl import ClassBalancedPrototypeClustering, View, prototype_similarity, warp
from cpsl.visualize import assignment_map, colorize, heatmap, outline, overlay, panel, similarity_map, titled

PALETTE = [(255, 0, 0), (0, 255, 0)]
WHITE = (255, 255, 255)


def gray(height: int, width: int, batch: int | None = None) -> torch.Tensor:
    size = (3, height, width) if batch is None else (batch, 3, height, width)
    return torch.full(size, 100, dtype=torch.uint8)


def test_classes_are_colored_and_other_labels_black() -> None:
    shown = colorize(torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8), PALETTE)
    assert shown[:, 0].t().tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 0], [0, 0, 0]]


def test_an_overlay_shows_the_image_alone_where_labels_are_ignored() -> None:
    image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    shown = overlay(image, torch.tensor([[0, 255]]), PALETTE, alpha=0.5)
    assert shown[:, 0, 0].tolist() == [178, 50, 50]
    assert shown[:, 0, 1].tolist() == [100, 100, 100]


def test_a_heatmap_gets_brighter() -> None:
    shown = heatmap(torch.tensor([[-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0, torch.nan]]))
    brightness = shown.float().mean(dim=0)[0]
    assert (brightness[1:6].diff() > 0).all()
    assert brightness[0] == brightness[1] == brightness[7]
    assert brightness[5] == brightness[6]


def test_a_panel_contains_all_pictures() -> None:
    pictures = [torch.full((3, 4, 6), value, dtype=torch.uint8) for value in (0, 50, 100)]
    shown = panel(pictures, columns=2, gap=2)
    assert shown.shape == (3, 10, 14)
    assert shown[0, 0, 0] == 0
    assert shown[0, 0, 8] == 50
    assert shown[0, 6, 0] == 100
    assert shown[0, 6, 8] == 255
    with pytest.raises(ValueError, match="one size"):
        panel([pictures[0], torch.zeros(3, 2, 2, dtype=torch.uint8)], 2)
    for columns, gap in ((0, 4), (-1, 4), (2, -1)):
        with pytest.raises(ValueError, match=rf"columns.* gap.*{columns} and {gap}"):
            panel(pictures, columns, gap)


def test_a_title_is_added_above_the_unchanged_picture() -> None:
    image = torch.randint(256, (3, 20, 60), dtype=torch.uint8)
    shown = titled(image, "before", height=18)
    assert shown.shape == (3, 38, 60)
    assert torch.equal(shown[:, 18:], image)
    assert (shown[:, :18] < 100).any()
    assert (titled(image, "", height=18)[:, :18] == 255).all()
    assert titled(image, "a title that is far too long for this", height=18).shape == shown.shape
    with pytest.raises(ValueError, match="8 pixels"):
        titled(image, "x", height=4)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.integers(1, 5), seed=st.integers(0, 2**20)
)
def test_a_similarity_map_equals_the_heatmap_at_the_nodes(
    grid: tuple[int, int], scale: int, seed: int
) -> None:
    torch.manual_seed(seed)
    similarity = prototype_similarity(torch.randn(1, 4, *grid), torch.randn(3, 4))[0]
    size = tuple((extent - 1) * scale + 1 for extent in grid)  # nodes lie on pixels
    best = similarity_map(similarity, size)
    one = similarity_map(similarity, size, prototype=1)
    assert best.shape == one.shape == (3, *size)
    assert torch.equal(best[:, ::scale, ::scale].int().float(), heatmap((similarity.amax(0) + 1) / 2).float())
    near = (one[:, ::scale, ::scale].int() - heatmap((similarity[1] + 1) / 2).int()).abs()
    assert near.max() <= 1
    # Half-pixel: the nodes are the centers of equal cells.
    size = tuple(extent * (2 * scale - 1) for extent in grid)
    half = similarity_map(similarity, size, prototype=1, align_corners=False)
    nodes = half[:, scale - 1 :: 2 * scale - 1, scale - 1 :: 2 * scale - 1].int()
    assert (nodes - heatmap((similarity[1] + 1) / 2).int()).abs().max() <= 1


def test_limits_stretch_the_colors_of_similarities() -> None:
    cosines = torch.tensor([[[0.5, 0.9]]])
    assert torch.equal(
        similarity_map(cosines, (1, 2), limits=(0.5, 0.9)), heatmap(torch.tensor([[0.0, 1.0]]))
    )
    for wrong in ((0.5, 0.5), (1.0, 0.0)):
        with pytest.raises(ValueError, match="low < high"):
            similarity_map(cosines, (1, 2), limits=wrong)
    with pytest.raises(ValueError, match=r"prototypes 0\.\.\.0, not 1"):
        similarity_map(cosines, (1, 2), prototype=1)
    with pytest.raises(ValueError, match="K, h, w"):
        similarity_map(cosines[None], (1, 2))


@given(
    batch=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(20, 40), st.integers(20, 40)),
    align_corners=st.booleans(),
    data=st.data(),
)
def test_an_assigned_pixel_is_drawn_at_its_position_in_its_color(
    batch: int, grid: tuple[int, int], size: tuple[int, int], align_corners: bool, data: st.DataObject
) -> None:
    nodes = batch * grid[0] * grid[1]
    index = data.draw(st.integers(0, nodes - 1))
    kind = data.draw(st.integers(0, 1))
    shown = assignment_map(
        gray(*size, batch=batch),
        torch.tensor([[index]]),
        torch.eye(2)[[kind]],
        grid,
        PALETTE,
        2,
        align_corners=align_corners,
    )
    image, y, x = (index // (grid[0] * grid[1]), index // grid[1] % grid[0], index % grid[1])
    if align_corners:  # the outer nodes lie on the outer pixels
        row = round(y * (size[0] - 1) / max(grid[0] - 1, 1))
        column = round(x * (size[1] - 1) / max(grid[1] - 1, 1))
    else:  # the nodes are the centers of equal cells
        row, column = (int((i + 0.5) * n / m) for i, n, m in zip((y, x), size, grid, strict=True))
    painted = (shown == torch.tensor(PALETTE[kind])[:, None, None]).all(dim=1).nonzero()
    assert (painted[:, 0] == image).all()
    far = torch.hypot((painted[:, 1] - row).float(), (painted[:, 2] - column).float())
    assert far.max() <= 2.5
    assert [image, row, column] in [
        [b, r + dr, c + dc]
        for b, r, c in painted.tolist()
        for dr in (-1, 0, 1)  # a node between two pixels may be rounded to either
        for dc in (-1, 0, 1)
    ]
    changed = (shown != 100).any(dim=1)
    assert changed.sum() <= 49


def test_the_later_of_two_dots_is_on_top_and_images_are_unchanged() -> None:
    images = gray(9, 9, batch=1)
    both = torch.tensor([[4, 4]])
    for first, second in ((0, 1), (1, 0)):
        shown = assignment_map(images, both, torch.eye(2)[[first, second]], (3, 3), PALETTE)
        assert tuple(shown[0, :, 4, 4].tolist()) == PALETTE[second]
    assert (images == 100).all()


def test_the_output_of_the_clustering_can_be_drawn() -> None:
    clustering = ClassBalancedPrototypeClustering(2, 4, bank_size=8, samples_per_image=5)
    output = clustering(torch.randn(2, 4, 6, 7), torch.randint(2, (2, 6, 7)))
    images = gray(48, 56, batch=2)
    shown = assignment_map(images, output.indices, output.assignments, (6, 7), PALETTE)
    assert shown.shape == images.shape
    assert (shown != images).any()
    none = torch.empty(0, dtype=torch.int64)
    nothing = assignment_map(images, none, torch.empty(0, 2), (6, 7), PALETTE)
    assert torch.equal(nothing, images)
    with pytest.raises(ValueError, match=r"assignments must be \(10, 2\)"):
        assignment_map(images, output.indices, output.assignments[:3], (6, 7), PALETTE)
    with pytest.raises(ValueError, match=r"0\.\.\.7"):
        assignment_map(images, output.indices + 50, output.assignments, (2, 2), PALETTE)


views = st.builds(
    lambda top, left, degrees, shear, flip: (
        View.whole((60, 80)).cropped(top, left, (30, 40)).flipped(flip).sheared(x=shear).rotated(degrees)
    ),
    top=st.floats(0, 30),
    left=st.floats(0, 40),
    degrees=st.floats(-180, 180),
    shear=st.floats(-0.3, 0.3),
    flip=st.booleans(),
)


@given(view=views, thickness=st.floats(1, 4))
def test_an_outline_follows_the_border_of_the_view(view: View, thickness: float) -> None:
    shown = outline(gray(60, 80), view, WHITE, thickness)
    painted = shown[0] > 100
    # Nothing is drawn inside or outside of the border, except the disc at the corner.
    whole = View.whole((60, 80))
    inner = view.cropped(thickness + 1, thickness + 1, (1, 1))
    margin = 2 * (thickness + 1)
    inner = View(inner.matrix, (int(30 - margin), int(40 - margin)))
    label = torch.ones(1, *inner.size, dtype=torch.int64)
    inside = warp(label, inner, whole).valid[0]
    outer = view.cropped(-thickness - 1, -thickness - 1, (1, 1))
    outer = View(outer.matrix, (math.ceil(30 + margin), math.ceil(40 + margin)))
    outside = ~warp(torch.ones(1, *outer.size, dtype=torch.int64), outer, whole).valid[0]
    x, y = view.matrix[0, :, 2].tolist()
    rows, columns = torch.arange(60)[:, None] + 0.5, torch.arange(80) + 0.5
    away = torch.hypot(rows - y, columns - x) > 2.5 * thickness + 1
    assert not (painted & inside & away).any()
    assert not (painted & outside & away).any()


@given(view=views)
def test_the_corners_of_a_view_are_drawn(view: View) -> None:
    shown = outline(gray(60, 80), view, WHITE, thickness=3.0)
    corners = torch.tensor([[0.0, 0, 1], [40, 0, 1], [40, 30, 1], [0, 30, 1]])
    for x, y in (view.matrix[0] @ corners.t()).t().tolist():
        if 1 <= x < 79 and 1 <= y < 59:
            assert shown[0, int(y), int(x)] == 255


def test_the_upper_left_corner_shows_whether_a_view_is_mirrored() -> None:
    view = View.whole((40, 60)).cropped(5, 10, (30, 40))
    marked = [
        (outline(gray(40, 60), one, WHITE)[0, 7:9, 12:48] > 150).nonzero()[:, 1].float().mean()
        for one in (view, view.flipped())
    ]
    assert marked[0] < 5
    assert marked[1] > 28


def test_the_cutout_box_of_a_view_is_outlined_too() -> None:
    view = View.whole((40, 60)).cropped(0, 20, (40, 40))
    with_cutout = view.with_cutout(torch.tensor([10.0, 10, 20, 20]))
    before, after = (outline(gray(40, 60), one, WHITE, 1.0) for one in (view, with_cutout))
    rows, columns = (before != after).any(dim=0).nonzero().t()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 20, 29, 40)
    assert torch.equal(before[:, 12:18, 32:38], after[:, 12:18, 32:38])


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8), gray(4, 4)[0]]
)
def test_other_images_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        titled(wrong, "x")
    with pytest.raises(ValueError, match="uint8"):
        outline(wrong, View.whole((4, 4)))
    with pytest.raises(ValueError, match="uint8"):
        overlay(wrong, torch.zeros(4, 4, dtype=torch.int64), PALETTE)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label must be \(4, 4\)"):
        overlay(gray(4, 4), torch.zeros(2, 2, dtype=torch.int64), PALETTE)
    with pytest.raises(ValueError, match="got 2"):
        outline(gray(4, 4), View.whole((4, 4), batch=2))
    with pytest.raises(ValueError, match="B, 3, H, W"):
        assignment_map(gray(4, 4), torch.zeros(1, 1), torch.zeros(1, 2), (2, 2), PALETTE)


@pytest.mark.cuda
def test_pictures_are_equal_on_a_gpu() -> None:
    images = torch.randint(256, (1, 3, 24, 32), dtype=torch.uint8)
    similarity = torch.rand(2, 3, 4) * 2 - 1
    indices, assignments = torch.tensor([[0, 5, 11]]), torch.eye(2)[[0, 1, 1]]
    view = View.whole((24, 32)).rotated(20).with_cutout(torch.tensor([2.0, 2, 9, 9]))
    label = torch.randint(3, (24, 32))

    def draw(device: str) -> torch.Tensor:
        here = images.to(device)
        dots = assignment_map(here, indices.to(device), assignments.to(device), (3, 4), PALETTE)
        pictures = [
            dots[0],
            similarity_map(similarity.to(device), (24, 32)),
            outline(here[0], view.to(device)),
            overlay(here[0], label.to(device), PALETTE),
        ]
        return panel([titled(picture, "one") for picture in pictures], columns=2).cpu()

    assert (draw("cuda").int() - draw("cpu").int()).abs().max() <= 1
