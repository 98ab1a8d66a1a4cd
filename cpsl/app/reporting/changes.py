"""Changes of the IoU of each class between the compared stages."""

from typing import NamedTuple

from cpsl.app.reporting.content import Report
from cpsl.app.words import difference

NOTABLE = 1.0
"""A class, or the mean of the classes, gained or lost if its IoU changed by at least this many points."""


class Change(NamedTuple):
    """The IoU of a class before and after, in percent."""

    class_index: int
    name: str
    before: float | None
    after: float | None
    clear: bool  # whether it is more than the choice of images explains

    @property
    def gain(self) -> float | None:
        """Difference in points, None if one of both is unknown."""
        return difference(self.before, self.after)


def class_changes(report: Report) -> list[Change]:
    """Returns the change of each class between the compared stages, the largest gain first."""
    before, after = (report.metrics[stage]["iou"] for stage in report.ends)
    intervals = report.comparison.class_gains if report.comparison else [None] * len(report.classes)
    changes = [
        Change(k, name, before.get(name), after.get(name), bool(interval and interval.clear))
        for k, (name, interval) in enumerate(zip(report.classes, intervals, strict=True))
    ]
    return sorted(changes, key=lambda change: (change.gain is None, -(change.gain or 0.0)))
