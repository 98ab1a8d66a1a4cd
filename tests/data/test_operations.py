import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.data.operations import Operation, apply_to_picture, apply_to_tensor, to_picture, to_tensor

SIZE = (60, 84)
factors = st.floats(0.1, 1.6)  # strong views use 0.14...1.4
AMOUNTS = {
    "autocontrast": st.just(0.0),
    "blur": st.just(1.0),
    "brightness": factors,
    "contrast": factors,
    "equalize": st.just(0.0),
    "hue": st.integers(-200, 200).map(float),
    "posterize": st.integers(1, 8).map(float),
    "saturation": factors,
    "sharpness": factors,
    "solarize": st.integers(0, 255).map(float),
}
EXACT = ("brightness", "equalize", "posterize", "sharpness", "solarize")
seeds = st.integers(0, 10_000)


def noise(seed: int) -> Tensor:
    """Returns noise, each channel in a range of its own."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.randint(256, (2, 3, 1, 1), generator=generator).sort(dim=0).values
    values = low + torch.rand(3, *SIZE, generator=generator) * (high + 1 - low)
    return values.floor().clamp(max=255).to(torch.uint8)


def smooth(seed: int) -> Tensor:
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, SIZE, mode="bilinear", align_corners=True)[0]
    return (image * 255).round().to(torch.uint8)


def difference(image: Tensor, operation: Operation) -> Tensor:
    """Returns the absolute difference of the two implementations in gray levels."""
    expected = to_tensor(apply_to_picture(to_picture(image), operation))
    got = apply_to_tensor(image, operation)
    assert got.dtype == torch.uint8
    return (got.int() - expected.int()).abs()


@given(seed=seeds, data=st.data())
@pytest.mark.parametrize("kind", [smooth, noise])
@pytest.mark.parametrize("name", AMOUNTS)
def test_torchvision_agrees_with_pillow(name, kind, seed, data) -> None:
    image = kind(seed)
    levels = difference(image, (name, data.draw(AMOUNTS[name]))).float()
    if name == "hue" and kind is noise:
        # Pillow truncates the hue to 255 steps and turns it modulo 256: half a step off on average, 1.5 at
        # most. A step changes one of the three channels by 6/256 of the chroma. The rest is rounding.
        chroma = (image.amax(dim=0) - image.amin(dim=0)).float()
        assert levels.mean() <= 1 + chroma.mean() / 256
        assert (levels.amax(dim=0) <= 2 + 9 * chroma / 256).all()
    else:
        assert levels.mean() <= 1
    if name not in ("blur", "hue"):
        assert levels.max() <= 1
    if name in EXACT:
        assert levels.max() == 0


@given(seed=seeds, radius=st.floats(0.5, 6))
def test_blur_of_any_radius_agrees_on_smooth_images(seed: int, radius: float) -> None:
    assert difference(smooth(seed), ("blur", radius)).float().mean() <= 1


@pytest.mark.parametrize("name", AMOUNTS)
def test_the_image_is_not_changed_in_place(name: str) -> None:
    image = noise(0)
    before = image.clone()
    apply_to_tensor(image, (name, 1.0))
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", AMOUNTS)
def test_operations_do_not_synchronize(name: str, fake_cuda: torch.device) -> None:
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    assert apply_to_tensor(image, (name, 1.0)).device == image.device


@pytest.mark.cuda
def test_operations_do_not_synchronize_a_gpu() -> None:
    image = noise(0)
    on_device = image.cuda()
    for name in AMOUNTS:
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = apply_to_tensor(on_device, (name, 1.0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = apply_to_tensor(image, (name, 1.0))
        assert (got.cpu().int() - expected.int()).abs().max() <= 1, name
