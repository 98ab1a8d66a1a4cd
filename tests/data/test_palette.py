"""Colors of classes are distinct, for any number of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.data import LabelSpace, distinct_palette
from cpsl.data.color import rgb_to_lab


def positions(colors: tuple[tuple[int, int, int], ...]) -> Tensor:
    """Returns the colors in CIELAB (N, 3)."""
    return rgb_to_lab(torch.tensor(colors, dtype=torch.uint8).T[..., None])[..., 0].T


@given(st.integers(0, 255), st.integers(0, 255))
def test_a_longer_palette_begins_with_a_shorter_one(one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert distinct_palette(long)[:short] == distinct_palette(short)
    assert len(distinct_palette(long)) == long


# A difference of 2.3 is just noticeable (Mahy et al., 1994).
@pytest.mark.parametrize(("count", "least"), [(5, 55), (11, 45), (19, 30), (64, 15), (255, 8)])
def test_colors_differ_from_each_other_and_from_black_and_white(count: int, least: float) -> None:
    colors = (*distinct_palette(count), (0, 0, 0), (255, 255, 255))
    distances = torch.cdist(positions(colors), positions(colors)).fill_diagonal_(torch.inf)
    assert distances[:-2].min() >= least


def test_255_classes_have_colors() -> None:
    assert len(set(LabelSpace(tuple(map(str, range(255))), distinct_palette(255)).palette)) == 255


@pytest.mark.parametrize("count", [-1, 256])
def test_a_number_outside_the_range_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        distinct_palette(count)
