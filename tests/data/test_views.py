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
from cpsl.data.operations import apply_to_picture, to_picture, to_tensor
from cpsl.data.views import (
    MOVES,
    OUTSIDE,
    StrongAugmentation,
    StrongChanges,
    WeakView,
    move,
    render,
    render_label,
    render_strong,
    render_strong_batch,
)
from cpsl.geometry import View, warp

SIZE = (90, 150)
SMALL = WeakView(full_size=(80, 160), crop=(48, 72), width=170)
seeds = st.integers(0, 10_000)


def smooth_image(seed: int, size: tuple[int, int] = SIZE) -> Tensor:
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    return (image[0] * 255).round().to(torch.uint8)


def noise(seed: int, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)


def slanted(view: View, random: np.random.Generator) -> View:
    shear, move, angle = random.uniform(-1, 1, 3)
    return view.sheared(x=0.3 * shear).translated(y=20 * move).rotated(30 * angle)


def warped(image: Tensor, view: View) -> tuple[Tensor, Tensor]:
    whole = View.whole((image.shape[-2], image.shape[-1]))
    maps = image[None].float() if image.ndim == 3 else image[None]
    values, valid = warp(maps, whole, view)
    return values[0], valid[0]


def changes_of(seed: int, size: tuple[int, int] = SIZE) -> StrongChanges:
    return StrongAugmentation().sample_changes(View.whole(size), np.random.default_rng(seed))[0]


@given(seed=seeds, slant=st.booleans())
def test_rendering_agrees_with_warping(seed: int, slant: bool) -> None:
    image, random = smooth_image(seed), np.random.default_rng(seed)
    view = slanted(View.whole(SIZE), random) if slant else SMALL.sample(SIZE, random)
    rendered = render(image, view)
    expected, valid = warped(image, view)
    assert rendered.shape == (3, *view.size)
    assert rendered.dtype == torch.uint8
    difference = (rendered.float() - expected).abs().amax(dim=0)[valid]
    assert difference.mean() < 1.5
    assert (difference < 8).float().mean() > 0.99
    if slant:
        assert (~valid).any()
        # Pillow rounds positions to a 65536th of a pixel, which decides on the border itself.
        assert (rendered == OUTSIDE).all(dim=0)[~valid].float().mean() > 0.95
    else:
        assert valid.all()


@given(seed=seeds, slant=st.booleans())
def test_rendering_labels_agrees_with_warping(seed: int, slant: bool) -> None:
    random = np.random.default_rng(seed)
    view = slanted(View.whole(SIZE), random) if slant else SMALL.sample(SIZE, random)
    blocks = torch.from_numpy(random.integers(0, 19, (9, 15), dtype=np.uint8))
    label = blocks.repeat_interleave(10, dim=0).repeat_interleave(10, dim=1)
    expected, _ = warped(label, view)
    # Where a sample falls on the border of two pixels, either is the nearest.
    assert (render_label(label, view) == expected).float().mean() > 0.98


@pytest.mark.parametrize("flip", [False, True])
def test_rendering_a_crop_is_exact(flip: bool) -> None:
    image = noise(0, (20, 30))
    view = View.whole((20, 30)).cropped(3, 4, (10, 12)).flipped(flip)
    expected = image[:, 3:13, 4:16]
    expected = expected.flip(2) if flip else expected
    assert torch.equal(render(image, view), expected)
    assert torch.equal(render_label(image[0], view), expected[0])


@given(seed=seeds, height=st.integers(20, 300), width=st.integers(20, 300))
def test_weak_views_are_inside_the_image_and_keep_the_aspect_ratio(
    seed: int, height: int, width: int
) -> None:
    view = SMALL.sample((height, width), np.random.default_rng(seed))
    assert view.size == SMALL.crop
    corners = torch.tensor([[0.0, 0, 1], [view.size[1], view.size[0], 1]])
    x, y = (view.matrix[0] @ corners.T).double()
    assert x.min() > -1e-3
    assert y.min() > -1e-3
    assert x.max() < width + 1e-3
    assert y.max() < height + 1e-3
    # In the full-size image, both axes have the same scale, at least as large as the crop needs.
    across = width / abs(float(view.matrix[0, 0, 0]))
    down = height / float(view.matrix[0, 1, 1])
    assert across / down == pytest.approx(160 / 80, rel=0.03)
    assert max(0.5 * 170, 72) - 1 <= across <= 1.5 * 170 + 1


def test_weak_views_cover_scales_positions_and_flips() -> None:
    random = np.random.default_rng(0)
    matrices = torch.cat([WeakView().sample((1024, 2048), random).matrix for _ in range(400)])
    widths = 2048 / matrices[:, 0, 0].abs()
    assert widths.min() < 1200
    assert widths.max() > 3200
    assert widths.mean() == pytest.approx(2200, rel=0.04)
    assert (matrices[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert matrices[:, 1, 2].max() > 600
    unflipped = WeakView(flip=False)
    assert all(unflipped.sample((1024, 2048), random).matrix[0, 0, 0] > 0 for _ in range(20))


@given(seed=seeds)
def test_a_seed_determines_the_views(seed: int) -> None:
    def sample() -> tuple[Tensor, View]:
        random = np.random.default_rng(seed)
        weak = SMALL.sample(SIZE, random)
        return StrongAugmentation().sample(render(smooth_image(seed), weak), weak, random)

    (image, view), (same_image, same_view) = sample(), sample()
    assert torch.equal(image, same_image)
    assert torch.equal(view.matrix, same_view.matrix)
    assert torch.equal(view.cutout, same_view.cutout)


def augmented_step_by_step(image: Tensor, random: np.random.Generator) -> Tensor:
    """Returns a strong image by the paper's description: each change is applied as soon as it is sampled."""
    height, width = image.shape[1:]
    picture, moves = to_picture(image), []
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
    strong = render(to_tensor(picture), move(View.whole((height, width)), moves))
    strong[:, y : y + side, x : x + side] = OUTSIDE
    return strong


@settings(max_examples=100)
@given(seed=seeds)
def test_strong_views_equal_those_augmented_step_by_step(seed: int) -> None:
    image = smooth_image(seed)
    random, same_random, deferred_random = (np.random.default_rng(seed) for _ in range(3))
    strong, view = StrongAugmentation().sample(image, View.whole(SIZE), random)
    assert torch.equal(strong, augmented_step_by_step(image, same_random))
    changes, same_view = StrongAugmentation().sample_changes(View.whole(SIZE), deferred_random)
    assert torch.equal(strong, render_strong(image, changes))
    assert torch.equal(view.matrix, same_view.matrix)
    assert torch.equal(view.cutout, same_view.cutout)
    # All three have used the same number of random numbers.
    assert random.random() == same_random.random() == deferred_random.random()


@given(seed=seeds)
def test_the_strong_image_has_the_geometry_of_its_view(seed: int) -> None:
    # Without changes of color, the strong image is the original warped to the strong view.
    original, random = smooth_image(seed), np.random.default_rng(seed)
    weak = SMALL.sample(SIZE, random)
    moves = tuple(name for name in views._POOL if name in MOVES)
    assert len(moves) == 5
    augmentation = StrongAugmentation(blur=0, jitter=0, operations=3)
    image = render(original, weak)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_POOL", moves)
        rendered, strong = augmentation.sample(image, weak, random)
    # What the weak view cut off is outside of the strong one too.
    expected, valid = warp(image[None].float(), weak, strong)
    difference = (rendered.float() - expected[0]).abs().amax(dim=0)
    assert difference[valid[0]].mean() < 2
    assert (rendered == OUTSIDE).all(dim=0)[~valid[0]].float().mean() > 0.97
    side = int(48 / 3)
    x0, y0, x1, y1 = strong.cutout[0].int().tolist()
    assert (x1 - x0, y1 - y0) == (side, side)
    assert x0 >= 0 <= y0
    assert x1 <= 72
    assert y1 <= 48
    assert (rendered[:, y0:y1, x0:x1] == OUTSIDE).all()


def test_strong_views_move_with_the_documented_probability() -> None:
    random, whole = np.random.default_rng(0), View.whole((30, 40))
    image = smooth_image(0, (30, 40))
    matrices = torch.cat([StrongAugmentation().sample(image, whole, random)[1].matrix for _ in range(400)])
    flipped = torch.linalg.det(matrices[:, :, :2]) < 0
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.1)
    # Of 14 operations 5 move the image; two are sampled, each is applied with probability 1/2.
    reference = torch.eye(2, 3).repeat(len(matrices), 1, 1)
    reference[flipped] = torch.tensor([[-1.0, 0, 40], [0, 1, 0]])
    moved = (matrices - reference).abs().amax(dim=(1, 2)) > 1e-4
    assert moved.float().mean() == pytest.approx(1 - (1 - 5 / 28) ** 2, abs=0.07)


@pytest.mark.parametrize("magnitude", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in views._POOL if name != "identity"])
def test_every_operation_of_the_pool_changes_the_image(name: str, magnitude: float) -> None:
    picture = to_picture(smooth_image(3))
    if name in MOVES:
        moved = move(View.whole(SIZE), [(name, magnitude * views._LARGEST[name])])
        assert not torch.equal(moved.matrix, View.whole(SIZE).matrix)
    else:
        changed = apply_to_picture(picture, (name, views._amount(name, magnitude)))
        assert changed.size == picture.size
        assert changed.tobytes() != picture.tobytes()


def test_enhancements_have_the_factors_of_fixmatch() -> None:
    picture = Image.new("RGB", (1, 1), (200, 200, 200))
    amounts = [views._amount("brightness", magnitude) for magnitude in (0.1, 0.5, 0.9)]
    got = [apply_to_picture(picture, ("brightness", a)).getpixel((0, 0))[0] for a in amounts]
    assert got == pytest.approx([200 * f for f in (0.14, 0.5, 0.86)], abs=1)


def test_moves_reach_their_documented_limits() -> None:
    def largest(name: str, sign: int) -> Tensor:
        return move(View.whole((100, 200)), [(name, sign * views._LARGEST[name])]).matrix[0]

    assert largest("shear_x", 1)[0, 1] == pytest.approx(0.3)
    assert largest("shear_y", -1)[1, 0] == pytest.approx(-0.3)
    assert largest("translate_x", 1)[0, 2] == pytest.approx(60)
    assert largest("translate_y", 1)[1, 2] == pytest.approx(30)
    assert math.degrees(math.asin(largest("rotate", 1)[1, 0])) == pytest.approx(30, abs=1e-3)


def reference_batch(images: Tensor, changes: list[StrongChanges]) -> Tensor:
    return torch.stack([render_strong(i, c) for i, c in zip(images, changes, strict=True)])


@given(seed=seeds)
def test_a_batch_agrees_with_pillow(seed: int) -> None:
    images = torch.stack([smooth_image(seed + i) for i in range(3)])
    changes = [changes_of(seed + i) for i in range(3)]
    got = render_strong_batch(images, changes)
    difference = (got.int() - reference_batch(images, changes).int()).abs().float()
    # Operations that follow, such as equalize, amplify the difference of the first.
    assert difference.mean() < 2
    for image, each in zip(got, changes, strict=True):
        x0, y0, x1, y1 = each.cutout
        assert (image[:, y0:y1, x0:x1] == OUTSIDE).all()


@given(seed=seeds)
def test_the_geometry_of_a_batch_agrees_with_pillow(seed: int) -> None:
    images = torch.stack([smooth_image(seed + i) for i in range(2)])
    changes = [StrongChanges((), changes_of(seed + i).moves, (0, 0, 0, 0)) for i in range(2)]
    got, expected = render_strong_batch(images, changes), reference_batch(images, changes)
    difference = (got.int() - expected.int()).abs().amax(dim=1)
    # On the image's border, rounding decides whether a pixel is inside.
    assert (difference > 1).float().mean() < 0.003
    assert difference.float().mean() < 0.2


@pytest.mark.parametrize("size", [SIZE, (512, 896)])
@pytest.mark.parametrize("moves", [(), (("flip", 1.0),)])
def test_flips_and_cutouts_of_a_batch_are_exact(size: tuple[int, int], moves) -> None:
    images, changes = noise(0, size)[None], [StrongChanges((), moves, (5, 9, 17, 21))]
    expected = images.flip(3) if moves else images.clone()
    expected[:, :, 9:21, 5:17] = OUTSIDE
    assert torch.equal(render_strong_batch(images, changes), expected)
    assert torch.equal(reference_batch(images, changes), expected)


def test_a_batch_is_its_images_one_by_one_and_leaves_them_unchanged() -> None:
    images = torch.stack([noise(seed) for seed in range(8)])
    before, changes = images.clone(), [changes_of(seed) for seed in range(8)]
    together = render_strong_batch(images, changes)
    for image, each, strong in zip(images, changes, together, strict=True):
        assert torch.equal(render_strong_batch(image[None], [each])[0], strong)
    assert torch.equal(images, before)


def test_autocast_does_not_change_a_batch() -> None:
    images = torch.stack([noise(seed) for seed in range(8)])
    changes = [changes_of(seed) for seed in range(8)]
    expected = render_strong_batch(images, changes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(render_strong_batch(images, changes), expected)


def test_a_batch_is_rendered_without_synchronizing(fake_cuda: torch.device) -> None:
    moves = tuple((name, 0.1) for name in MOVES)
    changes = StrongChanges((("blur", 1.0), ("sharpness", 0.5)), moves, (5, 9, 17, 21))
    images = torch.zeros(2, 3, *SIZE, dtype=torch.uint8)
    got = render_strong_batch(images, [changes, StrongChanges((), (), (0, 0, 8, 8))])
    assert got.shape == images.shape
    assert got.device == images.device


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: render(torch.zeros(4, 4, 3, dtype=torch.uint8), View.whole((4, 4))), "3, H, W"),
        (lambda: render(torch.zeros(3, 4, 4), View.whole((4, 4))), "uint8"),
        (lambda: render_label(torch.zeros(4, 4), View.whole((4, 4))), "uint8"),
        (lambda: render(torch.zeros(3, 4, 4, dtype=torch.uint8), View.whole((4, 4), 2)), "one view, got 2"),
        (lambda: render_strong(torch.zeros(3, 9, 9), changes_of(0)), "uint8"),
        (lambda: WeakView(scale=(2, 1)), "scale"),
        (lambda: StrongAugmentation(blur=-1.0), r"blur.*-1\.0"),
        (lambda: StrongAugmentation(blur=math.inf), "blur.*inf"),
        (lambda: StrongAugmentation(jitter=0.6), r"jitter.*0\.6"),
        (lambda: StrongAugmentation(operations=-1), "operations.*-1"),
        (lambda: StrongAugmentation(cutout=1.5), r"cutout.*1\.5"),
        (lambda: StrongAugmentation(cutout=math.nan), "cutout.*nan"),
        (lambda: render_strong_batch(torch.zeros(1, 3, 9, 9), [changes_of(0)]), "uint8"),
        (lambda: render_strong_batch(noise(0), [changes_of(0)]), r"\(B, 3, h, w\)"),
        (lambda: render_strong_batch(noise(0)[None], [changes_of(0)] * 2), "got 2"),
    ],
)
def test_invalid_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
