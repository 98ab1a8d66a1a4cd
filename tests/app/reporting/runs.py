"""Reports of made-up runs: the labels, two predictions, and what became of them."""

import torch
from torch import Tensor

from app.sample_report import build_report
from cpsl.app.reporting.content import Report

TRUTH = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]]).repeat(4, 1)
CLASSES = ("road", "sky", "car")


def report(
    before: Tensor, after: Tensor, labeled: bool = True, images: int = 12, **changes: object
) -> Report:
    labels = [TRUTH if labeled else None] * images
    predictions = {"source_only": [before] * images, "online": [after] * images}
    return build_report(CLASSES, labels, predictions, **changes)


def failed(made: Report, diverged: bool = False) -> Report:
    """Returns the report of a run whose last stage collapsed, or diverged."""
    last = made.metrics[made.ends[1]]
    last["collapses"] = [] if diverged else ["sky is lost"]
    last["scores"]["non_finite"] = 3 if diverged else 0
    return made


BAD, GOOD = TRUTH.roll(3, dims=1), TRUTH.roll(1, dims=1)
TALL = TRUTH.repeat(64, 1)
NEARLY = torch.cat([BAD[:1], TALL[1:]])  # less than a point below the truth


def slight(before: Tensor, after: Tensor, **changes: object) -> Report:
    return build_report(
        CLASSES, [TALL] * 12, {"source_only": [before] * 12, "online": [after] * 12}, **changes
    )
