import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cpsl.authors.geometry import warp_upsampled
from cpsl.geometry import View, warp
from cpsl.prototypes import prototype_similarity


@given(
    grid=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    enlarged=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    out=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    top=st.integers(-3, 20),
    left=st.integers(-3, 20),
    flip=st.booleans(),
    seed=st.integers(0, 999),
)
def test_warp_upsampled_equals_upsampling_and_warping(
    grid, enlarged, out, top: int, left: int, flip: bool, seed: int
) -> None:
    maps = torch.randn(2, 3, *grid, generator=torch.Generator().manual_seed(seed))
    whole = View.whole((32, 48), 2)
    view = whole.resized((40, 56)).cropped(top, left, (20, 24)).flipped(flip)
    got = warp_upsampled(maps, whole, view, out, enlarged)
    large = F.interpolate(maps, enlarged, mode="bilinear", align_corners=True)
    wanted, valid = warp(large, whole, view, out, align_corners=True)
    torch.testing.assert_close(got.movedim(1, -1)[valid], wanted.movedim(1, -1)[valid], atol=1e-4, rtol=1e-4)


def weak_view_of_the_authors(vectors) -> tuple[tuple[int, int], View]:
    """Returns the size of the map at a quarter of the resolution, and the authors' weak view of it."""
    height, width = (int(n) // 4 for n in vectors["image_size"])
    tall, wide = (int(n) // 4 for n in vectors["resized"])
    top, left = (int(n) // 4 for n in vectors["crop_top_left"])
    crop_height, crop_width = (int(n) // 4 for n in vectors["crop_size"])
    # Resizing with aligned corners keeps the centers of the corner pixels fixed.
    down, across = (height - 1) / (tall - 1), (width - 1) / (wide - 1)
    aligned = torch.tensor([[[across, 0, (1 - across) / 2], [0, down, (1 - down) / 2]]])
    view = View(aligned, (tall, wide)).cropped(top, left, (crop_height, crop_width))
    return (height, width), view.flipped(bool(vectors["hflip"]))


def test_weak_geometry_agrees_with_the_authors_code(golden) -> None:
    vectors = golden("rectify_identity") | golden("rectify_geometry")
    features = torch.from_numpy(vectors["features"])
    (height, width), view = weak_view_of_the_authors(vectors)
    quarter = F.interpolate(features, (height, width), mode="bilinear", align_corners=True)
    in_view, valid = warp(quarter, View.whole((height, width)), view)
    assert valid.all()

    prototypes = F.normalize(torch.from_numpy(vectors["prototypes"]), dim=1)
    cosine = torch.einsum("bdhw,kd->bkhw", F.normalize(in_view, dim=1), prototypes)
    weights = (cosine / float(vectors["temperature"])).softmax(dim=1)
    expected = torch.from_numpy(vectors["weights"])
    assert (weights - expected).abs().max() / expected.max() <= 1e-4
    labels = (weights * torch.from_numpy(vectors["soft"])).argmax(dim=1)
    assert torch.equal(labels, torch.from_numpy(vectors["labels"]))


def test_warped_features_agree_with_the_authors_code(golden) -> None:
    vectors = golden("rectify_identity") | golden("rectify_geometry")
    features = torch.from_numpy(vectors["features"])
    quarter, view = weak_view_of_the_authors(vectors)
    warped = warp_upsampled(features, View.whole(quarter), view, view.size, quarter)
    cosine = prototype_similarity(warped, torch.from_numpy(vectors["prototypes"]))
    weights = (cosine / float(vectors["temperature"])).softmax(dim=1)
    expected = torch.from_numpy(vectors["weights"])
    assert (weights - expected).abs().max() / expected.max() <= 1e-4


def test_as_many_views_as_maps_are_needed() -> None:
    view = View.whole((8, 8))
    with pytest.raises(ValueError, match="2 maps need as many views"):
        warp_upsampled(torch.ones(2, 1, 4, 4), view, view, (4, 4), (8, 8))


def test_warp_upsampled_compiles_to_one_graph() -> None:
    view = View.whole((16, 24))
    arguments = torch.rand(1, 5, 6, 7), view, view.flipped(), (5, 6), (10, 12)
    compiled = torch.compile(warp_upsampled, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), warp_upsampled(*arguments))
