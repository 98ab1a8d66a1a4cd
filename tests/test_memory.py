import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.memory import PixelMemoryBank


@given(capacity=st.integers(1, 12), pushes=st.lists(st.integers(0, 30), max_size=6))
def test_the_last_pixels_are_stored(capacity: int, pushes: list[int]) -> None:
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


def test_pixels_without_labels_get_the_ignore_index() -> None:
    bank = PixelMemoryBank(4, 2, ignore_index=99)
    bank.push(torch.rand(3, 2))
    assert bank.labels.tolist() == [99] * 4
    assert bank.valid.sum() == 3


def test_non_finite_features_are_not_valid() -> None:
    bank = PixelMemoryBank(3, 2)
    bank.push(torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [0.0, torch.inf]]))
    assert bank.valid.tolist() == [True, False, False]
    assert bank.features.isfinite().all()
    bank.push(torch.full((1, 2), 1e39, dtype=torch.float64))  # infinite in float32
    assert bank.valid.sum() == 0
    assert bank.features.isfinite().all()


@given(
    capacity=st.integers(1, 12),
    stored=st.integers(0, 20),
    pushed=st.integers(0, 20),
    seed=st.integers(0, 10_000),
)
def test_a_push_that_is_not_applied_changes_nothing(
    capacity: int, stored: int, pushed: int, seed: int
) -> None:
    torch.manual_seed(seed)
    bank, unconditional = PixelMemoryBank(capacity, 2), PixelMemoryBank(capacity, 2)
    bank.push(torch.randn(stored, 2), torch.randint(5, (stored,)))
    unconditional.load_state_dict(bank.state_dict())
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    new = torch.randn(pushed, 2), torch.randint(5, (pushed,))
    new[0][::3] = torch.nan
    bank.push(*new, torch.tensor(False))
    assert all(torch.equal(before[key], value) for key, value in bank.state_dict().items())
    bank.push(*new, torch.tensor(True))
    unconditional.push(*new)
    for key, value in unconditional.state_dict().items():
        assert torch.equal(value, bank.state_dict()[key])


def test_push_does_not_synchronize_with_the_device(fake_cuda) -> None:
    bank = PixelMemoryBank(3, 2)
    bank.push(torch.randn(2, 2))
    bank.push(torch.randn(2, 2), torch.zeros(2), torch.ones(()) > 0)
    assert bank.valid.shape == (3,)


def test_state_dictionaries_restore_the_bank() -> None:
    bank, copy = PixelMemoryBank(3, 1), PixelMemoryBank(3, 1)
    bank.push(torch.rand(2, 1))
    copy.load_state_dict(bank.state_dict())
    for each in (bank, copy):
        each.push(torch.full((2, 1), 7.0), torch.tensor([1, 2]))
    assert torch.equal(bank.features, copy.features)
    assert torch.equal(bank.labels, copy.labels)


def test_stored_features_have_no_graph() -> None:
    bank = PixelMemoryBank(3, 2)
    bank.push(torch.rand(2, 2, requires_grad=True) * 2)
    assert not bank.features.requires_grad


@pytest.mark.parametrize(
    ("features", "labels"),
    [(torch.rand(3, 5), None), (torch.rand(3), None), (torch.rand(3, 2), torch.zeros(2))],
)
def test_wrong_shapes_are_refused(features, labels) -> None:
    with pytest.raises(ValueError, match="must be"):
        PixelMemoryBank(3, 2).push(features, labels)


@given(
    old=st.integers(1, 4),
    new=st.integers(1, 4),
    capacity=st.integers(1, 12),
    pushes=st.lists(st.integers(1, 5), max_size=8),
)
def test_shards_are_redistributed_evenly(old: int, new: int, capacity: int, pushes: list[int]) -> None:
    banks = [PixelMemoryBank(capacity, 1) for _ in range(old)]
    next_pixel = 0
    for count in pushes:
        for bank in banks:
            pixels = torch.arange(next_pixel, next_pixel + count)
            bank.push(pixels[:, None].float(), pixels)
            next_pixel += count
    shards = [bank.state_dict() for bank in banks]
    known = sorted(p for bank in banks for p in bank.labels[bank.valid].tolist())
    now = [PixelMemoryBank(-(-capacity * old // new), 1) for _ in range(new)]
    for rank, bank in enumerate(now):
        bank.load_shards(shards, rank, new)
        assert torch.equal(bank.features[:, 0][bank.valid], bank.labels[bank.valid].float())
    # No pixel is lost or repeated if there is room, and the shares are even.
    assert sorted(p for bank in now for p in bank.labels[bank.valid].tolist()) == known
    sizes = [int(bank.valid.sum()) for bank in now]
    assert max(sizes) - min(sizes) <= 1


def test_smaller_banks_keep_the_newest_pixels() -> None:
    bank, small = PixelMemoryBank(4, 1), PixelMemoryBank(2, 1)
    bank.push(torch.arange(6.0)[:, None])
    small.load_shards([bank.state_dict()])
    assert sorted(small.features.flatten().tolist()) == [4, 5]
    with pytest.raises(ValueError, match=r"must be \(N, 3\), got shape \(4, 1\)"):
        PixelMemoryBank(2, 3).load_shards([bank.state_dict()])
