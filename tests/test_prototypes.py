import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.prototypes import ClassMeanPrototypes, RunningClassMeans, prototype_similarity


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


def labelled(steps: int, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Batches of 3-dimensional features of four classes, the last of which never appears."""
    classes = torch.tensor([0, 1, 2, 255])
    return [
        (torch.randn(2, 3, size, size), classes[torch.randint(4, (2, size, size))])
        for _ in range(steps)
    ]


@given(momentum=st.floats(0.1, 1), steps=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_running_means_weigh_each_batch_by_its_age(momentum: float, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    means, batches = RunningClassMeans(4, 3, momentum), labelled(steps)
    for features, labels in batches:
        means.update(features, labels)
    sums, counts = torch.zeros(4, 3), torch.zeros(4)
    for age, (features, labels) in enumerate(reversed(batches)):
        units = F.normalize(features, dim=1).movedim(1, -1)
        for k in range(3):
            sums[k] += momentum**age * units[labels == k].sum(dim=0)
            counts[k] += momentum**age * (labels == k).sum()
    torch.testing.assert_close(means.prototypes, sums / counts.clamp_min(1e-9)[:, None])
    torch.testing.assert_close(means.distribution, counts / counts.sum())
    assert (means.prototypes[3] == 0).all()


@given(momentum=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_the_first_batch_counts_in_full(momentum: float, seed: int) -> None:
    """Whatever the momentum: nothing is left of the zeros that the averages start from."""
    torch.manual_seed(seed)
    slow, fast = RunningClassMeans(4, 3, momentum), RunningClassMeans(4, 3, momentum=0)
    batch = labelled(1)[0]
    slow.update(*batch)
    fast.update(*batch)
    torch.testing.assert_close(slow.prototypes, fast.prototypes)
    torch.testing.assert_close(slow.distribution, fast.distribution)


def test_a_class_that_does_not_appear_keeps_its_prototype() -> None:
    means = RunningClassMeans(4, 3, momentum=0.5)
    features, labels = labelled(1)[0]
    means.update(features, labels)
    before = means.prototypes
    for _ in range(200):
        means.update(features, labels.masked_fill(labels == 1, 255))
    torch.testing.assert_close(means.prototypes[1], before[1])
    assert 0 < means.counts[1] < 1e-9


@given(scale=st.floats(1e-3, 1e3), enlarged=st.integers(1, 3))
def test_lengths_and_the_resolution_of_the_labels_do_not_matter(
    scale: float, enlarged: int
) -> None:
    torch.manual_seed(0)
    one, other = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    features, labels = labelled(1)[0]
    one.update(features, labels)
    other.update(
        features * scale, labels.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2)
    )
    torch.testing.assert_close(one.prototypes, other.prototypes)
    torch.testing.assert_close(one.distribution, other.distribution)


def test_features_that_are_not_finite_are_skipped() -> None:
    means, clean = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    features, labels = labelled(1)[0]
    features[0, 1, 2, 3] = torch.inf
    means.update(features, labels)
    labels[0, 2, 3] = 255
    clean.update(features.nan_to_num(posinf=0), labels)
    assert torch.equal(means.prototypes, clean.prototypes)
    assert torch.equal(means.counts, clean.counts)


def test_before_the_first_label_nothing_is_known() -> None:
    means = RunningClassMeans(4, 3)
    means.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert (means.prototypes == 0).all()
    torch.testing.assert_close(means.distribution, torch.full((4,), 0.25))
    clustering = ClassBalancedPrototypeClustering(4, 3, bank_size=8)
    start = clustering.prototypes.clone()
    clustering.initialize(means.prototypes, means.distribution)
    torch.testing.assert_close(clustering.prototypes, start)


def test_running_means_resume_where_they_stopped() -> None:
    means, resumed = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    first, second = labelled(2)
    means.update(*first)
    resumed.load_state_dict(means.state_dict())
    means.update(*second)
    resumed.update(*second)
    assert torch.equal(means.prototypes, resumed.prototypes)
    assert torch.equal(means.distribution, resumed.distribution)


def test_running_means_wait_for_nothing(fake_cuda) -> None:
    means = RunningClassMeans(4, 3)
    clustering = ClassBalancedPrototypeClustering(4, 3, bank_size=8)
    means.update(torch.randn(2, 3, 4, 4), torch.randint(4, (2, 8, 8)))
    clustering.initialize(means.prototypes, means.distribution)
    assert clustering.prototypes.shape == (4, 3)


def test_wrong_running_means_are_named() -> None:
    with pytest.raises(ValueError, match=r"momentum must lie in 0\.\.\.1, got 2"):
        RunningClassMeans(4, 3, momentum=2)
    means = RunningClassMeans(4, 3)
    with pytest.raises(ValueError, match=r"features must be \(B, 3, h, w\)"):
        means.update(torch.rand(2, 4, 5, 5), torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"labels must be \(2, H, W\)"):
        means.update(torch.rand(2, 3, 5, 5), torch.zeros(1, 5, 5))
    with pytest.raises(ValueError, match=r"labels must be 0\.\.\.3"):
        means.update(torch.rand(2, 3, 5, 5), torch.full((2, 5, 5), 4))
