"""Geometry of the charts in a report: curves with axes, images as dots, class shares on a log scale."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cpsl.app.evaluate import evenly_spaced
from cpsl.app.reporting.compare import ImageResult
from cpsl.app.reporting.content import Report
from cpsl.app.titles import SCORES, title_of
from cpsl.app.words import number, share, ticks

CURVES = {
    "miou": "Mean IoU on the evaluation images, percent",
    "loss": "Loss, the sum of its parts",
    "loss_source": "Loss on the source's labels",
    "loss_target": "Loss on pseudo labels of the target",
    "loss_masked": "Loss on masked target images",
    "loss_contrast": "Contrast of features and prototypes",
    "loss_self_label": "Clustering loss",
    "loss_consistency": "Loss of consistency between views",
    "loss_distillation": "Distance to the teacher's predictions",
    "loss_adversarial": "Adversarial loss of the network",
    "loss_discriminator": "Loss of the discriminator",
    "confidence": "Mean confidence of the pseudo labels",
    "confident": "Share of confident pseudo labels",
    "agreement": "Share of the target's pixels that the student labels like the teacher",
    "marginal_error": "How far the cluster sizes are from the class distribution (0 is exact)",
}
"""Titles of curves by their name in `scalars.jsonl`; `SCORES` has those of the scores."""

WIDTH, HEIGHT = 280, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 270, 10, 122  # of the area of a curve
SIDE, MARGIN = 300, 38  # of the dots of images
SOURCE_SIGNS = ("source", "source-2", "source-3")
DECADES = 4
"""The axis of class shares begins at 0.01 %."""
MARKS = 50
"""Most points of a curve, evenly spaced, whose value appears under the pointer."""


class Tick(NamedTuple):
    """A mark of an axis: position in the drawing, and its text."""

    at: float
    text: str


class Mark(NamedTuple):
    """A point of a curve whose value appears under the pointer: position in the drawing, and text."""

    x: float
    y: float
    text: str


class Curve(NamedTuple):
    """A curve in a drawing of `WIDTH` x `HEIGHT`: raw and smoothed points, ticks, first and last value."""

    title: str
    name: str
    raw: str
    smooth: str
    marks: list[Mark]  # at most `MARKS`
    few: bool  # whether the marks are drawn: there are few points
    x: list[Tick]
    y: list[Tick]
    first: str
    last: str


class Dot(NamedTuple):
    """An image in the drawing of all images, and its text."""

    x: float
    y: float
    text: str
    kind: str  # "up", "down" or "same"


class Scatter(NamedTuple):
    """Images by their IoU before (x) and after (y), in a square of `SIDE`."""

    dots: list[Dot]
    x: list[Tick]
    y: list[Tick]
    better: int
    worse: int


class Series(NamedTuple):
    """The shares (K) of the classes in labels or predictions, and the sign that marks them."""

    name: str
    sign: str
    shares: list[float]

    def text(self, k: int) -> str:
        """Describes the share of class k."""
        return f"{self.name}: {share(self.shares[k])}"


def curves(report: Report) -> dict[str, list[Curve]]:
    """Returns the curves of each stage by its title, without those that have no points."""
    drawn = {
        title_of(stage): [curve(name, points) for name, points in of_stage.items() if points]
        for stage, of_stage in report.curves.items()
    }
    for stage, of_stage in drawn.items():
        if sum(curve.name.startswith("loss_") for curve in of_stage) == 1:  # the sum of one part is the part
            drawn[stage] = [curve for curve in of_stage if curve.name != "loss"]
    order = list(CURVES)
    for of_stage in drawn.values():
        of_stage.sort(key=lambda c: order.index(c.name) if c.name in order else len(order))
    return {title: of_stage for title, of_stage in drawn.items() if of_stage}


def curve(name: str, points: Sequence[tuple[int, float]]) -> Curve:
    """Draws a curve; a median of five smooths the noise of single batches."""
    values = np.array([value for _, value in points])
    few = len(points) <= 12
    # At the ends the median is that of the three or four values that there are.
    smooth = (
        values if few else np.array([np.median(values[max(i - 2, 0) : i + 3]) for i in range(len(values))])
    )
    low, high = float(values.min()), float(values.max())
    least = 0.02 * max(abs(low), abs(high)) or 1.0  # a nearly flat curve lies in the middle, and looks flat
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    last = max(points[-1][0], 1)
    x = [LEFT + (RIGHT - LEFT) * iteration / last for iteration, _ in points]

    def height(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def line(of: np.ndarray) -> str:
        return " ".join(f"{a:.1f},{height(float(b)):.1f}" for a, b in zip(x, of, strict=True))

    def mark(i: int) -> Mark:
        text = f"step {points[i][0]:,}: {smooth[i]:.3g}"
        return Mark(round(x[i], 1), round(height(float(smooth[i])), 1), text)

    return Curve(
        CURVES.get(name) or SCORES.get(name) or name.replace("loss_", "loss: ").replace("_", " "),
        name,
        "" if few else line(values),
        line(smooth) if len(points) > 1 else "",
        [mark(i) for i in evenly_spaced(len(points), MARKS)],
        few,
        [Tick(round(LEFT + (RIGHT - LEFT) * v / last, 1), _short(v)) for v in ticks(0, last, about=3)],
        [Tick(round(height(v), 1), f"{v:.3g}") for v in ticks(low, high)],
        f"{smooth[0]:.3g}",
        f"{smooth[-1]:.3g}",
    )


def scatter(images: Sequence[ImageResult]) -> Scatter | None:
    """Draws each labeled image by its IoU before and after; None if there are fewer than two."""
    known = [(i, i.before, i.after) for i in images if i.before is not None and i.after is not None]
    if len(known) < 2:
        return None
    values = [value for _, before, after in known for value in (before, after)]
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(max(values), 1) / 10)

    def at(value: float) -> float:
        return round(MARGIN + (SIDE - 2 * MARGIN + 20) * (value - low) / max(high - low, 1), 1)

    dots = [
        Dot(
            at(before),
            SIDE - at(after),
            f"{image.name}: {number(before)} → {number(after)}",
            "up" if after > before else "down" if after < before else "same",
        )
        for image, before, after in known
    ]
    marks = ticks(low, high)
    return Scatter(
        dots,
        [Tick(at(v), f"{v:g}") for v in marks],
        [Tick(SIDE - at(v), f"{v:g}") for v in marks],
        sum(dot.kind == "up" for dot in dots),
        sum(dot.kind == "down" for dot in dots),
    )


def class_shares(report: Report) -> list[Series]:
    """Returns the class shares that are compared: source labels, target labels, predictions of both ends."""
    known = [
        Series(f"labels of {'the ' * (name == 'source')}{name}", SOURCE_SIGNS[i % len(SOURCE_SIGNS)], shares)
        for i, (name, shares) in enumerate(report.source_labels.items())
        if any(shares)
    ]
    comparison, ends = report.comparison, list(dict.fromkeys(report.ends))
    predicted = [report.metrics[stage].get("class_frequency") or [] for stage in ends]
    if comparison is not None and comparison.labeled:  # labels and predictions of the same pixels
        known.append(Series("evaluation labels", "target", _shares(comparison.confusion[0].sum(dim=1))))
        predicted = [_shares(matrix.sum(dim=0)) for matrix in comparison.confusion[-len(ends) :]]
    for stage, sign, shares in zip(ends, ("before", "after"), predicted, strict=False):
        if sum(shares) > 0:
            known.append(Series(f"predictions of “{title_of(stage)}”", sign, shares))
    return known


def share_changes(shares: Sequence[Series]) -> list[float]:
    """Returns how the share of each class in the predictions changed, in percentage points; [] if unknown.

    Example:
        >>> share_changes([Series("one", "before", [0.5, 0.5]), Series("other", "after", [0.25, 0.75])])
        [-25.0, 25.0]
    """
    predicted = {series.sign: series.shares for series in shares}
    ends = zip(predicted.get("before", []), predicted.get("after", []), strict=False)
    return [100 * (after - before) for before, after in ends]


def _shares(pixels: Tensor) -> list[float]:
    shares: list[float] = (pixels.double() / pixels.sum().clamp_min(1)).tolist()
    return shares


def position(value: float) -> float:
    """Returns the position of a class share on the logarithmic axis, 0...100.

    Example:
        >>> position(1.0), position(0.01), position(1e-6), position(0.0)
        (100.0, 50.0, 0.0, 0.0)
    """
    if value <= 10.0**-DECADES:
        return 0.0
    return round(100 * (math.log10(min(value, 1.0)) + DECADES) / DECADES, 1)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
