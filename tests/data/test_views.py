import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from cpsl.data import views
from cpsl.data.changes import ColorOperation, StrongChanges
from cpsl.data.views import (
    OUTSIDE,
    StrongAugmentation,
    WeakView,
    move,
    render,
    render_label,
    render_strong,
)
from cpsl.geometry import View, carry

SIZE = (90, 150)
SMALL = WeakView(full_size=(80, 160), crop=(48, 72), width=170)
seeds = st.integers(0, 10_000)


def smooth_image(seed: int, size: tuple[int, int] = SIZE) -> Tensor:
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    return (image[0] * 255).round().to(torch.uint8)


def slanted(view: View, random: np.random.Generator) -> View:
    shear, move, angle = random.uniform(-1, 1, 3)
    return view.sheared(x=0.3 * shear).translated(y=20 * move).rotated(30 * angle)


def carried(image: Tensor, view: View) -> tuple[Tensor, Tensor]:
    whole = View.whole((image.shape[-2], image.shape[-1]))
    maps = image[None].float() if image.ndim == 3 else image[None]
    values, seen = carry(maps, whole, view)
    return values[0], seen[0]


@given(seed=seeds, slant=st.booleans())
def test_drawing_agrees_with_carrying(seed: int, slant: bool) -> None:
    image, random = smooth_image(seed), np.random.default_rng(seed)
    view = slanted(View.whole(SIZE), random) if slant else SMALL.draw(SIZE, random)
    drawn = render(image, view)
    expected, seen = carried(image, view)
    assert drawn.shape == (3, *view.size)
    assert drawn.dtype == torch.uint8
    difference = (drawn.float() - expected).abs().amax(dim=0)[seen]
    assert difference.mean() < 1.5
    assert (difference < 8).float().mean() > 0.99
    if slant:
        assert (~seen).any()
        # Pillow rounds places to a 65536th of a pixel, which decides on the border itself.
        assert (drawn == OUTSIDE).all(dim=0)[~seen].float().mean() > 0.95
    else:
        assert seen.all()


@given(seed=seeds, slant=st.booleans())
def test_drawing_labels_agrees_with_carrying(seed: int, slant: bool) -> None:
    random = np.random.default_rng(seed)
    view = slanted(View.whole(SIZE), random) if slant else SMALL.draw(SIZE, random)
    blocks = torch.from_numpy(random.integers(0, 19, (9, 15), dtype=np.uint8))
    label = blocks.repeat_interleave(10, dim=0).repeat_interleave(10, dim=1)
    expected, _ = carried(label, view)
    # Where a sample falls on the border of two pixels, either is the nearest.
    assert (render_label(label, view) == expected).float().mean() > 0.98


@pytest.mark.parametrize("flip", [False, True])
def test_one_step_of_drawing_is_exact(flip: bool) -> None:
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    view = View.whole((20, 30)).cropped(3, 4, (10, 12)).flipped(flip)
    expected = image[:, 3:13, 4:16]
    expected = expected.flip(2) if flip else expected
    assert torch.equal(render(image, view), expected)
    assert torch.equal(render_label(image[0], view), expected[0])


@given(seed=seeds, height=st.integers(20, 300), width=st.integers(20, 300))
def test_a_weak_view_lies_inside_the_image_and_keeps_the_aspect(
    seed: int, height: int, width: int
) -> None:
    view = SMALL.draw((height, width), np.random.default_rng(seed))
    assert view.size == SMALL.crop
    corners = torch.tensor([[0.0, 0, 1], [view.size[1], view.size[0], 1]])
    x, y = (view.matrix[0] @ corners.T).double()
    assert x.min() > -1e-3
    assert y.min() > -1e-3
    assert x.max() < width + 1e-3
    assert y.max() < height + 1e-3
    # In the full-size image, both directions are scaled alike, and at least so that the crop fits.
    across = width / abs(float(view.matrix[0, 0, 0]))
    down = height / float(view.matrix[0, 1, 1])
    assert across / down == pytest.approx(160 / 80, rel=0.03)
    assert max(0.5 * 170, 72) - 1 <= across <= 1.5 * 170 + 1


def test_weak_views_spread_over_scales_places_and_flips() -> None:
    random = np.random.default_rng(0)
    drawn = torch.cat([WeakView().draw((1024, 2048), random).matrix for _ in range(400)])
    widths = 2048 / drawn[:, 0, 0].abs()
    assert widths.min() < 1200
    assert widths.max() > 3200
    assert widths.mean() == pytest.approx(2200, rel=0.04)
    assert (drawn[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert drawn[:, 1, 2].max() > 600
    still = WeakView(flip=False)
    assert all(still.draw((1024, 2048), random).matrix[0, 0, 0] > 0 for _ in range(20))


@given(seed=seeds)
def test_a_seed_draws_the_same_again(seed: int) -> None:
    def draw() -> tuple[Tensor, View]:
        random = np.random.default_rng(seed)
        weak = SMALL.draw(SIZE, random)
        return StrongAugmentation().draw(render(smooth_image(seed), weak), weak, random)

    (image, view), (again, view_again) = draw(), draw()
    assert torch.equal(image, again)
    assert torch.equal(view.matrix, view_again.matrix)
    assert torch.equal(view.hidden, view_again.hidden)


def drawn_as_it_goes(image: Tensor, random: np.random.Generator) -> Tensor:
    """Returns a strong image by the paper's words: each change is made as soon as it is drawn."""
    height, width = image.shape[1:]
    picture, moves = views._to_pillow(image), []
    if random.random() < 0.5:
        moves.append(("flip", 1.0))
    if random.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(1))
    if random.random() < 0.5:
        factors, hue = 1 + random.uniform(-0.4, 0.4, 3), random.uniform(-0.4, 0.4)
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for index in random.permutation(4):
            if index == 3:
                picture = VF.adjust_hue(picture, hue)
            else:
                picture = kinds[index](picture).enhance(factors[index])
    for index in random.choice(14, 2):
        magnitude = random.integers(1, 10) / 10
        sign = 1 if random.random() < 0.5 else -1
        if random.random() < 0.5:
            continue
        change = (
            ImageOps.autocontrast,
            lambda p, m: ImageEnhance.Brightness(p).enhance(0.05 + 0.9 * m),
            lambda p, m: ImageEnhance.Color(p).enhance(0.05 + 0.9 * m),
            lambda p, m: ImageEnhance.Contrast(p).enhance(0.05 + 0.9 * m),
            ImageOps.equalize,
            lambda p, m: p,
            lambda p, m: ImageOps.posterize(p, 8 - math.ceil(4 * m)),
            ("rotate", 30),
            lambda p, m: ImageEnhance.Sharpness(p).enhance(0.05 + 0.9 * m),
            ("shear_x", 0.3),
            ("shear_y", 0.3),
            lambda p, m: ImageOps.solarize(p, int(256 * (1 - m))),
            ("translate_x", 0.3),
            ("translate_y", 0.3),
        )[index]
        if isinstance(change, tuple):
            moves.append((change[0], sign * magnitude * change[1]))
        elif change in (ImageOps.autocontrast, ImageOps.equalize):
            picture = change(picture)
        else:
            picture = change(picture, magnitude)
    side = min(height, width) // 3
    y, x = random.integers(height - side + 1), random.integers(width - side + 1)
    drawn = render(views._to_tensor(picture), move(View.whole((height, width)), moves))
    drawn[:, y : y + side, x : x + side] = OUTSIDE
    return drawn


@settings(max_examples=100)
@given(seed=seeds)
def test_drawing_all_changes_first_makes_the_same_image(seed: int) -> None:
    image = smooth_image(seed)
    random, again, apart = (np.random.default_rng(seed) for _ in range(3))
    drawn, view = StrongAugmentation().draw(image, View.whole(SIZE), random)
    assert torch.equal(drawn, drawn_as_it_goes(image, again))
    changes, same_view = StrongAugmentation().draw_changes(View.whole(SIZE), apart)
    assert torch.equal(drawn, render_strong(image, changes))
    assert torch.equal(view.matrix, same_view.matrix)
    assert torch.equal(view.hidden, same_view.hidden)
    # All three have drawn as many random numbers.
    assert random.random() == again.random() == apart.random()


@given(seed=seeds)
def test_the_strong_image_shows_what_its_view_says(seed: int) -> None:
    # Without changes of colour the strong image is the original, seen through the strong view.
    original, random = smooth_image(seed), np.random.default_rng(seed)
    weak = SMALL.draw(SIZE, random)
    moves = tuple(change for change in views._POOL if isinstance(change, str))
    assert len(moves) == 5
    augmentation = StrongAugmentation(blur=0, jitter=0, operations=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_POOL", moves)
        drawn, strong = augmentation.draw(render(original, weak), weak, random)
    # What the weak view cut off is not seen in the strong one either.
    image = render(original, weak)
    expected, seen = carry(image[None].float(), weak, strong)
    difference = (drawn.float() - expected[0]).abs().amax(dim=0)
    assert difference[seen[0]].mean() < 2
    assert (drawn == OUTSIDE).all(dim=0)[~seen[0]].float().mean() > 0.97
    side = int(48 / 3)
    x0, y0, x1, y1 = strong.hidden[0].int().tolist()
    assert (x1 - x0, y1 - y0) == (side, side)
    assert x0 >= 0 <= y0
    assert x1 <= 72
    assert y1 <= 48
    assert (drawn[:, y0:y1, x0:x1] == OUTSIDE).all()


def test_strong_views_move_about_as_often_as_they_should() -> None:
    random, whole = np.random.default_rng(0), View.whole((30, 40))
    image = smooth_image(0, (30, 40))
    drawn = torch.cat(
        [StrongAugmentation().draw(image, whole, random)[1].matrix for _ in range(400)]
    )
    flipped = torch.linalg.det(drawn[:, :, :2]) < 0
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.1)
    # Of 14 operations 5 move the image; two are drawn, each happens with probability 1/2.
    reference = torch.eye(2, 3).repeat(len(drawn), 1, 1)
    reference[flipped] = torch.tensor([[-1.0, 0, 40], [0, 1, 0]])
    moved = (drawn - reference).abs().amax(dim=(1, 2)) > 1e-4
    assert moved.float().mean() == pytest.approx(1 - (1 - 5 / 28) ** 2, abs=0.07)


@pytest.mark.parametrize("magnitude", [0.1, 0.5, 0.9])
def test_every_operation_of_the_pool_works_at_every_magnitude(magnitude: float) -> None:
    picture = views._to_pillow(smooth_image(3))
    unchanged = 0
    for change in views._POOL:
        if isinstance(change, str):
            moved = move(View.whole(SIZE), [(change, magnitude * views._LARGEST[change])])
            assert not torch.equal(moved.matrix, View.whole(SIZE).matrix)
        else:
            changed = views._recolored(picture, change, views._amount(change, magnitude))
            assert changed.size == picture.size
            unchanged += changed.tobytes() == picture.tobytes()
    assert unchanged == 1  # the identity


def test_moves_reach_what_is_written() -> None:
    def largest(name: str, sign: int) -> Tensor:
        return move(View.whole((100, 200)), [(name, sign * views._LARGEST[name])]).matrix[0]

    assert largest("shear_x", 1)[0, 1] == pytest.approx(0.3)
    assert largest("shear_y", -1)[1, 0] == pytest.approx(-0.3)
    assert largest("translate_x", 1)[0, 2] == pytest.approx(60)
    assert largest("translate_y", 1)[1, 2] == pytest.approx(30)
    assert math.degrees(math.asin(largest("rotate", 1)[1, 0])) == pytest.approx(30, abs=1e-3)


def changes_of(images: int) -> StrongChanges:
    random = np.random.default_rng(0)
    draws = [StrongAugmentation().draw_changes(View.whole((9, 9)), random) for _ in range(images)]
    return StrongChanges.stack([changes for changes, _ in draws])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: render(torch.zeros(4, 4, 3, dtype=torch.uint8), View.whole((4, 4))), "3, H, W"),
        (lambda: render(torch.zeros(3, 4, 4), View.whole((4, 4))), "uint8"),
        (lambda: render_label(torch.zeros(4, 4), View.whole((4, 4))), "uint8"),
        (
            lambda: render(torch.zeros(3, 4, 4, dtype=torch.uint8), View.whole((4, 4), 2)),
            "one view, got 2",
        ),
        (lambda: render_strong(torch.zeros(3, 9, 9), changes_of(1)), "uint8"),
        (lambda: render_strong(torch.zeros(3, 9, 9, dtype=torch.uint8), changes_of(2)), "got 2"),
    ],
)
def test_mistakes_are_named(draw, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


LABELS_OF_THE_RELEASE = StrongAugmentation(order="fixed", translation="stretched")


@pytest.mark.parametrize(
    ("case", "moves"),
    [
        ("hflip", [("flip", 1)]),
        ("shear_x", [("shear_x", 0.2)]),
        ("shear_y", [("shear_y", -0.15)]),
        ("translate_x", [("translate_x", 40 / 640)]),
        ("translate_y", [("translate_y", -24 / 384)]),
        ("rotate", [("rotate", 17)]),
        ("all", [("flip", 1), ("shear_x", 0.1), ("translate_y", 20 / 384), ("rotate", -11)]),
    ],
)
def test_the_release_s_label_geometry_is_restored(golden, case: str, moves) -> None:
    vectors = golden("strong_geometry")
    label, whole = torch.from_numpy(vectors["label"])[None], View.whole((384, 640))
    # The order of drawing makes no difference there.
    view = LABELS_OF_THE_RELEASE.label_view(whole, moves[::-1])
    if case == "all":
        view = view.with_cutout(torch.tensor([40.0, 20, 168, 148]))
    got = carry(label, whole, view, (96, 160)).values[0]
    enough = 0.95 if case == "all" else 0.99  # the release clips between operations
    assert (got == torch.from_numpy(vectors[case])).float().mean() >= enough


drawn_moves = st.lists(
    st.tuples(st.sampled_from(list(views._MOVES)), st.floats(-0.3, 0.3)), max_size=5
)


@given(moves=drawn_moves)
def test_labels_follow_the_image_unless_the_release_is_asked_for(moves) -> None:
    whole = View.whole(SIZE)
    exact = StrongAugmentation().label_view(whole, moves)
    assert torch.equal(exact.matrix, move(whole, moves).matrix)
    fixed = StrongAugmentation(order="fixed").label_view(whole, moves)
    last = dict(moves)
    kept = [(name, last[name]) for name in views._MOVES if name in last]
    assert torch.equal(fixed.matrix, move(whole, kept).matrix)
    if not any(name == "translate_x" for name, _ in moves):
        stretched = StrongAugmentation(translation="stretched").label_view(whole, moves)
        assert torch.equal(stretched.matrix, exact.matrix)


@given(seed=seeds)
def test_the_image_is_the_same_whatever_labels_do(seed: int) -> None:
    def draw(augmentation: StrongAugmentation) -> Tensor:
        random = np.random.default_rng(seed)
        weak = SMALL.draw(SIZE, random)
        return augmentation.draw(render(smooth_image(seed), weak), weak, random)[0]

    assert torch.equal(draw(LABELS_OF_THE_RELEASE), draw(StrongAugmentation()))


def test_enhancements_are_fixmatch_s() -> None:
    picture = Image.new("RGB", (1, 1), (200, 200, 200))
    brightness = ColorOperation.BRIGHTNESS
    amounts = [views._amount(brightness, magnitude) for magnitude in (0.1, 0.5, 0.9)]
    got = [views._recolored(picture, brightness, amount).getpixel((0, 0))[0] for amount in amounts]
    assert got == pytest.approx([200 * f for f in (0.14, 0.5, 0.86)], abs=1)


@pytest.mark.parametrize("name", ["order", "translation"])
def test_unknown_words_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        StrongAugmentation(**{name: "other"})
