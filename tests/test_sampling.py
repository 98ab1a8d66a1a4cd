import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.sampling import class_quotas, sample_class_proportional, sample_uniform


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    total=st.integers(1, 300),
    seed=st.integers(0, 10_000),
)
def test_quotas_follow_the_distribution_with_at_least_one_per_class(
    counts: list[int], total: int, seed: int
) -> None:
    torch.manual_seed(seed)
    present = torch.tensor(counts) > 0
    delta = torch.rand(len(counts)) ** 3
    quotas = class_quotas(present, delta, total)
    assert (quotas[~present] == 0).all()
    if not present.any():
        return
    assert quotas.sum() == total
    if total >= present.sum():
        assert (quotas[present] >= 1).all()
    else:
        assert quotas.max() == 1
    # If no class needs to be raised to one, largest remainder is within one of the share.
    share = torch.where(present, delta, 0)
    share = share / share.sum() * total
    if (share[present] >= 1).all():
        assert ((quotas - share).abs() < 1 + 1e-3).all()


def test_classes_without_mass_get_equal_quotas() -> None:
    quotas = class_quotas(torch.tensor([True, True, False]), torch.tensor([0.0, 0.0, 1.0]), 6)
    assert quotas.tolist() == [3, 3, 0]


@given(
    pixels=st.integers(1, 120),
    total=st.integers(1, 60),
    ignored=st.integers(0, 120),
    seed=st.integers(0, 10_000),
)
def test_samples_follow_the_quotas(pixels: int, total: int, ignored: int, seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(4, (pixels,))
    labels[torch.randperm(pixels)[: min(ignored, pixels)]] = 255
    delta = torch.rand(4)
    sampled = sample_class_proportional(labels, delta, total)
    assert sampled.shape == (total,)
    valid = labels != 255
    if not valid.any():
        return
    counts = torch.bincount(labels[valid], minlength=4)
    quotas = class_quotas(counts > 0, delta, total)
    assert torch.equal(torch.bincount(labels[sampled], minlength=4), quotas)
    for k in range(4):
        times = torch.bincount(sampled[labels[sampled] == k], minlength=pixels)
        enough = counts[k] >= quotas[k]
        assert times.max() <= (1 if enough else quotas[k] // counts[k] + 1)


def test_the_pixels_of_a_class_are_equally_likely() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 10 + [1] * 90)
    times = torch.zeros(100)
    for _ in range(2000):
        times[sample_class_proportional(labels, torch.tensor([0.5, 0.5]), 10)] += 1
    # Five of ten and five of ninety pixels: 1000 and 111 times, within five standard deviations.
    assert ((times[:10] - 1000).abs() < 115).all()
    assert ((times[10:] - 111).abs() < 55).all()


@given(images=st.integers(1, 4), pixels=st.integers(1, 30), count=st.integers(1, 40))
def test_uniform_samples_belong_to_their_image(images: int, pixels: int, count: int) -> None:
    sampled = sample_uniform(images, pixels, count, like=torch.empty(0))
    assert sampled.shape == (images, count)
    assert torch.equal(sampled // pixels, torch.arange(images)[:, None].expand(-1, count))
    if count <= pixels:
        assert all(len(set(row)) == count for row in sampled.tolist())
