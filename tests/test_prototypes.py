import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cpsl.prototypes import ClassMeanPrototypes, prototype_similarity


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10_000))
def test_similarity_is_the_cosine_whatever_the_lengths(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    features, prototypes = torch.randn(2, 6, 3, 4), torch.randn(5, 6)
    got = prototype_similarity(features * scale, prototypes / scale)
    expected = F.cosine_similarity(features[:, None], prototypes[None, :, :, None, None], dim=2)
    torch.testing.assert_close(got, expected)
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)
    as_pixels = prototype_similarity(pixels, prototypes).reshape(2, 3, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(as_pixels, expected)


def test_similarity_is_float32_under_autocast() -> None:
    features, prototypes = torch.randn(1, 64, 2, 2), torch.randn(3, 64)
    exact = prototype_similarity(features, prototypes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = prototype_similarity(features, prototypes)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact)


def test_a_feature_of_length_zero_is_like_nothing() -> None:
    assert prototype_similarity(torch.zeros(1, 3), torch.eye(3)).abs().sum() == 0


def test_class_means_agree_with_the_release(golden) -> None:
    vectors = {name: torch.from_numpy(array) for name, array in golden("prototypes").items()}
    means = ClassMeanPrototypes(19, 256)
    # In two parts: how images are batched must not matter.
    means.update(vectors["features"][:1], vectors["logits"][:1])
    means.update(vectors["features"][1:], vectors["logits"][1:])
    got = means.compute()
    assert torch.equal(got.images_seen.float(), vectors["images_seen"])
    difference = (got.prototypes - vectors["prototypes"]).abs().max()
    assert difference / vectors["prototypes"].abs().max() <= 1e-4


@given(seed=st.integers(0, 10_000))
def test_a_class_that_is_never_predicted_has_no_prototype(seed: int) -> None:
    torch.manual_seed(seed)
    means = ClassMeanPrototypes(3, 4, min_pixels=1)
    logits = torch.randn(2, 3, 5, 5)
    logits[:, 1] = -100
    means.update(torch.randn(2, 4, 5, 5), logits)
    got = means.compute()
    assert got.images_seen[1] == 0
    assert (got.prototypes[1] == 0).all()
    assert np.isfinite(got.prototypes.numpy()).all()


@pytest.mark.parametrize("count", [8191, 8192, 8193, 16384])
def test_many_pixels_have_the_cosines_of_few(count: int) -> None:
    torch.manual_seed(0)
    features, prototypes = torch.randn(count, 16), torch.randn(5, 16)
    got = prototype_similarity(features, prototypes)
    wanted = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).t()
    torch.testing.assert_close(got, wanted)
    strided = torch.randn(16, count).t()
    torch.testing.assert_close(
        prototype_similarity(strided, prototypes),
        prototype_similarity(strided.contiguous(), prototypes),
    )
