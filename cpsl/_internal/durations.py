"""Durations as people say them."""


def describe_duration(seconds: float) -> str:
    """Returns a duration in its two largest units, rounded.

    Example:
        >>> [describe_duration(seconds) for seconds in (0.4, 59.4, 300, 7500, 441_000)]
        ['0 s', '59 s', '5 min', '2 h 5 min', '5 days 2 h']
    """
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return _two(*divmod(minutes, 60), "h", "min")
    days, hours = divmod(round(seconds / 3600), 24)
    return _two(days, hours, "day" if days == 1 else "days", "h")


def _two(larger: int, smaller: int, unit: str, smaller_unit: str) -> str:
    return f"{larger} {unit} {smaller} {smaller_unit}" if smaller else f"{larger} {unit}"
