"""Numbers, durations, sizes and lists as the report writes them."""

import math
from collections.abc import Iterable, Sequence

from cpsl._internal.durations import describe_duration

DASH = "–"
"""Stands for a number that does not exist."""


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """Writes a number with a true minus sign; a dash if there is none.

    Example:
        >>> number(40.93), number(-0.04), number(4.76, signed=True), number(None), number(float("nan"))
        ('40.9', '0.0', '+4.8', '–', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def difference(before: float | None, after: float | None, digits: int = 1) -> float | None:
    """Subtracts two numbers as they are written, so that a reader who subtracts them gets the same.

    Example:
        >>> difference(36.76, 42.84), difference(36.76, 42.84, digits=2), difference(None, 1.0)
        (6.0, 6.08, None)
    """
    if before is None or after is None:
        return None
    return round(round(after, digits) - round(before, digits), digits)


def share(value: float | None) -> str:
    """Writes a share as a percentage, with more digits if it is small.

    Example:
        >>> share(0.5), share(0.043), share(0.00123), share(1e-6), share(0), share(None)
        ('50 %', '4.3 %', '0.12 %', '< 0.01 %', '0 %', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    percent = 100 * value
    if 0 < percent < 0.01:
        return "< 0.01 %"
    digits = 0 if percent == 0 or percent >= 9.95 else 1 if percent >= 0.995 else 2
    return f"{percent:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Writes a time as people say it.

    Example:
        >>> [duration(s) for s in (42, 7500, 450_000, None)]
        ['42 s', '2 h 5 min', '5 days 5 h', '–']
    """
    return DASH if seconds is None or not math.isfinite(seconds) else describe_duration(seconds)


def size(count: float | None) -> str:
    """Writes a number of bytes.

    Example:
        >>> size(1_234_000_000), size(52_000_000), size(0)
        ('1.2 GB', '52 MB', '–')
    """
    if not count or not math.isfinite(count):
        return DASH
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def plural(count: int, noun: str) -> str:
    """Writes a count with its noun.

    Example:
        >>> plural(1, "image"), plural(1200, "image"), plural(2, "class")
        ('1 image', '1,200 images', '2 classes')
    """
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def listing(items: Iterable[str]) -> str:
    """Joins items to a list in words.

    Example:
        >>> listing(["road"]), listing(["road", "sky"]), listing(["road", "sky", "car"])
        ('road', 'road and sky', 'road, sky and car')
    """
    *first, last = list(items) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Returns `about` round numbers between two numbers.

    Example:
        >>> ticks(0.0, 1.0), ticks(36.2, 40.9)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [37.0, 38.0, 39.0, 40.0])
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low, high]


def sizes(found: Sequence[tuple[int, int]]) -> str:
    """Describes sizes (height, width) of images, width first.

    Example:
        >>> sizes([(192, 384)] * 3), sizes([(192, 384), (360, 480)]), sizes([])
        ('384 × 192 pixels', '384 × 192 to 480 × 360 pixels', '')
    """
    ordered = sorted(set(found), key=lambda s: (s[0] * s[1], s))
    if not ordered:
        return ""
    ends = [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered
    return " to ".join(f"{width} × {height}" for height, width in ends) + " pixels"
