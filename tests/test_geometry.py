import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpsl.geometry import View, resize_labels, warp

SIZE = (48, 80)
seeds = st.integers(0, 10_000)


def random_view(generator: torch.Generator, batch: int = 3, size: tuple[int, int] = SIZE) -> View:
    def uniform(scale: float) -> Tensor:
        return (torch.rand(batch, generator=generator) * 2 - 1) * scale

    view = View.whole(size, batch).resized((size[0] + 13, size[1] + 7))
    view = view.cropped(uniform(10) + 10, uniform(9) + 5, (size[0] - 5, size[1] - 16))
    view = view.flipped(uniform(1) > 0).sheared(uniform(0.2), uniform(0.2))
    return view.translated(uniform(9), uniform(9)).rotated(uniform(25))


def positions(view: View, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Returns the positions of the samples of a map in a view, (h, w, 2), by definition."""
    along = []
    for extent, count in zip(view.size, size, strict=True):
        cells = [(i + 0.5) * extent / count for i in range(count)]
        nodes = [i * (extent - 1) / (count - 1) + 0.5 for i in range(count)]
        along.append(torch.tensor(nodes if align_corners else cells))
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
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("output_align_corners", [False, True])
def test_warped_coordinates_are_those_of_the_target(
    align_corners: bool, output_align_corners: bool, seed: int
) -> None:
    # A map of the original's coordinates is linear, so that bilinear sampling is exact.
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    resolution, wanted = (21, 34), (17, 29)
    coordinates = applied(source.matrix, positions(source, resolution, align_corners))
    got, valid = warp(
        coordinates.permute(0, 3, 1, 2).float(),
        source,
        target,
        wanted,
        align_corners=align_corners,
        output_align_corners=output_align_corners,
    )
    expected = applied(target.matrix, positions(target, wanted, output_align_corners))
    in_source = applied(inverse(source.matrix), expected)
    extent = torch.tensor([source.size[1], source.size[0]])
    inside = ((in_source > 0) & (in_source < extent)).all(dim=3)
    # Beyond the outermost samples the map is constant.
    cell = extent / torch.tensor([resolution[1], resolution[0]]) / 2
    interior = ((in_source > cell) & (in_source < extent - cell)).all(dim=3)
    assert interior.any()
    assert (valid != inside).float().mean() < 0.005  # rounding at the border
    difference = got.permute(0, 2, 3, 1) - expected
    assert difference[interior & valid].abs().max() < 2e-3
    assert (got.permute(0, 2, 3, 1)[~valid] == 0).all()


@given(seed=seeds)
def test_operations_follow_the_conventions_of_pillow(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (float(v) for v in torch.rand(2, generator=generator) * 40)
    a, degrees = 0.23, 31.0
    height, width = SIZE
    whole, radians = View.whole(SIZE), torch.tensor(degrees).deg2rad()
    dx, dy = x - width / 2, y - height / 2
    rotated = (
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
        (whole.rotated(degrees), rotated),
        (whole.resized((96, 40)), (2 * x, y / 2)),
        (whole.cropped(3, 5, (9, 9)), (x + 5, y + 3)),
        # The last operation is the first one on the way from output to input.
        (whole.flipped().translated(x=7), (width - (x + 7), y)),
    ]:
        got = view.matrix[0] @ torch.tensor([x, y, 1])
        torch.testing.assert_close(got, torch.tensor(expected), atol=1e-4, rtol=0)


@given(seed=seeds)
@pytest.mark.parametrize("align_corners", [False, True])
def test_warping_to_the_same_view_changes_nothing(align_corners: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    view, maps = random_view(generator), torch.rand(3, 2, 13, 19, generator=generator)
    got, valid = warp(maps, view, view, (13, 19), align_corners=align_corners)
    assert valid.all()
    torch.testing.assert_close(got, maps, atol=1e-3, rtol=0)


@given(seed=seeds)
def test_smooth_maps_survive_a_round_trip(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole, view = View.whole(SIZE, 3), random_view(generator)
    coarse = torch.rand(3, 2, 4, 5, generator=generator)
    maps = F.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)
    there, valid_there = warp(maps, whole, view, align_corners=True)
    back, valid_back = warp(there, view, whole, align_corners=True)
    valid, _ = warp(valid_there[:, None].float(), view, whole, align_corners=True)
    known = valid_back & (valid[:, 0] > 0.999)
    assert known.any()
    assert (back - maps).abs().amax(dim=1)[known].max() < 0.05


@given(seed=seeds)
def test_flipping_twice_changes_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    view, flip = random_view(generator), torch.rand(3, generator=generator) < 0.5
    twice = view.flipped(flip).flipped(flip)
    torch.testing.assert_close(twice.matrix, view.matrix, atol=1e-4, rtol=1e-5)


@given(
    old=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    new=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    align_corners=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    seed=seeds,
)
def test_labels_are_resized_to_the_nearest_label(
    old: tuple[int, int], new: tuple[int, int], align_corners: bool, dtype: torch.dtype, seed: int
) -> None:
    labels = torch.randint(250, (2, *old), generator=torch.Generator().manual_seed(seed)).to(dtype)
    got = resize_labels(labels, new, align_corners)
    assert got.shape == (2, *new)
    assert got.dtype == dtype
    whole = View.whole(old, 2)
    assert torch.equal(got, warp(labels, whole, whole, new, output_align_corners=align_corners).values)
    for y in range(new[0]):
        for x in range(new[1]):
            place = [
                i * (n - 1) / max(m - 1, 1) if align_corners else (i + 0.5) * n / m - 0.5
                for i, n, m in zip((y, x), old, new, strict=True)
            ]
            # Positions between two labels may be rounded up or down.
            near = [
                [k for k in range(n) if abs(k - p) <= 0.5 + 1e-4] for p, n in zip(place, old, strict=True)
            ]
            allowed = labels[:, near[0]][:, :, near[1]].flatten(1)
            assert (allowed == got[:, y, x, None]).any(dim=1).all()


def test_labels_of_the_same_size_are_returned_unchanged() -> None:
    labels = torch.randint(5, (2, 6, 7))
    assert resize_labels(labels, (6, 7)) is labels
    with pytest.raises(TypeError, match=r"integer class indices, got torch\.float32"):
        resize_labels(labels.float(), (3, 4))
    with pytest.raises(ValueError, match=r"labels must be \(B, H, W\)"):
        resize_labels(labels[0], (3, 4))


def test_views_are_float32_for_any_default_dtype() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert View.whole((4, 4)).matrix.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@given(seed=seeds)
def test_labels_are_never_interpolated(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    classes = torch.tensor([0, 7, 18])
    labels = classes[torch.randint(3, (3, 23, 31), generator=generator)]
    got, valid = warp(labels, source, target, (40, 60))
    assert got.dtype == labels.dtype
    assert torch.isin(got[valid], classes).all()
    assert (got[~valid] == 255).all()


@given(seed=seeds)
def test_the_fill_is_used_outside_only_and_not_interpolated(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    got, valid = warp(torch.ones(3, 1, 9, 11), source, target, (64, 64), fill=-7)
    torch.testing.assert_close(got[:, 0], torch.where(valid, 1.0, -7.0))


@given(seed=seeds)
def test_the_cutouts_of_both_views_are_not_valid(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    box = torch.tensor([10.0, 12.0, 30.0, 24.0])
    arguments = torch.ones(3, 1, *source.size), source, target
    without = warp(*arguments).valid
    at = positions(target, target.size, align_corners=False)
    x, y = at.unbind(2)
    cutout = (x >= 10) & (x < 30) & (y >= 12) & (y < 24)
    assert cutout.sum() == 20 * 12
    got = warp(arguments[0], source, target.with_cutout(box))
    assert torch.equal(got.valid, without & ~cutout)
    assert (got.values[:, 0][~got.valid] == 0).all()

    x, y = applied(inverse(source.matrix), applied(target.matrix, at)).unbind(3)
    cutout = (x >= 10) & (x < 30) & (y >= 12) & (y < 24)
    got = warp(arguments[0], source.with_cutout(box), target)
    assert ((without & ~cutout) != got.valid).float().mean() < 0.002


@given(seed=seeds)
def test_the_samples_of_a_batch_are_independent(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = random_view(generator), random_view(generator)
    target = target.with_cutout(torch.randint(0, 40, (3, 4), generator=generator))
    maps = torch.rand(3, 2, 11, 17, generator=generator)

    def alone(view: View, i: int) -> View:
        cutout = None if view.cutout is None else view.cutout[i : i + 1]
        return View(view.matrix[i : i + 1], view.size, cutout)

    together = warp(maps, source, target)
    for i in range(3):
        single = warp(maps[i : i + 1], alone(source, i), alone(target, i))
        torch.testing.assert_close(together.values[i : i + 1], single.values)
        assert torch.equal(together.valid[i : i + 1], single.valid)
    stacked = View.stack([alone(target, i) for i in range(3)])
    assert torch.equal(stacked.matrix, target.matrix)
    assert torch.equal(stacked.cutout, target.cutout)


def test_views_with_and_without_cutout_can_be_stacked() -> None:
    plain, cut = View.whole((4, 4)), View.whole((4, 4)).with_cutout(torch.tensor([0, 0, 2, 2]))
    valid = warp(torch.ones(2, 1, 4, 4), View.whole((4, 4), 2), View.stack([plain, cut])).valid
    assert valid.sum(dim=(1, 2)).tolist() == [16, 12]
    assert View.stack([plain, plain]).cutout is None


def test_align_corners_is_that_of_interpolate() -> None:
    # Four nodes at the centers of 13 pixels: interpolation without extrapolation.
    nodes = torch.tensor([0.0, 4, 8, 12]).expand(1, 1, 2, 4)
    whole = View.whole((2, 13))
    got = warp(nodes, whole, whole, align_corners=True, output_align_corners=False).values
    torch.testing.assert_close(got[0, 0, 0], torch.arange(13.0))
    resized = F.interpolate(nodes, (5, 9), mode="bilinear", align_corners=True)
    got = warp(nodes, whole, whole, (5, 9), align_corners=True).values
    torch.testing.assert_close(got, resized)
    got = warp(nodes, whole, whole, (5, 9)).values
    resized = F.interpolate(nodes, (5, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, resized)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_coordinates_are_float32_for_any_dtype_and_under_autocast(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (1024, 2048)
    maps = torch.rand(2, 1, 65, 129, generator=generator)

    def warped() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        source, target = random_view(generator, 2, size), random_view(generator, 2, size)
        return warp(maps.to(dtype), source, target, (48, 64), align_corners=True)

    got, valid = warped()
    with torch.autocast("cpu", torch.bfloat16):
        same, same_valid = warped()
    assert got.dtype == same.dtype == dtype
    assert torch.equal(got, same)
    assert torch.equal(valid, same_valid)
    assert valid.any()


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
def test_strong_geometry_agrees_with_the_authors_code(golden, case: str, view) -> None:
    vectors = golden("strong_geometry")
    label, whole = torch.from_numpy(vectors["label"])[None], View.whole((384, 640))
    got = warp(label, whole, view(whole), (96, 160)).values[0]
    # The authors' code clips after each operation, which composed maps do not.
    enough = 0.95 if case == "all" else 0.99
    assert (got == torch.from_numpy(vectors[case])).float().mean() >= enough


def test_horizontal_translation_differs_from_the_authors_code(golden) -> None:
    vectors = golden("strong_geometry")
    label, whole = torch.from_numpy(vectors["label"])[None], View.whole((384, 640))

    def translated(by: float) -> Tensor:
        return warp(label, whole, whole.translated(x=by), (96, 160)).values

    expected = F.pad(label[:, :, 10:], (0, 10), value=255)
    assert torch.equal(translated(40), expected)
    # The authors' code translates labels by W/H times as much as the image.
    authors = torch.from_numpy(vectors["translate_x"])
    assert (translated(40 * 160 / 96) == authors).float().mean() >= 0.99


@given(value=st.integers(-(2**31), 2**31 - 1), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_labels_are_warped_exactly_or_refused(value: int, dtype: torch.dtype) -> None:
    whole, labels = View.whole((4, 4)), torch.full((1, 4, 4), value, dtype=dtype)
    if abs(value) <= 2**24:
        assert torch.equal(warp(labels, whole, whole).values, labels)
        return
    with pytest.raises(ValueError, match=f"labels.*{value}"):
        warp(labels, whole, whole)


def test_warp_compiles_to_one_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    source = random_view(generator)
    target = random_view(generator).with_cutout(torch.tensor([1, 2, 9, 9]))
    maps = torch.rand(3, 2, 12, 20)
    compiled = torch.compile(warp, fullgraph=True, backend="eager")
    got, expected = compiled(maps, source, target, (9, 9)), warp(maps, source, target, (9, 9))
    torch.testing.assert_close(got.values, expected.values)
    assert torch.equal(got.valid, expected.valid)


def test_warp_reads_no_values() -> None:
    with FakeTensorMode():  # its tensors have no values
        view = View.whole(SIZE, 2).flipped(torch.ones(2) > 0).rotated(torch.ones(2))
        view = view.with_cutout(torch.zeros(4))
        values, valid = warp(torch.ones(2, 3, 8, 8), View.whole(SIZE, 2), view)
    assert values.shape == (2, 3, *SIZE)
    assert valid.shape == (2, *SIZE)


@pytest.mark.cuda
def test_warp_does_not_synchronize_with_the_device() -> None:
    maps, box = torch.ones(2, 3, 8, 8, device="cuda"), torch.zeros(4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole = View.whole(SIZE, 2, "cuda")
        view = whole.resized((30, 30)).flipped().sheared(0.1).translated(3).rotated(5)
        got = warp(maps, whole, view.with_cutout(box))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.valid.any()


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
            lambda: warp(torch.ones(1, 4, 4), View.whole((4, 4)), View.whole((4, 4))),
            ValueError,
            r"\(B, C, h, w\)",
        ),
        (
            lambda: warp(torch.ones(2, 1, 4, 4), View.whole((4, 4)), View.whole((4, 4), 2)),
            ValueError,
            "as many views",
        ),
    ],
)
def test_invalid_arguments_are_named(wrong, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()
