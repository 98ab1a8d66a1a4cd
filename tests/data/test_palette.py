"""Colors of classes: those of Cityscapes by name, and distinct ones for any number of others."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.data import CITYSCAPES_16, CITYSCAPES_19, LabelSpace, class_colors
from cpsl.data.color import rgb_to_lab
from cpsl.data.palette import SYNONYMS

OTHERS = [f"class {number}" for number in range(255)]
COLOR_OF = dict(zip(CITYSCAPES_19.names, CITYSCAPES_19.palette, strict=True))


def positions(colors: Iterable[tuple[int, int, int]]) -> Tensor:
    """Returns the colors in CIELAB (N, 3)."""
    return rgb_to_lab(torch.tensor(list(colors), dtype=torch.uint8).T[..., None])[..., 0].T


def smallest_difference(colors: Iterable[tuple[int, int, int]]) -> float:
    """Returns the smallest distance of two colors in CIELAB; 2.3 is just noticeable (Mahy et al., 1994)."""
    found = positions(colors)
    return float(torch.cdist(found, found).fill_diagonal_(torch.inf).min())


@given(st.integers(0, 255), st.integers(0, 255))
def test_more_classes_leave_the_first_colors(one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert class_colors(OTHERS[:long])[:short] == class_colors(OTHERS[:short])


@pytest.mark.parametrize(("count", "least"), [(5, 55), (11, 45), (19, 30), (64, 15), (255, 8)])
def test_colors_differ_from_each_other_and_from_black_and_white(count: int, least: float) -> None:
    assert smallest_difference([*class_colors(OTHERS[:count]), (0, 0, 0), (255, 255, 255)]) >= least


@given(st.lists(st.sampled_from([*COLOR_OF, *SYNONYMS, *OTHERS[:30]]), unique=True))
def test_street_classes_share_no_color_with_others(names: list[str]) -> None:
    colors = class_colors(names)
    given_by_name = [i for i, color in enumerate(colors) if color in COLOR_OF.values()]
    street = [colors[i] for i in given_by_name]
    others = [color for i, color in enumerate(colors) if i not in given_by_name]
    assert len(set(street)) == len(street)
    means = [SYNONYMS.get(name, name) for name in names]
    assert set(street) == {COLOR_OF[name] for name in means if name in COLOR_OF}
    if others and len(colors) > 1:
        all_colors = positions([*colors, (0, 0, 0), (255, 255, 255)])
        # By matrix products, equal colors would have a distance above 0.
        distances = torch.cdist(positions(others), all_colors, compute_mode="donot_use_mm_for_euclid_dist")
        assert distances.masked_fill(distances == 0, torch.inf).min() >= 15  # as pole and fence
        assert len(set(colors)) == len(colors)


@given(st.sampled_from(list(COLOR_OF)), st.sampled_from(["", " ", "_", "-"]), st.booleans())
def test_case_and_separators_do_not_matter(name: str, separator: str, upper: bool) -> None:
    written = name.replace(" ", separator)
    assert class_colors([written.upper() if upper else written]) == (COLOR_OF[name],)


@pytest.mark.parametrize("space", [CITYSCAPES_19, CITYSCAPES_16])
def test_cityscapes_has_its_own_palette(space: LabelSpace) -> None:
    assert class_colors(space.names) == space.palette


def test_classes_of_camvid_have_the_colors_of_cityscapes() -> None:
    names = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian")
    means = ("sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car")
    assert class_colors((*names, "bicyclist")) == tuple(
        COLOR_OF[name] for name in (*means, "person", "rider")
    )


@pytest.mark.parametrize("names", [("tree", "vegetation"), ("vegetation", "tree")])
def test_the_name_of_cityscapes_precedes_its_synonym(names: tuple[str, ...]) -> None:
    colors = dict(zip(names, class_colors(names), strict=True))
    assert colors["vegetation"] == COLOR_OF["vegetation"] != colors["tree"]


def test_colors_do_not_depend_on_the_default_device() -> None:
    with torch.device("meta"):
        computed = class_colors(["road", "one that no other test has", "two"])
    assert computed == class_colors(["road", "another", "third"])


def test_255_classes_have_colors() -> None:
    names = (*CITYSCAPES_19.names, *OTHERS[:236])
    assert smallest_difference(LabelSpace(names, class_colors(names)).palette) >= 7


def test_more_than_255_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"255 classes.*256"):
        class_colors([*OTHERS, "one more"])


def test_no_class_without_a_name_of_the_street_has_its_color() -> None:
    assert not set(class_colors(OTHERS)) & set(CITYSCAPES_19.palette)
