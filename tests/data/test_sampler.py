import math
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpsl.data import MixedSampling, SeededSampler


@given(length=st.integers(1, 20), batch=st.integers(1, 5), start=st.integers(0, 30), seed=st.integers(0, 99))
def test_a_later_start_yields_the_same_batches(length: int, batch: int, start: int, seed: int) -> None:
    whole = list(islice(SeededSampler(length, batch, seed), start + 4))
    assert list(islice(SeededSampler(length, batch, seed, start=start), 4)) == whole[start:]


@given(length=st.integers(1, 20), seed=st.integers(0, 99))
def test_each_epoch_samples_each_image_once(length: int, seed: int) -> None:
    items = [batch[0] for batch in islice(SeededSampler(length, 1, seed), 3 * length)]
    for epoch in range(3):
        indices = [item.index for item in items[epoch * length : (epoch + 1) * length]]
        assert sorted(indices) == list(range(length))
    assert len({item.seed for item in items}) == 3 * length


@given(
    length=st.integers(1, 20),
    ranks=st.integers(1, 5),
    parts=st.integers(1, 3),
    share=st.integers(1, 3),
    start=st.integers(0, 9),
)
def test_ranks_and_parts_share_the_batches_of_one_process(
    length: int, ranks: int, parts: int, share: int, start: int
) -> None:
    """Any number of ranks and of parts that divide the batch yields the same whole batches."""
    alone = list(islice(SeededSampler(length, ranks * parts * share, seed=0, start=start), 4))
    shares = [
        list(
            islice(
                SeededSampler(length, share, seed=0, start=start * parts, rank=rank, world_size=ranks),
                4 * parts,
            )
        )
        for rank in range(ranks)
    ]
    for step in range(4):
        of_step = range(step * parts, (step + 1) * parts)
        assert [item for part in of_step for rank in shares for item in rank[part]] == alone[step]
    # Each item belongs to one rank, even if an image is sampled in two epochs.
    of_ranks = [{item.seed for batch in rank for item in batch} for rank in shares]
    assert sum(map(len, of_ranks)) == len(set().union(*of_ranks)) == 4 * ranks * parts * share


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        SeededSampler(0, 1, seed=0)


SOURCES = st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 10)), min_size=1, max_size=4)


@given(sources=SOURCES, seed=st.integers(0, 99))
def test_sources_are_mixed_in_the_ratio_of_their_weights(sources: list[tuple[int, float]], seed: int) -> None:
    lengths, weights = zip(*sources, strict=True)
    mixed = MixedSampling(lengths, weights)
    epoch, total = sum(mixed.shares), sum(weights)
    for share, weight in zip(mixed.shares, weights, strict=True):
        assert share >= 1
        assert share <= max(weight / total * sum(lengths) + 0.5, 1)
    indices = [mixed(seed, position).index for position in range(3 * epoch)]
    for begin in range(0, 3 * epoch, epoch):
        first = 0
        for length, share in zip(lengths, mixed.shares, strict=True):
            assert sum(first <= i < first + length for i in indices[begin : begin + epoch]) == share
            first += length
    # A source goes through all its images before it repeats one.
    first = 0
    for length in lengths:
        counts = [indices.count(image) for image in range(first, first + length)]
        assert max(counts) - min(counts) <= 1
        first += length


@given(sources=SOURCES, start=st.integers(0, 20), seed=st.integers(0, 9))
def test_mixed_sources_resume_anywhere(sources: list[tuple[int, float]], start: int, seed: int) -> None:
    lengths, weights = zip(*sources, strict=True)
    length = sum(lengths)
    whole = SeededSampler(length, 2, seed, sampling=MixedSampling(lengths, weights))
    resumed = SeededSampler(length, 2, seed, start=start, sampling=MixedSampling(lengths, weights))
    assert list(islice(resumed, 4)) == list(islice(whole, start + 4))[start:]
    ranks = [
        SeededSampler(length, 1, seed, rank=rank, world_size=2, sampling=MixedSampling(lengths, weights))
        for rank in (0, 1)
    ]
    for batch, *parts in islice(zip(whole, *ranks, strict=True), 5):
        assert [item for part in parts for item in part] == batch


@pytest.mark.parametrize(
    ("lengths", "weights", "named"),
    [
        ([], [], "images"),
        ([3, 0], [1, 1], "0"),
        ([3], [1, 2], "2"),
        ([3], [0.0], "0.0"),
        ([3], [math.nan], "nan"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(
    lengths: list[int], weights: list[float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        MixedSampling(lengths, weights)
