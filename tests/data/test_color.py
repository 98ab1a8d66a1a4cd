import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.data import color
from cpsl.data.color import LabStatistics, lab_statistics, lab_to_rgb, rgb_to_lab, transfer_color

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
def test_known_colors(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    pixel = torch.tensor(rgb, dtype=torch.uint8).reshape(3, 1, 1)
    expected = torch.tensor(lab, dtype=torch.float32)
    torch.testing.assert_close(rgb_to_lab(pixel).flatten(), expected, atol=0.03, rtol=0)


@given(seed=seeds)
def test_conversion_to_lab_and_back_is_the_identity(seed: int) -> None:
    image = random_image(seed)
    assert torch.equal(lab_to_rgb(rgb_to_lab(image)), image)


def test_conversion_of_all_grays_and_back_is_the_identity() -> None:
    grays = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(lab_to_rgb(rgb_to_lab(grays)), grays)


def test_colors_outside_of_srgb_are_clipped() -> None:
    outside = torch.tensor([[150.0, -30, 50], [0, 0, 400], [0, 0, -400]]).reshape(3, 1, 3)
    rgb = lab_to_rgb(outside)
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
def test_an_image_keeps_its_own_colors(seed: int) -> None:
    image = random_image(seed)
    changed = transfer_color(image, lab_statistics(image))
    assert (changed.int() - image.int()).abs().max() <= 1


@given(seed=seeds)
def test_a_crop_gets_the_colors_of_the_whole_image(seed: int) -> None:
    image = random_image(seed)
    image[:, :20] //= 3
    target = lab_statistics(random_image(seed + 1, 30, 120))
    whole = transfer_color(image, target)
    crop = transfer_color(image[:, :20, 7:].contiguous(), target, lab_statistics(image))
    assert torch.equal(crop, whole[:, :20, 7:])


def test_statistics_of_a_subset_of_pixels_are_accurate() -> None:
    x, y = torch.meshgrid(torch.linspace(0, 1, 400), torch.linspace(0, 1, 700), indexing="ij")
    image = (torch.stack([x, y, x * y]) * 255).to(torch.uint8)
    every, some = lab_statistics(image, 10**9), lab_statistics(image)
    torch.testing.assert_close(some.mean, every.mean, atol=0.5, rtol=0)
    torch.testing.assert_close(some.deviation, every.deviation, atol=0.5, rtol=0)
    lab = rgb_to_lab(image).flatten(1)
    torch.testing.assert_close(every.mean, lab.mean(dim=1))
    torch.testing.assert_close(every.deviation, lab.std(dim=1, correction=0))


def test_an_image_of_one_color_gets_the_mean() -> None:
    target = LabStatistics(torch.tensor([50.0, 0, 0]), torch.tensor([20.0, 10, 10]))
    changed = transfer_color(torch.full((3, 8, 8), 200, dtype=torch.uint8), target)
    assert (changed.int() - 119).abs().max() <= 1


def stacked(images: list[Tensor]) -> LabStatistics:
    return LabStatistics(*map(torch.stack, zip(*map(lab_statistics, images), strict=True)))


@pytest.mark.parametrize("host", [True, False])
@given(seed=seeds)
def test_a_batch_agrees_with_its_images_within_one_gray_level(host: bool, seed: int) -> None:
    images = [random_image(seed), random_image(seed, 0, 60), random_image(seed, 90, 200)]
    styles = [random_image(seed + 1, 30, 120), random_image(seed + 1, 200), random_image(seed + 1)]
    statistics = stacked(styles), stacked(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(color, "_on_host", lambda tensor: host)  # a device computes without tables
        got = transfer_color(torch.stack(images), *statistics)
    assert got.dtype == torch.uint8
    for image, style, colored in zip(images, styles, got, strict=True):
        difference = (colored.int() - transfer_color(image, lab_statistics(style)).int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.1


@pytest.mark.parametrize("host", [True, False])
def test_autocast_does_not_change_the_result(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.stack([random_image(seed) for seed in range(2)])
    arguments = images, stacked([random_image(9, 30, 120)] * 2), stacked(list(images))
    monkeypatch.setattr(color, "_on_host", lambda tensor: host)
    expected = transfer_color(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transfer_color(*arguments), expected)


def test_a_batch_is_computed_without_synchronizing(fake_cuda: torch.device) -> None:
    colors = LabStatistics(torch.zeros(2, 3), torch.ones(2, 3))
    images = torch.zeros(2, 3, 8, 9, dtype=torch.uint8)
    got = transfer_color(images, colors, colors)
    assert got.shape == images.shape
    assert got.device == images.device


@pytest.mark.cuda
def test_a_batch_is_computed_without_synchronizing_a_gpu() -> None:
    images = torch.stack([random_image(seed) for seed in range(2)])
    target, source = stacked([random_image(9, 30, 120)] * 2), stacked(list(images))
    on_device = images.cuda(), *(LabStatistics(*(p.cuda() for p in s)) for s in (target, source))
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = transfer_color(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = got.cpu().int() - transfer_color(images, target, source).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("images", "statistics", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3), "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3), r"must be \(3,\)"),
        (torch.zeros(4, 3, 4, dtype=torch.uint8), torch.zeros(3), r"\(3, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), r"must be \(2, 3\)"),
    ],
)
def test_invalid_arguments_are_named(images: Tensor, statistics: Tensor, message: str) -> None:
    colors = LabStatistics(statistics, statistics)
    with pytest.raises(ValueError, match=message):
        transfer_color(images, colors, colors)
