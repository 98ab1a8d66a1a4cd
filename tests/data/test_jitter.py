"""Photometric augmentation of source images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.data import ColorJitter
from cpsl.data.operations import apply_operations, apply_operations_to_batch


@given(strength=st.floats(0, 1), hue=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_changes_stay_within_the_strength(strength: float, hue: float, seed: int) -> None:
    amounts = dict(ColorJitter(strength, hue).sample(np.random.default_rng(seed)))
    assert abs(amounts.pop("hue")) <= 255 * hue
    assert set(amounts) == {"brightness", "contrast", "saturation"}
    assert all(abs(factor - 1) <= strength for factor in amounts.values())


def test_blur_has_its_probability() -> None:
    random = np.random.default_rng(0)
    blurs = [dict(ColorJitter(0.1, blur=0.3).sample(random)).get("blur") for _ in range(1000)]
    amounts = [amount for amount in blurs if amount is not None]
    assert 250 < len(amounts) < 350
    assert all(0.15 <= amount <= 1.15 for amount in amounts)


def test_a_strength_of_zero_keeps_the_image() -> None:
    image = torch.randint(256, (3, 12, 20), dtype=torch.uint8)
    operations = ColorJitter(0.0).sample(np.random.default_rng(0))
    # The conversion to HSV and back rounds.
    assert (apply_operations(image, operations).int() - image.int()).abs().float().mean() < 3


def test_a_batch_is_changed_image_by_image() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 3, 24), torch.linspace(0, 5, 40), indexing="ij")
    image = torch.stack([127 + 60 * torch.sin(x + c) * torch.cos(y * c) for c in range(3)]).byte()
    jitter = ColorJitter(0.4, 0.1, blur=0.5)
    operations = [jitter.sample(np.random.default_rng(seed)) for seed in range(6)]
    batch = apply_operations_to_batch(image.expand(6, -1, -1, -1), operations)
    for changed, each in zip(batch, operations, strict=True):
        difference = changed.int() - apply_operations(image, each).int()
        assert difference.abs().float().mean() < 1.5
        assert not torch.equal(changed, image)


@pytest.mark.parametrize(("name", "value"), [("strength", 1.5), ("hue", -0.1), ("blur", float("nan"))])
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ColorJitter(**{"strength": 0.1, name: value})
