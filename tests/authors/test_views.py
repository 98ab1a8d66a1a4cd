import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.authors import AuthorsStrongAugmentation
from cpsl.data.views import MOVES, StrongAugmentation, WeakView, move, render
from cpsl.geometry import View, warp

SIZE = (90, 150)
AUTHORS = AuthorsStrongAugmentation(fixed_label_order=True, stretched_label_translation=True)


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
def test_the_label_geometry_agrees_with_the_authors_code(golden, case: str, moves) -> None:
    vectors = golden("strong_geometry")
    label, whole = torch.from_numpy(vectors["label"])[None], View.whole((384, 640))
    # The order in which the image was transformed has no influence.
    view = AUTHORS.label_view(whole, moves[::-1])
    if case == "all":
        view = view.with_cutout(torch.tensor([40.0, 20, 168, 148]))
    got = warp(label, whole, view, (96, 160)).values[0]
    enough = 0.95 if case == "all" else 0.99  # the authors' code clips after each operation
    assert (got == torch.from_numpy(vectors[case])).float().mean() >= enough


@given(moves=st.lists(st.tuples(st.sampled_from(list(MOVES)), st.floats(-0.3, 0.3)), max_size=5))
def test_each_option_changes_one_point(moves) -> None:
    whole = View.whole(SIZE)
    exact = StrongAugmentation().label_view(whole, moves)
    assert torch.equal(exact.matrix, move(whole, moves).matrix)
    assert torch.equal(AuthorsStrongAugmentation().label_view(whole, moves).matrix, exact.matrix)
    fixed = AuthorsStrongAugmentation(fixed_label_order=True).label_view(whole, moves)
    last = dict(moves)
    kept = [(name, last[name]) for name in MOVES if name in last]
    assert torch.equal(fixed.matrix, move(whole, kept).matrix)
    stretched = AuthorsStrongAugmentation(stretched_label_translation=True)
    if not any(name == "translate_x" for name, _ in moves):
        assert torch.equal(stretched.label_view(whole, moves).matrix, exact.matrix)


@given(seed=st.integers(0, 10_000))
def test_images_are_those_of_the_standard_augmentation(seed: int) -> None:
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, SIZE, mode="bilinear", align_corners=True)
    image = (image[0] * 255).round().to(torch.uint8)

    def augmented(augmentation: StrongAugmentation) -> Tensor:
        random = np.random.default_rng(seed)
        weak = WeakView(full_size=(80, 160), crop=(48, 72), width=170).sample(SIZE, random)
        return augmentation.sample(render(image, weak), weak, random)[0]

    assert torch.equal(augmented(AUTHORS), augmented(StrongAugmentation()))
