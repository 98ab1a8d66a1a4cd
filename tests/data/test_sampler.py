from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpsl.data import DrawSampler


@given(
    length=st.integers(1, 20),
    batch=st.integers(1, 5),
    start=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_starting_later_is_like_having_run_until_there(
    length: int, batch: int, start: int, seed: int
) -> None:
    whole = list(islice(DrawSampler(length, batch, seed), start + 4))
    assert list(islice(DrawSampler(length, batch, seed, start=start), 4)) == whole[start:]


@given(length=st.integers(1, 20), seed=st.integers(0, 99))
def test_each_epoch_draws_each_image_once(length: int, seed: int) -> None:
    draws = [batch[0] for batch in islice(DrawSampler(length, 1, seed), 3 * length)]
    for epoch in range(3):
        indices = [draw.index for draw in draws[epoch * length : (epoch + 1) * length]]
        assert sorted(indices) == list(range(length))
    assert len({draw.seed for draw in draws}) == 3 * length


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
    """Any number of ranks that divides the batch, in any number of parts, draws the same whole batches."""
    alone = list(islice(DrawSampler(length, ranks * parts * share, seed=0, start=start), 4))
    shares = [
        list(
            islice(
                DrawSampler(
                    length, share, seed=0, start=start * parts, rank=rank, world_size=ranks
                ),
                4 * parts,
            )
        )
        for rank in range(ranks)
    ]
    for step in range(4):
        of_step = range(step * parts, (step + 1) * parts)
        assert [draw for part in of_step for rank in shares for draw in rank[part]] == alone[step]
    # Each draw is of one rank alone, even where an image is drawn in two epochs.
    of_ranks = [{draw.seed for batch in rank for draw in batch} for rank in shares]
    assert sum(map(len, of_ranks)) == len(set().union(*of_ranks)) == 4 * ranks * parts * share


def test_nothing_to_draw_from_is_said() -> None:
    with pytest.raises(ValueError, match="no images"):
        DrawSampler(0, 1, seed=0)
