"""What a source brings: the classes for which it provides most of the sampled pixels."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.app.reporting.sources import majorities, sampled_pixels
from cpsl.data import RareClassSampling

SOURCES = st.lists(st.integers(1, 4), min_size=2, max_size=3)


@given(seed=st.integers(0, 10_000), images=SOURCES)
def test_a_class_is_that_of_at_most_one_source(seed: int, images: list[int]) -> None:
    torch.manual_seed(seed)
    pixels = {f"source {i}": torch.rand(5) * torch.randint(2, (5,)) for i in range(len(images))}
    found = majorities(pixels)
    total = torch.stack(list(pixels.values())).sum(dim=0)
    for name, classes in found.items():
        assert classes == [k for k in range(5) if pixels[name][k] > total[k] / 2]
    everything = [k for classes in found.values() for k in classes]
    assert len(everything) == len(set(everything))


@given(seed=st.integers(0, 10_000), images=SOURCES)
def test_pixels_are_those_of_the_images_that_are_drawn(seed: int, images: list[int]) -> None:
    torch.manual_seed(seed)
    counts = torch.randint(0, 50, (sum(images), 3)) + 1
    sampling = RareClassSampling(counts, temperature=0.1)
    drawn = torch.zeros(len(counts))
    for position in range(300):
        drawn[sampling(seed, position).index] += 1 / 300
    shares = counts / counts.sum(dim=1, keepdim=True)

    def pixels(probabilities: Tensor) -> Tensor:
        parts = zip(counts.split(images), probabilities.split(images), strict=True)
        return torch.stack([sampled_pixels(*part) for part in parts])

    exact = pixels(sampling.image_probabilities)
    torch.testing.assert_close(exact.sum(dim=0), sampling.image_probabilities @ shares)
    assert (exact - pixels(drawn)).abs().max() < 0.15
