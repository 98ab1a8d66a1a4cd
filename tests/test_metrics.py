import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.metrics import ConfusionMatrix


@given(seed=st.integers(0, 10_000), parts=st.integers(1, 4))
def test_iou_is_intersection_over_union_of_all_that_was_counted(seed: int, parts: int) -> None:
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


def test_a_class_that_is_nowhere_does_not_count() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert confusion.iou[2].isnan()
    assert confusion.miou == 1
    assert ConfusionMatrix(3).miou.isnan()


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
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
        ([0], [0, 1], "one shape"),
    ],
)
def test_wrong_labels_are_named(prediction, target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).update(torch.tensor(prediction), torch.tensor(target))


def test_what_is_counted_stays_as_it_was() -> None:
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
