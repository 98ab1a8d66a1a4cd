"""The rows of `make bench` and how they are printed."""

from dataclasses import dataclass

from machine import Timing


@dataclass(frozen=True)
class Row:
    """A piece of work.

    Attributes:
        name: What it is.
        timing: How long it took.
        release: Milliseconds of the authors' release, "low-high" where it varied; empty where it has no such
            piece.
        reach: Milliseconds that this project set out to reach, or a text where the aim is no time.
        bound: Seconds below which the machine cannot come; None where bytes and operations are not the limit.
        reached: Whether the aim is reached; by default whether the median is below it.
    """

    name: str
    timing: Timing
    release: str
    reach: float | str
    bound: float | None
    reached: bool | None = None


HEAD = (
    f"{'milliseconds':44}{'median':>9}{'min':>9}{'max':>9}{'n':>4}{'release':>13}{'reach':>17}"
    f"{'bound':>9}"
)


def line(row: Row) -> str:
    """Returns a row as text."""
    timing = row.timing
    reach = row.reach if isinstance(row.reach, str) else f"{row.reach:.0f}"
    reached = row.reached
    if reached is None:
        reached = isinstance(row.reach, str) or 1e3 * timing.median <= row.reach
    bound = "" if row.bound is None else f"{1e3 * row.bound:.1f}"
    return (
        f"{row.name:44}{1e3 * timing.median:9.1f}{1e3 * timing.low:9.1f}{1e3 * timing.high:9.1f}"
        f"{timing.repeats:4}{row.release:>13}{reach:>17}{bound:>9}{'' if reached else '  missed'}"
    )
