"""Labels of any resolution give the result of labels on the grid of the features."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl import (
    ClassBalancedPrototypeClustering,
    ClassMeanPrototypes,
    PseudoLabelRectifier,
    RunningClassMeans,
    cross_entropy,
)
from cpsl.geometry import View, resize_labels, warp

K, D = 4, 6
seeds = st.integers(0, 10_000)


def enlarged(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def batch(seed: int, height: int = 5, width: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (2, height, width), generator=generator)]
    return torch.randn(2, D, height, width, generator=generator), labels


@given(factor=st.integers(2, 3), align_corners=st.booleans(), seed=seeds)
def test_the_clustering_resizes_labels(factor: int, align_corners: bool, seed: int) -> None:
    features, labels = batch(seed)
    clustering = ClassBalancedPrototypeClustering(
        K, D, bank_size=20, samples_per_image=9, align_corners=align_corners
    )
    outputs = []
    for given_labels in (labels, enlarged(labels, factor), enlarged(labels, factor).to(torch.uint8)):
        torch.manual_seed(seed)
        outputs.append(clustering(features, given_labels))
    for output in outputs[1:]:
        assert all(map(torch.equal, output, outputs[0]))


@given(factor=st.integers(2, 3), align_corners=st.booleans(), seed=seeds)
def test_class_means_resize_labels(factor: int, align_corners: bool, seed: int) -> None:
    features, labels = batch(seed)
    running = RunningClassMeans(K, D, align_corners=align_corners)
    means = ClassMeanPrototypes(K, D, min_pixels=1, align_corners=align_corners)
    logits = torch.randn(2, K, 5, 7, generator=torch.Generator().manual_seed(seed))
    other_running, other_means = copy.deepcopy(running), copy.deepcopy(means)
    running.update(features, labels)
    other_running.update(features, enlarged(labels, factor))
    assert all(map(torch.equal, running.compute(), other_running.compute()))
    means.update(features, logits)
    other_means.update(features, enlarged(logits, factor))
    assert all(map(torch.equal, means.compute(), other_means.compute()))


@given(size=st.tuples(st.integers(1, 12), st.integers(1, 12)), align_corners=st.booleans(), seed=seeds)
def test_all_resize_alike(size: tuple[int, int], align_corners: bool, seed: int) -> None:
    _, labels = batch(seed, *size)
    grid = torch.randn(2, D, 5, 7)
    wanted = resize_labels(labels, (5, 7), align_corners)
    clustering = ClassBalancedPrototypeClustering(
        K, D, bank_size=9, samples_per_image=35, align_corners=align_corners, sampling="uniform"
    )
    output = clustering(grid, labels)
    assert torch.equal(output.labels, wanted.flatten()[output.indices.flatten()])
    one, other = (RunningClassMeans(K, D, align_corners=align_corners) for _ in range(2))
    one.update(grid, labels)
    other.update(grid, wanted)
    assert all(map(torch.equal, one.compute(), other.compute()))


@pytest.mark.parametrize("interpolate", ["similarity", "features"])
@given(align_corners=st.booleans(), seed=seeds)
def test_the_rectifier_keeps_the_convention_of_the_features(
    interpolate: str, align_corners: bool, seed: int
) -> None:
    """Like `warp`, whose images have half-pixel and whose features have either convention."""
    torch.manual_seed(seed)
    coarse = torch.randn(1, D, 3, 4)
    if interpolate == "similarity":
        coarse, prototypes = torch.nn.functional.normalize(coarse, dim=1), torch.eye(D)
    else:
        prototypes = torch.randn(K, D)
    soft = torch.rand(1, len(prototypes), 15, 20).softmax(dim=1)
    whole = View.whole((15, 20))
    fine = warp(coarse, whole, whole, align_corners=align_corners).values
    if align_corners:  # the outermost features are the outermost pixels
        fine = warp(coarse, whole, whole, align_corners=True, output_align_corners=True).values
    rectifier = PseudoLabelRectifier(1.0, interpolate=interpolate, align_corners=align_corners)
    got = rectifier(soft, coarse, prototypes)
    by_features = interpolate == "features"
    wanted = rectifier(soft, fine, prototypes) if by_features else rectifier.rectify(soft, fine)
    torch.testing.assert_close(got.probabilities, wanted.probabilities, atol=1e-5, rtol=1e-4)


def test_labels_whose_size_must_fit_say_how_to_resize() -> None:
    with pytest.raises(ValueError, match="resize_labels"):
        cross_entropy(torch.rand(1, K, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="call the rectifier"):
        PseudoLabelRectifier().rectify(torch.rand(1, K, 8, 8), torch.rand(1, K, 4, 4))
