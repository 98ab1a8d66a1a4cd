import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.collapse import (
    DRIFT,
    LOST,
    PRESENT,
    class_divergence,
    find_collapses,
    find_unpredicted,
    total_variation,
)

NAMES = ("road", "building", "sky", "pole")
SHARES = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda x: sum(x) > 0.01).map(torch.tensor)
BEFORE = torch.tensor([0.5, 0.3, 0.19, 0.01])


def reasons(now: Tensor, before: Tensor = BEFORE, source: Tensor | None = None) -> list[str]:
    return [collapse.reason for collapse in find_collapses(now, before, NAMES, source)]


@given(d=SHARES, r=SHARES)
def test_distances_of_distributions(d: Tensor, r: Tensor) -> None:
    for distance in (class_divergence, total_variation):
        assert distance(d, r) >= 0
        assert distance(d, 5 * d) == pytest.approx(0, abs=1e-6)
        assert distance(d, r).isfinite()
    assert total_variation(d, r) <= 1 + 1e-9
    torch.testing.assert_close(total_variation(d, r), total_variation(r, d))
    # Pinsker's inequality.
    assert 2 * total_variation(d, r) ** 2 <= class_divergence(d, r) + 1e-6


@given(d=SHARES, source=SHARES)
def test_nothing_collapses_without_a_change(d: Tensor, source: Tensor) -> None:
    assert find_collapses(d, d, NAMES, source) == []
    assert find_collapses(1000 * d, d, NAMES) == []


@given(before=SHARES, k=st.integers(0, 3))
def test_a_class_without_pixels_is_lost_if_it_had_some(before: Tensor, k: int) -> None:
    before = before / before.sum()
    now = before.clone()
    now[k] = 0
    assume(now.sum() > 0.01)
    found = find_collapses(now, before, NAMES)
    dominant = any("nearly all" in collapse.reason for collapse in found)
    assert dominant or [c.class_index for c in found] == ([k] if before[k] >= 0.001 else [])


def test_a_lost_class_is_named_with_its_shares() -> None:
    (reason,) = reasons(torch.tensor([0.5, 0.3098, 0.19, 0.0002]))
    for text in ("pole", "0.02 %", "1.00 %", "building grew most"):
        assert text in reason
    assert reasons(torch.tensor([0.5, 0.308, 0.19, 0.002])) == []


def test_a_class_that_the_source_does_not_have_may_vanish() -> None:
    now = torch.tensor([0.51, 0.3, 0.19, 0.0])
    assert len(reasons(now, source=BEFORE)) == 1
    assert reasons(now, source=torch.tensor([0.5, 0.3, 0.2, 0.0])) == []


def test_one_class_nearly_everywhere_is_one_collapse() -> None:
    (reason,) = reasons(torch.tensor([0.98, 0.01, 0.01, 0.0]), source=BEFORE)
    for text in ("road", "98.00 %", "50.00 %", "lost: building, pole"):
        assert text in reason
    # Nine tenths of the pixels may be of one class from the beginning.
    frequent = torch.tensor([0.97, 0.01, 0.01, 0.01])
    assert reasons(torch.tensor([0.98, 0.01, 0.005, 0.005]), frequent) == []


def test_a_drift_from_the_source_is_found_and_an_approach_is_not() -> None:
    away = torch.tensor([0.5, 0.3 + DRIFT - 0.02, 0.21 - DRIFT, 0.01])
    further = torch.tensor([0.48 - DRIFT, 0.32 + DRIFT, 0.19, 0.01])
    assert reasons(away, source=BEFORE) == []
    (reason,) = reasons(further, source=BEFORE)
    assert f"{100 * DRIFT + 2:.2f} %" in reason
    assert "building" in reason
    assert find_collapses(BEFORE, further, NAMES, BEFORE) == []
    assert reasons(further) == []


@given(predicted=SHARES, source=SHARES, k=st.integers(0, 3))
def test_classes_of_the_source_without_predictions_are_found(
    predicted: Tensor, source: Tensor, k: int
) -> None:
    """Also those that no earlier network predicted, which are no collapse."""
    assert find_unpredicted(source, 5 * source) == []
    predicted[k] = 0
    assume(predicted.sum() > 0.01)
    found = find_unpredicted(predicted, source)
    shares = source / source.sum()
    assert (k in found) == (shares[k].double() >= PRESENT)
    assert find_collapses(predicted, predicted, NAMES, source) == []
    assert all(predicted[j] / predicted.sum() < LOST * shares[j] + 1e-6 for j in found)
    assert [shares[j] for j in found] == sorted((shares[j] for j in found), reverse=True)


def test_other_numbers_of_classes_are_rejected() -> None:
    with pytest.raises(ValueError, match="class distribution"):
        find_collapses(torch.ones(3), torch.ones(4), NAMES)
    with pytest.raises(ValueError, match="reference"):
        total_variation(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="class distribution"):
        find_unpredicted(torch.ones(3), torch.ones(4))
