import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpsl.geometry import View, carry, carry_enlarged
from cpsl.prototypes import prototype_similarity

SIZE = (48, 80)
LAYOUTS = ("pixels", "corners")
seeds = st.integers(0, 10_000)


def random_view(generator: torch.Generator, batch: int = 3, size: tuple[int, int] = SIZE) -> View:
    def draw(scale: float) -> Tensor:
        return (torch.rand(batch, generator=generator) * 2 - 1) * scale

    view = View.whole(size, batch).resized((size[0] + 13, size[1] + 7))
    view = view.cropped(draw(10) + 10, draw(9) + 5, (size[0] - 5, size[1] - 16))
    view = view.flipped(draw(1) > 0).sheared(draw(0.2), draw(0.2))
    return view.translated(draw(9), draw(9)).rotated(draw(25))


def places(view: View, size: tuple[int, int], layout: str) -> Tensor:
    """Returns where in a view the values of a map of it lie, (h, w, 2), from the definition."""
    along = []
    for extent, count in zip(view.size, size, strict=True):
        cells = [(i + 0.5) * extent / count for i in range(count)]
        nodes = [i * (extent - 1) / (count - 1) + 0.5 for i in range(count)]
        along.append(torch.tensor(cells if layout == "pixels" else nodes))
    y, x = torch.meshgrid(*along, indexing="ij")
    return torch.stack([x, y], dim=2)


def applied(matrix: Tensor, points: Tensor) -> Tensor:
    """Maps points (..., 2) by (B, 2, 3) maps, in double precision."""
    matrix, points = matrix.double(), points.double()
    if points.ndim == 3:
        points = points.expand(len(matrix), -1, -1, -1)
    return torch.einsum("bij,bhwj->bhwi", matrix[:, :, :2], points) + matrix[:, None, None, :, 2]


def inverse(matrix: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(matrix), 1, 3)
    return torch.cat([matrix.double(), last], dim=1).inverse()[:, :2]


@given(seed=seeds)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, LAYOUTS)))
def test_every_place_of_the_target_shows_its_place_of_the_original(
    layouts: tuple[str, str], seed: int
) -> None:
    # A map that holds the original's coordinates holds them in any view, resolution and layout, because
    # bilinear sampling is exact on it.
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    resolution, wanted = (21, 34), (17, 29)
    coordinates = applied(source.matrix, places(source, resolution, layouts[0]))
    got, seen = carry(
        coordinates.permute(0, 3, 1, 2).float(),
        source,
        target,
        wanted,
        layout=layouts[0],
        output_layout=layouts[1],
    )
    expected = applied(target.matrix, places(target, wanted, layouts[1]))
    in_source = applied(inverse(source.matrix), expected)
    extent = torch.tensor([source.size[1], source.size[0]])
    inside = ((in_source > 0) & (in_source < extent)).all(dim=3)
    # Outside of the outermost values there is nothing to interpolate with.
    cell = extent / torch.tensor([resolution[1], resolution[0]]) / 2
    interior = ((in_source > cell) & (in_source < extent - cell)).all(dim=3)
    assert interior.any()
    assert (seen != inside).float().mean() < 0.005  # rounding, on the border itself
    difference = got.permute(0, 2, 3, 1) - expected
    assert difference[interior & seen].abs().max() < 2e-3
    assert (got.permute(0, 2, 3, 1)[~seen] == 0).all()


@given(seed=seeds)
def test_operations_read_where_pillow_reads(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (float(v) for v in torch.rand(2, generator=generator) * 40)
    a, degrees = 0.23, 31.0
    height, width = SIZE
    whole, radians = View.whole(SIZE), torch.tensor(degrees).deg2rad()
    dx, dy = x - width / 2, y - height / 2
    turned = (
        float(width / 2 + dx * radians.cos() - dy * radians.sin()),
        float(height / 2 + dx * radians.sin() + dy * radians.cos()),
    )
    for view, expected in [
        (whole, (x, y)),
        (whole.flipped(), (width - x, y)),
        (whole.flipped(False), (x, y)),
        (whole.sheared(x=a), (x + a * y, y)),
        (whole.sheared(y=a), (x, y + a * x)),
        (whole.translated(x=7, y=-3), (x + 7, y - 3)),
        (whole.rotated(degrees), turned),
        (whole.resized((96, 40)), (2 * x, y / 2)),
        (whole.cropped(3, 5, (9, 9)), (x + 5, y + 3)),
        # What is appended happens first on the way from the output to the input.
        (whole.flipped().translated(x=7), (width - (x + 7), y)),
    ]:
        got = view.matrix[0] @ torch.tensor([x, y, 1])
        torch.testing.assert_close(got, torch.tensor(expected), atol=1e-4, rtol=0)


@given(seed=seeds)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_map_is_unchanged_in_its_own_view(layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    view, maps = random_view(generator), torch.rand(3, 2, 13, 19, generator=generator)
    got, seen = carry(maps, view, view, (13, 19), layout=layout)
    assert seen.all()
    torch.testing.assert_close(got, maps, atol=1e-3, rtol=0)


@given(seed=seeds)
def test_a_smooth_map_survives_there_and_back(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole, view = View.whole(SIZE, 3), random_view(generator)
    coarse = torch.rand(3, 2, 4, 5, generator=generator)
    maps = F.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)
    there, seen_there = carry(maps, whole, view, layout="corners")
    back, seen_back = carry(there, view, whole, layout="corners")
    known, _ = carry(seen_there[:, None].float(), view, whole, layout="corners")
    sure = seen_back & (known[:, 0] > 0.999)
    assert sure.any()
    assert (back - maps).abs().amax(dim=1)[sure].max() < 0.05


@given(seed=seeds)
def test_flipping_twice_changes_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    view, flip = random_view(generator), torch.rand(3, generator=generator) < 0.5
    twice = view.flipped(flip).flipped(flip)
    torch.testing.assert_close(twice.matrix, view.matrix, atol=1e-4, rtol=1e-5)


@given(seed=seeds)
def test_labels_are_never_mixed(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    classes = torch.tensor([0, 7, 18])
    labels = classes[torch.randint(3, (3, 23, 31), generator=generator)]
    got, seen = carry(labels, source, target, (40, 60))
    assert got.dtype == labels.dtype
    assert torch.isin(got[seen], classes).all()
    assert (got[~seen] == 255).all()


@given(seed=seeds)
def test_the_border_mixes_in_nothing_and_the_outside_is_the_fill(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    got, seen = carry(torch.ones(3, 1, 9, 11), source, target, (64, 64), fill=-7)
    torch.testing.assert_close(got[:, 0], torch.where(seen, 1.0, -7.0))


@given(seed=seeds)
def test_nothing_is_seen_through_the_cutout_of_either_view(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    box = torch.tensor([10.0, 12.0, 30.0, 24.0])
    arguments = torch.ones(3, 1, *source.size), source, target
    open_ = carry(*arguments).seen
    at = places(target, target.size, "pixels")
    x, y = at.unbind(2)
    hidden = (x >= 10) & (x < 30) & (y >= 12) & (y < 24)
    assert hidden.sum() == 20 * 12
    got = carry(arguments[0], source, target.with_cutout(box))
    assert torch.equal(got.seen, open_ & ~hidden)
    assert (got.values[:, 0][~got.seen] == 0).all()

    x, y = applied(inverse(source.matrix), applied(target.matrix, at)).unbind(3)
    hidden = (x >= 10) & (x < 30) & (y >= 12) & (y < 24)
    got = carry(arguments[0], source.with_cutout(box), target)
    assert ((open_ & ~hidden) != got.seen).float().mean() < 0.002


@given(seed=seeds)
def test_a_batch_is_each_sample_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    target = target.with_cutout(torch.randint(0, 40, (3, 4), generator=generator))
    maps = torch.rand(3, 2, 11, 17, generator=generator)

    def alone(view: View, i: int) -> View:
        hidden = None if view.hidden is None else view.hidden[i : i + 1]
        return View(view.matrix[i : i + 1], view.size, hidden)

    together = carry(maps, source, target)
    for i in range(3):
        single = carry(maps[i : i + 1], alone(source, i), alone(target, i))
        torch.testing.assert_close(together.values[i : i + 1], single.values)
        assert torch.equal(together.seen[i : i + 1], single.seen)
    stacked = View.stack([alone(target, i) for i in range(3)])
    assert torch.equal(stacked.matrix, target.matrix)
    assert torch.equal(stacked.hidden, target.hidden)


def test_stacking_keeps_a_cutout_beside_views_without_one() -> None:
    plain, cut = View.whole((4, 4)), View.whole((4, 4)).with_cutout(torch.tensor([0, 0, 2, 2]))
    seen = carry(torch.ones(2, 1, 4, 4), View.whole((4, 4), 2), View.stack([plain, cut])).seen
    assert seen.sum(dim=(1, 2)).tolist() == [16, 12]
    assert View.stack([plain, plain]).hidden is None


def test_layouts_of_one_map_differ_by_their_definition() -> None:
    # Four nodes on the centres of 13 pixels: the pixels in between are interpolated, none extrapolated.
    nodes = torch.tensor([0.0, 4, 8, 12]).expand(1, 1, 2, 4)
    whole = View.whole((2, 13))
    got = carry(nodes, whole, whole, layout="corners", output_layout="pixels").values
    torch.testing.assert_close(got[0, 0, 0], torch.arange(13.0))
    resized = F.interpolate(nodes, (5, 9), mode="bilinear", align_corners=True)
    got = carry(nodes, whole, whole, (5, 9), layout="corners").values
    torch.testing.assert_close(got, resized)
    got = carry(nodes, whole, whole, (5, 9)).values
    resized = F.interpolate(nodes, (5, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, resized)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_coordinates_are_float32_for_any_dtype_and_under_autocast(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (1024, 2048)
    maps = torch.rand(2, 1, 65, 129, generator=generator)

    def through() -> tuple[Tensor, Tensor]:
        drawn = torch.Generator().manual_seed(1)
        source, target = random_view(drawn, 2, size), random_view(drawn, 2, size)
        return carry(maps.to(dtype), source, target, (48, 64), layout="corners")

    got, seen = through()
    with torch.autocast("cpu", torch.bfloat16):
        same, same_seen = through()
    assert got.dtype == same.dtype == dtype
    assert torch.equal(got, same)
    assert torch.equal(seen, same_seen)
    assert seen.any()


@pytest.mark.parametrize(
    ("case", "view"),
    [
        ("hflip", lambda view: view.flipped()),
        ("shear_x", lambda view: view.sheared(x=0.2)),
        ("shear_y", lambda view: view.sheared(y=-0.15)),
        ("translate_y", lambda view: view.translated(y=-24)),
        ("rotate", lambda view: view.rotated(17)),
        ("cutout", lambda view: view.with_cutout(torch.tensor([100, 60, 228, 188]))),
        (
            "all",
            lambda view: (
                view.flipped()
                .sheared(x=0.1)
                .translated(y=20)
                .rotated(-11)
                .with_cutout(torch.tensor([40, 20, 168, 148]))
            ),
        ),
    ],
)
def test_strong_geometry_agrees_with_the_release(golden, case: str, view) -> None:
    vectors = golden("strong_geometry")
    label, whole = torch.from_numpy(vectors["label"])[None], View.whole((384, 640))
    got = carry(label, whole, view(whole), (96, 160)).values[0]
    # The release clips between operations, so that composing them differs a little.
    enough = 0.95 if case == "all" else 0.99
    assert (got == torch.from_numpy(vectors[case])).float().mean() >= enough


def test_horizontal_translation_is_the_true_one_and_not_the_release_s(golden) -> None:
    vectors = golden("strong_geometry")
    label, whole = torch.from_numpy(vectors["label"])[None], View.whole((384, 640))

    def moved(by: float) -> Tensor:
        return carry(label, whole, whole.translated(x=by), (96, 160)).values

    expected = F.pad(label[:, :, 10:], (0, 10), value=255)
    assert torch.equal(moved(40), expected)
    # The release moves labels by W/H times what it moves the image.
    release = torch.from_numpy(vectors["translate_x"])
    assert (moved(40 * 160 / 96) == release).float().mean() >= 0.99


def weak_view_of_the_release(vectors) -> tuple[tuple[int, int], View]:
    """Returns the size of the quarter-resolution map, and the view that the release takes of it."""
    height, width = (int(n) // 4 for n in vectors["image_size"])
    tall, wide = (int(n) // 4 for n in vectors["resized"])
    top, left = (int(n) // 4 for n in vectors["crop_top_left"])
    crop_height, crop_width = (int(n) // 4 for n in vectors["crop_size"])
    # The release's resizing with aligned corners keeps the centres of the corner pixels in place.
    down, across = (height - 1) / (tall - 1), (width - 1) / (wide - 1)
    aligned = torch.tensor([[[across, 0, (1 - across) / 2], [0, down, (1 - down) / 2]]])
    view = View(aligned.repeat(2, 1, 1), (tall, wide)).cropped(top, left, (crop_height, crop_width))
    return (height, width), view.flipped(bool(vectors["hflip"]))


def test_weak_geometry_agrees_with_the_release(golden) -> None:
    vectors = golden("rectify_geometry")
    features = torch.from_numpy(vectors["features"])
    (height, width), view = weak_view_of_the_release(vectors)
    quarter = F.interpolate(features, (height, width), mode="bilinear", align_corners=True)
    in_view, seen = carry(quarter, View.whole((height, width), 2), view)
    assert seen.all()

    prototypes = F.normalize(torch.from_numpy(vectors["prototypes"]), dim=1)
    cosine = torch.einsum("bdhw,kd->bkhw", F.normalize(in_view, dim=1), prototypes)
    weights = (cosine / float(vectors["temperature"])).softmax(dim=1)
    expected = torch.from_numpy(vectors["weights"])
    assert (weights - expected).abs().max() / expected.max() <= 1e-4
    labels = (weights * torch.from_numpy(vectors["soft"])).argmax(dim=1)
    assert torch.equal(labels, torch.from_numpy(vectors["labels"]))


@given(
    grid=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    enlarged=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    out=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    top=st.integers(-3, 20),
    left=st.integers(-3, 20),
    flip=st.booleans(),
    seed=st.integers(0, 999),
)
def test_enlarging_and_carrying_at_once_is_one_after_the_other(
    grid, enlarged, out, top: int, left: int, flip: bool, seed: int
) -> None:
    maps = torch.randn(2, 3, *grid, generator=torch.Generator().manual_seed(seed))
    whole = View.whole((32, 48), 2)
    view = whole.resized((40, 56)).cropped(top, left, (20, 24)).flipped(flip)
    got = carry_enlarged(maps, whole, view, out, enlarged)
    large = F.interpolate(maps, enlarged, mode="bilinear", align_corners=True)
    wanted, seen = carry(large, whole, view, out, layout="corners")
    torch.testing.assert_close(
        got.movedim(1, -1)[seen], wanted.movedim(1, -1)[seen], atol=1e-4, rtol=1e-4
    )


def test_features_through_a_weak_view_agree_with_the_release(golden) -> None:
    vectors = golden("rectify_geometry")
    features = torch.from_numpy(vectors["features"])
    quarter, view = weak_view_of_the_release(vectors)
    carried = carry_enlarged(features, View.whole(quarter, 2), view, view.size, quarter)
    cosine = prototype_similarity(carried, torch.from_numpy(vectors["prototypes"]))
    weights = (cosine / float(vectors["temperature"])).softmax(dim=1)
    expected = torch.from_numpy(vectors["weights"])
    assert (weights - expected).abs().max() / expected.max() <= 1e-4


def test_compiles_to_one_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    source = random_view(generator)
    target = random_view(generator).with_cutout(torch.tensor([1, 2, 9, 9]))
    maps = torch.rand(3, 2, 12, 20)
    compiled = torch.compile(carry, fullgraph=True, backend="eager")
    got, expected = compiled(maps, source, target, (9, 9)), carry(maps, source, target, (9, 9))
    torch.testing.assert_close(got.values, expected.values)
    assert torch.equal(got.seen, expected.seen)


def test_asks_for_no_value() -> None:
    # A fake tensor has no values, so that whatever waits for one fails.
    with FakeTensorMode():
        view = View.whole(SIZE, 2).flipped(torch.ones(2) > 0).rotated(torch.ones(2))
        view = view.with_cutout(torch.zeros(4))
        values, seen = carry(torch.ones(2, 3, 8, 8), View.whole(SIZE, 2), view)
    assert values.shape == (2, 3, *SIZE)
    assert seen.shape == (2, *SIZE)


@pytest.mark.cuda
def test_does_not_wait_for_the_device() -> None:
    maps, box = torch.ones(2, 3, 8, 8, device="cuda"), torch.zeros(4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole = View.whole(SIZE, 2, "cuda")
        view = whole.resized((30, 30)).flipped().sheared(0.1).translated(3).rotated(5)
        got = carry(maps, whole, view.with_cutout(box))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.seen.any()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: View(torch.eye(3), (4, 4)), ValueError, r"\(B, 2, 3\)"),
        (lambda: View(torch.eye(2, 3)[None].double(), (4, 4)), TypeError, "float32"),
        (lambda: View.whole((4, 4)).with_cutout(torch.zeros(4)).flipped(), ValueError, "last"),
        (
            lambda: View.whole((4, 4)).with_cutout(torch.zeros(4)).with_cutout(torch.zeros(4)),
            ValueError,
            "one cutout",
        ),
        (lambda: View.whole((4, 4)).with_cutout(torch.zeros(3)), ValueError, "box"),
        (lambda: View.whole((4, 4), 2).rotated(torch.zeros(3)), ValueError, "2 views"),
        (lambda: View.stack([View.whole((4, 4)), View.whole((4, 5))]), ValueError, "one size"),
        (
            lambda: carry(torch.ones(1, 4, 4), View.whole((4, 4)), View.whole((4, 4))),
            ValueError,
            r"\(B, C, h, w\)",
        ),
        (
            lambda: carry(torch.ones(2, 1, 4, 4), View.whole((4, 4)), View.whole((4, 4), 2)),
            ValueError,
            "as many views",
        ),
        (
            lambda: carry(
                torch.ones(1, 1, 4, 4), View.whole((4, 4)), View.whole((4, 4)), layout="corner"
            ),
            ValueError,
            "layout",
        ),
    ],
)
def test_mistakes_are_named(wrong, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()
