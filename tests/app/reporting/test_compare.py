import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpsl.app.reporting.compare import ImageResult, chosen_images, compare, confusions
from cpsl.metrics import ConfusionMatrix

CLASSES = 4


def maps(seed: int, images: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns labels, some of them ignored, and two predictions of some images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES + 1, (images, 6, 8), generator=generator)
    labels = labels.masked_fill(labels == CLASSES, 255)
    before, after = torch.randint(CLASSES, (2, images, 6, 8), generator=generator)
    return list(labels), list(before), list(after)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), images=st.integers(1, 8))
def test_confusions_are_those_of_all_pixels_and_intervals_contain_the_gain_of_equal_images(
    seed: int, images: int
) -> None:
    labels, before, after = maps(seed, images)
    result = compare([str(i) for i in range(images)], lambda i: (labels[i], before[i], after[i]), CLASSES)
    for matrix, predictions in zip(result.confusion, (before, after), strict=True):
        expected = ConfusionMatrix(CLASSES)
        expected.update(torch.stack(predictions), torch.stack(labels))
        assert torch.equal(matrix, expected.matrix)
    assert result.labeled == images
    assert (result.gain is None) == (images == 1)
    for image, old, new in zip(result.images, before, after, strict=True):
        assert image.changed == pytest.approx(float((old != new).double().mean()))
    # Copies of one image: each resampled set is the same.
    same = compare(["a", "b", "c"], lambda i: (labels[0], before[0], after[0]), CLASSES)
    old, new = (_miou(matrix) for matrix in same.confusion)
    assert same.gain is not None
    assert same.gain.low == pytest.approx(new - old, abs=1e-6)
    assert same.gain.high == pytest.approx(new - old, abs=1e-6)


def _miou(matrix: Tensor) -> float:
    confusion = ConfusionMatrix(CLASSES)
    confusion.matrix += matrix
    return 100 * float(confusion.iou.double().nanmean())


def test_a_gain_in_every_image_is_clear_and_one_that_some_lose_is_not() -> None:
    truth = torch.tensor([[0, 0, 1, 1]]).repeat(4, 1)
    wrong = 1 - truth
    clear = compare(list("abcd"), lambda i: (truth, wrong, truth), 2)
    assert clear.gain is not None and clear.gain.clear and clear.gain.low > 0  # noqa: PT018
    mixed = compare(list("abcd"), lambda i: (truth, *((wrong, truth) if i % 2 else (truth, wrong))), 2)
    assert mixed.gain is not None
    assert not mixed.gain.clear


def test_images_without_labels_count_for_the_change_alone() -> None:
    labels, before, after = maps(0, 3)
    result = compare(list("abc"), lambda i: (None if i else labels[0], before[i], after[i]), CLASSES)
    assert result.labeled == 1
    assert [image.after is None for image in result.images] == [False, True, True]
    unlabeled = compare(list("abc"), lambda i: (None, before[i], after[i]), CLASSES)
    assert not unlabeled.confusion.any()
    assert unlabeled.gain is None
    ignored = torch.full((6, 8), 255)
    assert compare(["a"], lambda i: (ignored, before[i], after[i]), CLASSES).images[0].after is None


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), min_size=1, max_size=40), st.integers(1, 3))
def test_chosen_images_contain_the_best_and_the_worst(ious: list[float | None], each: int) -> None:
    images = [ImageResult(str(i), iou, iou, (i * 7 % 11) / 11) for i, iou in enumerate(ious)]
    chosen = chosen_images(images, each)
    known = [iou for iou in ious if iou is not None]
    values = [ious[i] if known else images[i].changed for i in chosen]
    everything = known or [image.changed for image in images]
    assert values == sorted(values, key=lambda v: -(v if v is not None else math.nan))
    assert len(chosen) == min(len(everything), 3 * each)
    assert max(everything) == values[0]
    assert min(everything) == values[-1]


@given(st.integers(0, 2**16))
def test_the_most_frequent_confusions_come_first(seed: int) -> None:
    matrix = torch.randint(5, (CLASSES, CLASSES), generator=torch.Generator().manual_seed(seed))
    found = list(confusions(matrix, "abcd", most=CLASSES**2))
    shares = matrix.double() / matrix.sum().clamp_min(1)
    assert len(found) == int((shares.masked_fill(torch.eye(CLASSES, dtype=torch.bool), 0) > 0).sum())
    assert [part for *_, part in found] == sorted((part for *_, part in found), reverse=True)
    assert all(k != j and abs(float(shares[k, j]) - part) < 1e-5 for k, j, part in found)
