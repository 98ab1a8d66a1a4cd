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
def test_similarity_is_the_cosine_for_any_length(scale: float, seed: int) -> None:
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


def test_features_of_length_zero_have_similarity_zero() -> None:
    assert prototype_similarity(torch.zeros(1, 3), torch.eye(3)).abs().sum() == 0


def test_class_means_agree_with_the_authors_code(golden) -> None:
    vectors = {name: torch.from_numpy(array) for name, array in golden("prototypes").items()}
    means = ClassMeanPrototypes(*vectors["prototypes"].shape)
    # In two batches: batching must not change the result.
    means.update(vectors["features"][:1], vectors["logits"][:1])
    means.update(vectors["features"][1:], vectors["logits"][1:])
    got = means.compute()
    assert torch.equal(got.image_counts.float(), vectors["images_seen"])
    difference = (got.prototypes - vectors["prototypes"]).abs().max()
    assert difference / vectors["prototypes"].abs().max() <= 1e-4


@given(seed=st.integers(0, 10_000))
def test_classes_that_are_never_predicted_have_zero_prototypes(seed: int) -> None:
    torch.manual_seed(seed)
    means = ClassMeanPrototypes(3, 4, min_pixels=1)
    logits = torch.randn(2, 3, 5, 5)
    logits[:, 1] = -100
    means.update(torch.randn(2, 4, 5, 5), logits)
    got = means.compute()
    assert got.image_counts[1] == 0
    assert (got.prototypes[1] == 0).all()
    assert np.isfinite(got.prototypes.numpy()).all()


def test_reset_discards_all_batches() -> None:
    running, fresh = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    means, fresh_means = ClassMeanPrototypes(4, 3, min_pixels=1), ClassMeanPrototypes(4, 3, 1)
    (first, first_labels), (features, labels) = labeled(2)
    running.update(first, first_labels)
    means.update(first, torch.randn(2, 4, 5, 5))
    running.reset()
    means.reset()
    logits = torch.randn(2, 4, 5, 5)
    for each in (running, fresh):
        each.update(features, labels)
    for each in (means, fresh_means):
        each.update(features, logits)
    for got, wanted in ((running, fresh), (means, fresh_means)):
        assert all(map(torch.equal, got.compute(), wanted.compute()))


@pytest.mark.parametrize("count", [8191, 8192, 8193, 16384])
def test_similarity_of_many_pixels_is_the_cosine(count: int) -> None:
    torch.manual_seed(0)
    features, prototypes = torch.randn(count, 16), torch.randn(5, 16)
    got = prototype_similarity(features, prototypes)
    wanted = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).t()
    torch.testing.assert_close(got, wanted)
    strided = torch.randn(16, count).t()
    torch.testing.assert_close(
        prototype_similarity(strided, prototypes), prototype_similarity(strided.contiguous(), prototypes)
    )


def labeled(steps: int, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Returns batches of 3-dimensional features and labels of four classes without the last."""
    classes = torch.tensor([0, 1, 2, 255])
    return [(torch.randn(2, 3, size, size), classes[torch.randint(4, (2, size, size))]) for _ in range(steps)]


@given(momentum=st.floats(0.1, 1), steps=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_running_means_weight_batches_by_age(momentum: float, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    means, batches = RunningClassMeans(4, 3, momentum), labeled(steps)
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
def test_the_first_batch_has_full_weight(momentum: float, seed: int) -> None:
    """The initial zeros have no influence, for any momentum."""
    torch.manual_seed(seed)
    slow, fast = RunningClassMeans(4, 3, momentum), RunningClassMeans(4, 3, momentum=0)
    batch = labeled(1)[0]
    slow.update(*batch)
    fast.update(*batch)
    torch.testing.assert_close(slow.prototypes, fast.prototypes)
    torch.testing.assert_close(slow.distribution, fast.distribution)


def test_absent_classes_keep_their_prototypes() -> None:
    means = RunningClassMeans(4, 3, momentum=0.5)
    features, labels = labeled(1)[0]
    means.update(features, labels)
    before = means.prototypes
    for _ in range(200):
        means.update(features, labels.masked_fill(labels == 1, 255))
    torch.testing.assert_close(means.prototypes[1], before[1])
    assert 0 < means.counts[1] < 1e-9


@given(scale=st.floats(1e-3, 1e3), enlarged=st.integers(1, 3))
def test_feature_lengths_and_label_resolution_do_not_matter(scale: float, enlarged: int) -> None:
    torch.manual_seed(0)
    one, other = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    features, labels = labeled(1)[0]
    one.update(features, labels)
    other.update(features * scale, labels.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2))
    torch.testing.assert_close(one.prototypes, other.prototypes)
    torch.testing.assert_close(one.distribution, other.distribution)


def test_non_finite_features_are_skipped() -> None:
    means, clean = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    features, labels = labeled(1)[0]
    features[0, 1, 2, 3] = torch.inf
    means.update(features, labels)
    labels[0, 2, 3] = 255
    clean.update(features.nan_to_num(posinf=0), labels)
    assert torch.equal(means.prototypes, clean.prototypes)
    assert torch.equal(means.counts, clean.counts)


def test_running_means_before_the_first_label() -> None:
    means = RunningClassMeans(4, 3)
    means.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert (means.prototypes == 0).all()
    torch.testing.assert_close(means.distribution, torch.full((4,), 0.25))
    clustering = ClassBalancedPrototypeClustering(4, 3, bank_size=8)
    start = clustering.prototypes.clone()
    clustering.initialize(*means.compute())
    torch.testing.assert_close(clustering.prototypes, start)


def test_state_dictionaries_restore_running_means() -> None:
    means, resumed = RunningClassMeans(4, 3), RunningClassMeans(4, 3)
    first, second = labeled(2)
    means.update(*first)
    resumed.load_state_dict(means.state_dict())
    means.update(*second)
    resumed.update(*second)
    assert torch.equal(means.prototypes, resumed.prototypes)
    assert torch.equal(means.distribution, resumed.distribution)


def test_running_means_do_not_synchronize_with_the_device(fake_cuda) -> None:
    means = RunningClassMeans(4, 3)
    clustering = ClassBalancedPrototypeClustering(4, 3, bank_size=8)
    means.update(torch.randn(2, 3, 4, 4), torch.randint(4, (2, 8, 8)))
    clustering.initialize(*means.compute())
    assert clustering.prototypes.shape == (4, 3)


def test_invalid_inputs_of_running_means_are_named() -> None:
    with pytest.raises(ValueError, match=r"momentum must lie in 0\.\.\.1, got 2"):
        RunningClassMeans(4, 3, momentum=2)
    means = RunningClassMeans(4, 3)
    with pytest.raises(ValueError, match=r"features must be \(B, 3, h, w\)"):
        means.update(torch.rand(2, 4, 5, 5), torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"labels must be \(2, H, W\)"):
        means.update(torch.rand(2, 3, 5, 5), torch.zeros(1, 5, 5))
    with pytest.raises(ValueError, match=r"labels must be 0\.\.\.3"):
        means.update(torch.rand(2, 3, 5, 5), torch.full((2, 5, 5), 4))
