import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.memory import PixelMemoryBank


@given(capacity=st.integers(1, 12), pushes=st.lists(st.integers(0, 30), max_size=6))
def test_holds_the_last_pixels_that_were_pushed(capacity: int, pushes: list[int]) -> None:
    bank = PixelMemoryBank(capacity, 2)
    history: list[int] = []
    for count in pushes:
        new = torch.arange(len(history), len(history) + count)
        bank.push(new[:, None].float().expand(-1, 2), new)
        history += new.tolist()
    kept = history[-capacity:]
    assert bank.valid.sum() == len(kept)
    assert sorted(bank.labels[bank.valid].tolist()) == kept
    assert torch.equal(bank.features[bank.valid][:, 0].long(), bank.labels[bank.valid])


def test_pixels_without_labels_are_ignored_ones() -> None:
    bank = PixelMemoryBank(4, 2, ignore_index=99)
    bank.push(torch.rand(3, 2))
    assert bank.labels.tolist() == [99] * 4
    assert bank.valid.sum() == 3


def test_features_that_are_not_finite_are_not_valid() -> None:
    bank = PixelMemoryBank(3, 2)
    bank.push(torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [0.0, torch.inf]]))
    assert bank.valid.tolist() == [True, False, False]
    assert bank.features.isfinite().all()


def test_goes_on_after_it_was_saved() -> None:
    bank, copy = PixelMemoryBank(3, 1), PixelMemoryBank(3, 1)
    bank.push(torch.rand(2, 1))
    copy.load_state_dict(bank.state_dict())
    for each in (bank, copy):
        each.push(torch.full((2, 1), 7.0), torch.tensor([1, 2]))
    assert torch.equal(bank.features, copy.features)
    assert torch.equal(bank.labels, copy.labels)


def test_keeps_no_graph_of_what_is_pushed() -> None:
    bank = PixelMemoryBank(3, 2)
    bank.push(torch.rand(2, 2, requires_grad=True) * 2)
    assert not bank.features.requires_grad


@pytest.mark.parametrize(
    ("features", "labels"),
    [(torch.rand(3, 5), None), (torch.rand(3), None), (torch.rand(3, 2), torch.zeros(2))],
)
def test_wrong_shapes_are_named(features, labels) -> None:
    with pytest.raises(ValueError, match="must be"):
        PixelMemoryBank(3, 2).push(features, labels)
