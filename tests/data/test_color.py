import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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
