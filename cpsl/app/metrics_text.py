"""Metrics of networks in the terminal: tables, scores, and what the labels leave out."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpsl.app.checking.words import MOSTLY
from cpsl.app.titles import SHORT_SCORES, title_of
from cpsl.app.words import listing, share
from cpsl.training.log import text_table


def metrics_table(metrics: dict[str, dict[str, Any]], classes: tuple[str, ...]) -> str:
    """Returns IoU by class and network, and mIoU as a table of text; without labels, the classes' shares.

    Example:
        >>> metrics = {"warmup": {"miou": 50.0, "iou": {"road": 50.0, "sky": None}}}
        >>> print(metrics_table(metrics, ("road", "sky")))
        IoU in %   Warm-up
        road          50.0
        sky              –
        mIoU          50.0
    """
    titles = [title_of(stage) for stage in metrics]
    if all(values["miou"] is None for values in metrics.values()):
        shares = zip(*(values["class_frequency"] for values in metrics.values()), strict=True)
        lines = [
            (name, *(_number(100 * share) for share in of)) for name, of in zip(classes, shares, strict=True)
        ]
        return text_table([("pixels in %", *titles), *lines])
    rows = [("IoU in %", *titles)]
    for name in classes:
        rows.append((name, *(_number(values["iou"].get(name)) for values in metrics.values())))
    rows.append(("mIoU", *(_number(values["miou"]) for values in metrics.values())))
    if any("miou_13" in values for values in metrics.values()):
        of_13 = (_number(values.get("miou_13")) for values in metrics.values())
        rows.append(("mIoU, 13 classes", *of_13))
    return text_table(rows)


def describe_scores(scores: dict[str, Any]) -> str:
    """Returns the label-free scores of a network in one line of text; higher (+) or lower (-) is better.

    Example:
        >>> describe_scores({"entropy": 0.25, "information": None, "flip_agreement": 0.875})
        'agreement 0.875 (+), entropy 0.250 (-)'
    """
    named = [(name.split(), scores.get(key)) for key, name in SHORT_SCORES.items()]
    return ", ".join(f"{name} {value:.3f} {sign}" for (name, sign), value in named if value is not None)


def describe_gaps(metrics: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Names what makes an IoU mean little: mostly ignored pixels, and predicted classes without a label.

    Such a class counts 0 in the mIoU, as is usual, though no prediction of it can be right.

    Args:
        metrics: Of one network; `label_pixels` are the pixels of each class in the labels, and ignored ones.
        classes: K names.

    Example:
        >>> metrics = {"miou": 30.0, "iou": {"road": 60.0, "sky": 0.0}, "label_pixels": [2, 0, 8]}
        >>> for gap in describe_gaps(metrics, ("road", "sky")):
        ...     print(gap)
        80 % of the label pixels are ignored: check `ids`
        not in the labels, but predicted, which counts 0 in the mIoU: sky. That of the others is 60.0
    """
    *labeled, ignored = metrics.get("label_pixels") or [0]
    found, pixels = list[str](), sum(labeled) + ignored
    if ignored > MOSTLY * pixels:
        found.append(f"{share(ignored / pixels)} of the label pixels are ignored: check `ids`")
    counted = {name: iou for name, iou in metrics["iou"].items() if iou is not None}
    absent = [name for name, count in zip(classes, labeled, strict=False) if not count and name in counted]
    if absent and (others := [iou for name, iou in counted.items() if name not in absent]):
        found.append(
            f"not in the labels, but predicted, which counts 0 in the mIoU: {listing(absent)}. "
            f"That of the others is {sum(others) / len(others):.1f}"
        )
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
