from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpsl.data import SeededSampler


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
