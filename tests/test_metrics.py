import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.metrics import ConfusionMatrix


@given(seed=st.integers(0, 10_000), parts=st.integers(1, 4))
def test_iou_is_intersection_over_union_of_all_batches(seed: int, parts: int) -> None:
    torch.manual_seed(seed)
    prediction, target = torch.randint(4, (parts, 6, 7)), torch.randint(5, (parts, 6, 7))
    target[target == 4] = 255
    confusion = ConfusionMatrix(4)
    for p, t in zip(prediction, target, strict=True):
        confusion.update(p, t.to(torch.uint8))
    valid = target != 255
    for k in range(4):
        truly, predicted = (target == k) & valid, (prediction == k) & valid
        union = (truly | predicted).sum()
        if union:
            expected = (truly & predicted).sum() / union
            torch.testing.assert_close(confusion.iou[k], expected)
        else:
            assert confusion.iou[k].isnan()
    torch.testing.assert_close(confusion.compute(), confusion.iou, equal_nan=True)


def test_reset_discards_all_counts() -> None:
    confusion, once = ConfusionMatrix(3), ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1]), torch.tensor([1, 2]))
    confusion.reset()
    for each in (confusion, once):
        each.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert torch.equal(confusion.matrix, once.matrix)


def test_absent_classes_do_not_count() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert confusion.iou[2].isnan()
    assert confusion.miou == 1
    assert ConfusionMatrix(3).miou.isnan()


def test_predictions_at_ignored_pixels_are_not_counted() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([1, 255]), torch.tensor([1, 255]))
    assert confusion.matrix.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([0, 2], [0, 1], "prediction"),
        ([0, 255], [0, 1], "prediction"),
        ([0, 1], [0, 7], "target"),
        ([0, 1], [0, -1], "target"),
        ([0], [0, 1], r"target must be \(1,\), got shape \(2,\)"),
    ],
)
def test_invalid_labels_are_named(prediction, target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).update(torch.tensor(prediction), torch.tensor(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_labels_must_be_integers(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 1]])
    with pytest.raises(TypeError, match=f"prediction.*{dtype}"):
        ConfusionMatrix(2).update(labels[:, None].to(dtype), labels)
    with pytest.raises(TypeError, match=f"target.*{dtype}"):
        ConfusionMatrix(2).update(labels, labels.to(dtype))


def test_update_does_not_change_its_inputs() -> None:
    for dtype in (torch.uint8, torch.int64):
        prediction, target = (
            torch.tensor([[0, 1, 2]], dtype=dtype),
            torch.tensor([[1, 1, 255]], dtype=dtype),
        )
        before = prediction.clone(), target.clone()
        confusion = ConfusionMatrix(2)
        confusion.update(prediction, target)
        assert torch.equal(prediction, before[0])
        assert torch.equal(target, before[1])
        assert confusion.matrix.tolist() == [[0, 0], [1, 1]]
