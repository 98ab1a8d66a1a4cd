import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpsl.data.color import (
    LabStatistics,
    lab_statistics,
    lab_to_rgb,
    rgb_to_lab,
    transfer_color,
    transfer_color_batch,
)

seeds = st.integers(0, 10_000)


def random_image(seed: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (3, 40, 50), generator=generator, dtype=torch.uint8)


# Published values for sRGB under D65 and the 2 degree observer.
@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((128, 128, 128), (53.59, 0, 0)),
    ],
)
def test_known_colours(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    pixel = torch.tensor(rgb, dtype=torch.uint8).reshape(3, 1, 1)
    expected = torch.tensor(lab, dtype=torch.float32)
    torch.testing.assert_close(rgb_to_lab(pixel).flatten(), expected, atol=0.03, rtol=0)


@given(seed=seeds)
def test_there_and_back_changes_nothing(seed: int) -> None:
    image = random_image(seed)
    assert torch.equal(lab_to_rgb(rgb_to_lab(image)), image)


def test_dark_greys_survive_there_and_back() -> None:
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(lab_to_rgb(rgb_to_lab(greys)), greys)


def test_colours_beyond_the_screen_are_clipped() -> None:
    beyond = torch.tensor([[150.0, -30, 50], [0, 0, 400], [0, 0, -400]]).reshape(3, 1, 3)
    rgb = lab_to_rgb(beyond)
    assert rgb[:, 0, 0].tolist() == [255, 255, 255]
    assert rgb[:, 0, 1].tolist() == [0, 0, 0]


@given(seed=seeds)
def test_the_result_has_the_statistics_of_the_target(seed: int) -> None:
    image = random_image(seed, 60, 140)
    target = LabStatistics(torch.tensor([60.0, 5, -8]), torch.tensor([6.0, 7, 5]))
    got = lab_statistics(transfer_color(image, target))
    torch.testing.assert_close(got.mean, target.mean, atol=0.3, rtol=0)
    torch.testing.assert_close(got.deviation, target.deviation, atol=0.3, rtol=0)


@given(seed=seeds)
def test_its_own_statistics_change_nothing(seed: int) -> None:
    image = random_image(seed)
    changed = transfer_color(image, lab_statistics(image))
    assert (changed.int() - image.int()).abs().max() <= 1


@given(seed=seeds)
def test_a_crop_is_coloured_as_in_its_image(seed: int) -> None:
    image = random_image(seed)
    image[:, :20] //= 3
    target = lab_statistics(random_image(seed + 1, 30, 120))
    whole = transfer_color(image, target)
    crop = transfer_color(image[:, :20, 7:].contiguous(), target, lab_statistics(image))
    assert torch.equal(crop, whole[:, :20, 7:])


def test_few_pixels_are_enough() -> None:
    x, y = torch.meshgrid(torch.linspace(0, 1, 400), torch.linspace(0, 1, 700), indexing="ij")
    image = (torch.stack([x, y, x * y]) * 255).to(torch.uint8)
    every, some = lab_statistics(image, 10**9), lab_statistics(image)
    torch.testing.assert_close(some.mean, every.mean, atol=0.5, rtol=0)
    torch.testing.assert_close(some.deviation, every.deviation, atol=0.5, rtol=0)
    lab = rgb_to_lab(image).flatten(1)
    torch.testing.assert_close(every.mean, lab.mean(dim=1))
    torch.testing.assert_close(every.deviation, lab.std(dim=1, correction=0))


def test_an_image_of_one_colour_takes_the_mean() -> None:
    target = LabStatistics(torch.tensor([50.0, 0, 0]), torch.tensor([20.0, 10, 10]))
    changed = transfer_color(torch.full((3, 8, 8), 200, dtype=torch.uint8), target)
    assert (changed.int() - 119).abs().max() <= 1


def stacked(images: list[Tensor]) -> LabStatistics:
    return LabStatistics(*map(torch.stack, zip(*map(lab_statistics, images), strict=True)))


@given(seed=seeds)
def test_a_batch_is_its_images_within_one_grey_level(seed: int) -> None:
    images = [random_image(seed), random_image(seed, 0, 60), random_image(seed, 90, 200)]
    styles = [random_image(seed + 1, 30, 120), random_image(seed + 1, 200), random_image(seed + 1)]
    got = transfer_color_batch(torch.stack(images), stacked(styles), stacked(images))
    assert got.dtype == torch.uint8
    for image, style, colored in zip(images, styles, got, strict=True):
        difference = (colored.int() - transfer_color(image, lab_statistics(style)).int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.1


def test_a_batch_of_one_colour_takes_the_mean() -> None:
    image, target = torch.full((3, 8, 8), 200, dtype=torch.uint8), torch.tensor([[50.0, 0, 0]])
    got = transfer_color_batch(
        image[None], LabStatistics(target, torch.full((1, 3), 20.0)), stacked([image])
    )
    assert (got.int() - 119).abs().max() <= 1


def test_a_batch_keeps_its_precision_under_autocast() -> None:
    images = torch.stack([random_image(seed) for seed in range(2)])
    arguments = images, stacked([random_image(9, 30, 120)] * 2), stacked(list(images))
    expected = transfer_color_batch(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transfer_color_batch(*arguments), expected)


def test_a_batch_compiles_to_one_graph() -> None:
    images = torch.stack([random_image(seed) for seed in range(2)])
    arguments = images, stacked([random_image(9, 30, 120)] * 2), stacked(list(images))
    compiled = torch.compile(transfer_color_batch, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*arguments), transfer_color_batch(*arguments))


def test_a_batch_asks_for_no_value() -> None:
    # A fake tensor has no values, so that whatever waits for one fails.
    with FakeTensorMode():
        colors = LabStatistics(torch.zeros(2, 3), torch.ones(2, 3))
        images = torch.zeros(2, 3, 8, 9, dtype=torch.uint8)
        assert transfer_color_batch(images, colors, colors).shape == (2, 3, 8, 9)


@pytest.mark.cuda
def test_a_batch_does_not_wait_for_the_device() -> None:
    images = torch.stack([random_image(seed) for seed in range(2)])
    target, source = stacked([random_image(9, 30, 120)] * 2), stacked(list(images))
    on_device = images.cuda(), *(LabStatistics(*(p.cuda() for p in s)) for s in (target, source))
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = transfer_color_batch(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = got.cpu().int() - transfer_color_batch(images, target, source).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("images", "statistics", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3), "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3), r"\(B, 3, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), r"must be \(2, 3\)"),
    ],
)
def test_mistakes_are_named(images: Tensor, statistics: Tensor, message: str) -> None:
    colors = LabStatistics(statistics, statistics)
    with pytest.raises(ValueError, match=message):
        transfer_color_batch(images, colors, colors)
