"""Two networks of a run on the same images: confusion matrices, and the difference that images make."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl import class_counts
from cpsl.metrics import ConfusionMatrix

RESAMPLES = 1000
"""Resampled sets of images for an interval."""

Labels = tuple[Tensor | None, Tensor, Tensor]
"""Label of an image or None, prediction before and prediction after, each (H, W) class indices."""


class ImageResult(NamedTuple):
    """An image: its mean IoU in percent, None without labels, and the share of pixels that changed."""

    name: str
    before: float | None
    after: float | None
    changed: float


class Interval(NamedTuple):
    """Bounds of a difference in percent points."""

    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether both bounds have the same sign."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """The predictions of two networks.

    Attributes:
        images: One result per image, in the order of the data set.
        confusion: (2, K, K) pixels by label and prediction, before and after; zeros without labels.
        gain: Of the mean IoU, from resampled images; None if there are no labels, or only one labeled image.
        class_gains: Of the IoU of each class, None where there is none.
    """

    images: list[ImageResult]
    confusion: Tensor
    gain: Interval | None
    class_gains: list[Interval | None]

    @property
    def labeled(self) -> int:
        """Number of images with labels."""
        return sum(image.after is not None for image in self.images)


def compare(names: Sequence[str], read: Callable[[int], Labels], num_classes: int) -> Comparison:
    """Compares the predictions of all images.

    Args:
        names: Names of the images.
        read: Returns label and predictions of an image, given its index.
        num_classes: Number of classes K.
    """
    results, parts = [], []
    confusion = torch.zeros(2, num_classes, num_classes, dtype=torch.int64)
    for index, name in enumerate(names):
        label, *predictions = read(index)
        changed = float((predictions[0] != predictions[1]).double().mean())
        before = after = None
        if label is not None:
            of_image = torch.stack([_confusion(p, label, num_classes) for p in predictions])
            confusion += of_image
            parts.append(_parts(of_image))
            before, after = map(_mean_iou_of_labeled, of_image)
        results.append(ImageResult(name, before, after, changed))
    gain, class_gains = _intervals(parts, num_classes)
    return Comparison(results, confusion, gain, class_gains)


def chosen_images(images: Sequence[ImageResult], each: int = 2) -> dict[int, str]:
    """Chooses the best, median and worst images by IoU after adaptation; without labels by their change.

    Returns:
        Indices of the images in the order of the report, with the reason of each choice.

    Example:
        >>> images = [ImageResult(str(i), 9.0, 10.0 * i, 0.0) for i in range(9)]
        >>> chosen_images(images, each=1)[0]
        'worst, mean IoU 9.0 → 0.0'
        >>> list(chosen_images(images, each=1))
        [8, 4, 0]
    """
    known = [i for i, image in enumerate(images) if image.after is not None]
    if known:
        order = sorted(known, key=lambda i: -(images[i].after or 0))
        names = ("best", "median", "worst")
    else:
        order = sorted(range(len(images)), key=lambda i: -images[i].changed)
        names = ("largest change", "median change", "smallest change")
    count = len(order)
    middle = max(min((count - each) // 2, count - each), 0)
    if count <= 3 * each:
        return {i: _value(images[i]).removeprefix(", ") for i in order}
    groups = (order[:each], order[middle : middle + each], order[-each:])
    return {i: name + _value(images[i]) for name, group in zip(names, groups, strict=True) for i in group}


def _value(image: ImageResult) -> str:
    if image.before is None or image.after is None:
        return f", {100 * image.changed:.1f} % of the pixels"
    return f", mean IoU {image.before:.1f} → {image.after:.1f}"


def _confusion(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    confusion = ConfusionMatrix(num_classes)
    confusion.update(prediction, label)
    return confusion.matrix


def _parts(matrices: Tensor) -> Tensor:
    """Returns intersection and union of each class (..., 2, K), given confusion matrices (..., K, K)."""
    intersection = matrices.diagonal(dim1=-2, dim2=-1)
    return torch.stack([intersection, matrices.sum(-1) + matrices.sum(-2) - intersection], dim=-2)


def _mean_iou_of_labeled(matrix: Tensor) -> float | None:
    """Returns the mean IoU in percent over the classes of the label; None if no pixel is labeled."""
    intersection, union = _parts(matrix)
    present = matrix.sum(1) > 0
    if not present.any():
        return None
    return 100 * float((intersection[present] / union[present]).mean())


def _intervals(parts: Sequence[Tensor], num_classes: int) -> tuple[Interval | None, list[Interval | None]]:
    """Computes bootstrap intervals of 95 % from intersections and unions (2, 2, K) of each image."""
    if len(parts) < 2:
        return None, [None] * num_classes
    stacked = torch.stack(list(parts)).double()
    generator = torch.Generator().manual_seed(0)
    sampled = torch.randint(len(parts), (RESAMPLES, len(parts)), generator=generator)
    counts = torch.stack([class_counts(row, len(parts)) for row in sampled]).double()
    sums = torch.einsum("bn,nscK->bscK", counts, stacked)
    ious = 100 * sums[:, :, 0] / sums[:, :, 1]  # NaN without pixels
    gains = ious[:, 1] - ious[:, 0]
    # A class that only one stage predicts, and no label has, is in neither mean.
    return _interval(gains.nanmean(dim=1)), [_interval(gains[:, k]) for k in range(num_classes)]


def _interval(values: Tensor) -> Interval | None:
    values = values[values.isfinite()]
    if len(values) == 0:
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Interval(low, high)


def confusions(matrix: Tensor, classes: Sequence[str], most: int = 8) -> Iterable[tuple[int, int, float]]:
    """Returns the most frequent confusions: class, predicted class, and share of all labeled pixels.

    Example:
        >>> matrix = torch.tensor([[80, 20, 0], [30, 70, 0], [0, 0, 0]])
        >>> confusions(matrix, ["road", "sky", "car"])
        [(1, 0, 0.15), (0, 1, 0.1)]
    """
    shares = matrix.double() / matrix.sum().clamp_min(1)
    found = [
        (k, j, round(float(shares[k, j]), 6))
        for k in range(len(classes))
        for j in range(len(classes))
        if j != k and shares[k, j] > 0
    ]
    return sorted(found, key=lambda entry: -entry[2])[:most]


def normalized(matrix: Tensor) -> Tensor:
    """Divides each row of a confusion matrix by its sum; rows without pixels stay zero."""
    return matrix.double() / matrix.sum(dim=1, keepdim=True).clamp_min(1)
