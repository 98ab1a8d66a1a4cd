"""Which results can be compared: of enough iterations and images, and of the same classes."""

from collections.abc import Mapping, Sequence
from typing import Any

SHORTEST = 100
"""Iterations of a stage below which its results mean nothing."""

FEW_IMAGES = 10
"""With fewer images nothing can be said about a data set."""


def counted_unequally(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[float | None]]:
    """Returns the classes that only some results count, and the mIoU of each result without them.

    Such a class has no pixel in the labels: it counts 0 where it is predicted, else not at all.

    Example:
        >>> before = {"miou": 50.0, "iou": {"road": 50.0, "sky": None}}
        >>> after = {"miou": 26.0, "iou": {"road": 52.0, "sky": 0.0}}
        >>> counted_unequally([before, after])
        (['sky'], [50.0, 52.0])
    """
    ious = [values["iou"] for values in results if values["miou"] is not None]
    counted = dict.fromkeys(name for iou in ious for name, value in iou.items() if value is not None)
    unequal = [name for name in counted if any(iou[name] is None for iou in ious)]
    if not unequal:
        return [], [values["miou"] for values in results]
    equal = counted.keys() - unequal
    means = [sum(values["iou"][name] or 0.0 for name in equal) / max(len(equal), 1) for values in results]
    return unequal, [
        None if values["miou"] is None or not equal else mean
        for values, mean in zip(results, means, strict=True)
    ]
