import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.data.changes import ColorOperation, StrongChanges
from cpsl.data.views import StrongAugmentation
from cpsl.geometry import View

JITTER = {
    ColorOperation.BRIGHTNESS,
    ColorOperation.COLOR,
    ColorOperation.CONTRAST,
    ColorOperation.HUE,
}


def drawn(seed: int, augmentation: StrongAugmentation | None = None) -> StrongChanges:
    random = np.random.default_rng(seed)
    augmentation = augmentation or StrongAugmentation()
    return augmentation.draw_changes(View.whole((20, 30)), random)[0]


@given(seed=st.integers(0, 10_000), operations=st.integers(0, 3))
def test_changes_of_any_image_have_one_shape(seed: int, operations: int) -> None:
    changes = drawn(seed, StrongAugmentation(operations=operations))
    assert len(changes) == 1
    assert changes.operations.shape == changes.amounts.shape == (1, 4 + operations)
    assert changes.operations.dtype == torch.int64
    assert changes.amounts.dtype == torch.float32
    first, then = changes.operations[0].split([4, operations])
    assert set(first.tolist()) in (JITTER, {ColorOperation.IDENTITY})
    assert ColorOperation.HUE not in then.tolist()


def test_a_batch_is_its_parts() -> None:
    parts = [drawn(seed) for seed in range(5)]
    batch = StrongChanges.stack(parts)
    assert len(batch) == 5
    for i, part in enumerate(parts):
        assert torch.equal(batch.blurred[i], part.blurred[0])
        assert torch.equal(batch.operations[i], part.operations[0])
        assert torch.equal(batch.amounts[i], part.amounts[0])
        assert torch.equal(batch.view.matrix[i], part.view.matrix[0])
        assert torch.equal(batch.view.hidden[i], part.view.hidden[0])


def test_moving_moves_all() -> None:
    moved = drawn(0).to("meta", non_blocking=True)
    parts = (moved.blurred, moved.operations, moved.amounts, moved.view.matrix, moved.view.hidden)
    assert all(part.is_meta for part in parts)
    assert moved.blur == 1


@pytest.mark.cuda
def test_pinning_pins_all() -> None:
    pinned = drawn(0).pin_memory()
    parts = (pinned.blurred, pinned.operations, pinned.amounts, pinned.view.matrix)
    assert all(part.is_pinned() for part in parts)


def test_one_batch_has_one_blur() -> None:
    with pytest.raises(ValueError, match=r"one blur, got \[1.0, 2.0\]"):
        StrongChanges.stack([drawn(0), drawn(0, StrongAugmentation(blur=2.0))])
