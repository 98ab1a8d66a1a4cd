import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFilter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpsl.data import batched, views
from cpsl.data.batched import render_strong_batch
from cpsl.data.changes import ColorOperation, StrongChanges
from cpsl.data.views import OUTSIDE, StrongAugmentation, render_strong
from cpsl.geometry import View

SIZE = (36, 52)
WEAK = View.whole(SIZE)
OPERATIONS = dict((*batched._JITTER, *batched._RAND_AUGMENT))
seeds = st.integers(0, 10_000)


def random_images(seed: int, batch: int = 4, size: tuple[int, int] = SIZE) -> Tensor:
    """Returns noise, each channel of each image in a range of its own; some have one value."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.randint(256, (2, batch, 3, 1, 1), generator=generator).sort(dim=0).values
    high = torch.where(torch.rand(high.shape, generator=generator) < 0.1, low, high)
    noise = torch.rand(batch, 3, *size, generator=generator)
    return (low + noise * (high + 1 - low)).floor().clamp(max=255).to(torch.uint8)


def smooth_images(seed: int, batch: int = 4, size: tuple[int, int] = SIZE) -> Tensor:
    coarse = torch.rand(batch, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    images = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    return (images * 255).round().to(torch.uint8)


def random_amounts(operation: ColorOperation, seed: int, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if operation == ColorOperation.HUE:
        return torch.randint(-127, 128, (batch,), generator=generator).float()
    if operation == ColorOperation.POSTERIZE:
        return torch.randint(1, 9, (batch,), generator=generator).float()
    if operation == ColorOperation.SOLARIZE:
        return torch.randint(0, 257, (batch,), generator=generator).float()
    return torch.rand(batch, generator=generator) * 1.6


def drawn(
    seed: int, batch: int = 4, weak: View = WEAK, augmentation: StrongAugmentation | None = None
) -> list[StrongChanges]:
    random, augmentation = np.random.default_rng(seed), augmentation or StrongAugmentation()
    return [augmentation.draw_changes(weak, random)[0] for _ in range(batch)]


def geometry(view: View) -> StrongChanges:
    """Returns changes that only move."""
    unchanged = torch.full((len(view), 6), int(ColorOperation.IDENTITY))
    no = torch.zeros(len(view), dtype=torch.bool)
    return StrongChanges(no, unchanged, torch.zeros(len(view), 6), view, 1.0)


@given(seed=seeds)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_colours_are_exactly_pillow_s(operation: ColorOperation, seed: int) -> None:
    images, amounts = random_images(seed), random_amounts(operation, seed)
    got = OPERATIONS[operation](images, amounts[:, None, None, None])
    assert got.dtype == torch.uint8
    for image, amount, changed in zip(images, amounts.tolist(), got, strict=True):
        expected = views._recolored(views._to_pillow(image), operation, amount)
        assert torch.equal(changed, views._to_tensor(expected))


@pytest.mark.parametrize("blue", [0, 1, 100, 254, 255])
def test_hue_is_exact_for_all_reds_and_greens(blue: int) -> None:
    red = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    image = torch.stack([red, red.T, torch.full_like(red, blue)])
    for turn in (-102, 0, 57):
        got = batched._hue(image[None], torch.full((1, 1, 1, 1), float(turn)))[0]
        expected = views._recolored(views._to_pillow(image), ColorOperation.HUE, turn)
        assert torch.equal(got, views._to_tensor(expected))


@given(seed=seeds, radius=st.one_of(st.just(1.0), st.floats(0, 6)))
def test_blur_is_pillow_s(seed: int, radius: float) -> None:
    images = random_images(seed, 2)
    for image, got in zip(images, batched._gaussian_blur(images, radius), strict=True):
        expected = views._to_pillow(image).filter(ImageFilter.GaussianBlur(radius))
        assert torch.equal(got, views._to_tensor(expected))


@pytest.mark.parametrize("size", [SIZE, (512, 896)])
@pytest.mark.parametrize("flip", [False, True])
def test_flips_and_cutouts_are_exact(size: tuple[int, int], flip: bool) -> None:
    image = random_images(0, 1, size)
    view = View.whole(size).flipped(flip).with_cutout(torch.tensor([5.0, 9, 17, 21]))
    expected = image.flip(3) if flip else image.clone()
    expected[:, :, 9:21, 5:17] = OUTSIDE
    assert torch.equal(render_strong_batch(image, geometry(view)), expected)
    assert torch.equal(render_strong(image[0], geometry(view)), expected[0])


@given(seed=seeds)
def test_geometry_agrees_with_pillow(seed: int) -> None:
    shear, move, angle = np.random.default_rng(seed).uniform(-1, 1, 3)
    view = WEAK.sheared(x=0.3 * shear).translated(y=9 * move).rotated(30 * angle)
    image = smooth_images(seed, 1)
    got = render_strong_batch(image, geometry(view))[0].int()
    difference = (got - render_strong(image[0], geometry(view)).int()).abs().amax(dim=0)
    # On the image's border, rounding decides whether a pixel is seen.
    assert (difference > 1).float().mean() < 0.002
    assert (difference > 0).float().mean() < 0.1


@given(seed=seeds)
def test_strong_views_agree_with_pillow(seed: int) -> None:
    images, changes = random_images(seed), drawn(seed)
    got = render_strong_batch(images, StrongChanges.stack(changes))
    expected = torch.stack([render_strong(i, c) for i, c in zip(images, changes, strict=True)])
    difference = (got.int() - expected.int()).abs()
    assert (difference > 1).float().mean() < 0.002
    assert difference.float().mean() < 0.1
    for image, part in zip(got, changes, strict=True):
        x0, y0, x1, y1 = part.view.hidden[0].int().tolist()
        assert (image[:, y0:y1, x0:x1] == OUTSIDE).all()


@given(seed=seeds)
def test_without_moves_strong_views_are_exactly_pillow_s(seed: int) -> None:
    images = random_images(seed)
    changes = [StrongChanges(**{**vars(c), "view": WEAK.flipped()}) for c in drawn(seed)]
    got = render_strong_batch(images, StrongChanges.stack(changes))
    for image, part, strong in zip(images, changes, got, strict=True):
        assert torch.equal(strong, render_strong(image, part))


@given(seed=seeds)
def test_a_batch_is_each_sample_alone(seed: int) -> None:
    images, changes = random_images(seed), drawn(seed)
    together = render_strong_batch(images, StrongChanges.stack(changes))
    for image, part, strong in zip(images, changes, together, strict=True):
        assert torch.equal(render_strong_batch(image[None], part)[0], strong)


def test_images_stay_as_they_were() -> None:
    images = random_images(0)
    before = images.clone()
    render_strong_batch(images, StrongChanges.stack(drawn(3)))
    assert torch.equal(images, before)


def test_autocast_changes_nothing() -> None:
    images, changes = random_images(0, 8), StrongChanges.stack(drawn(1, 8))
    expected = render_strong_batch(images, changes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(render_strong_batch(images, changes), expected)


def test_compiles_to_one_graph() -> None:
    images, changes = random_images(0), StrongChanges.stack(drawn(2))
    compiled = torch.compile(render_strong_batch, fullgraph=True, backend="eager")
    assert torch.equal(compiled(images, changes), render_strong_batch(images, changes))


def test_asks_for_no_value() -> None:
    # A fake tensor has no values, so that whatever waits for one fails.
    with FakeTensorMode():
        view = View.whole(SIZE, 2).with_cutout(torch.zeros(4))
        got = render_strong_batch(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), geometry(view))
    assert got.shape == (2, 3, *SIZE)


@pytest.mark.cuda
def test_does_not_wait_for_the_device() -> None:
    images, changes = random_images(0, 16), StrongChanges.stack(drawn(4, 16))
    on_device = images.cuda(), changes.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = render_strong_batch(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (got.cpu().int() - render_strong_batch(images, changes).int()).abs()
    assert (difference > 1).float().mean() < 0.005


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, *SIZE), "uint8"),
        (torch.zeros(3, *SIZE, dtype=torch.uint8), r"\(B, 3, h, w\)"),
        (torch.zeros(2, 3, *SIZE, dtype=torch.uint8), "2 images need as many changes, got 1"),
    ],
)
def test_mistakes_are_named(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_strong_batch(images, geometry(WEAK))
