"""Text for people at a terminal, as wide as the terminal is."""

import os
import unicodedata
from typing import TextIO

USUAL_COLUMNS = 80
"""Width if it is unknown."""

MARGIN = 2
"""Columns that stay empty behind a progress bar: a terminal writes ^C there."""


def columns_of(stream: TextIO) -> int:
    """Returns the width of the terminal that a stream writes to; COLUMNS overrides it."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):  # no terminal, or a stream without a file
        return USUAL_COLUMNS


def columns_taken(text: str) -> int:
    """Returns the width of a text in a terminal, where Chinese characters take two columns, accents none.

    Example:
        >>> columns_taken("car"), columns_taken("汽车")  # noqa: RUF002
        (3, 4)
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def fit(text: str, stream: TextIO) -> str:
    """Wraps a text if its stream is a terminal; files and other programs receive it unchanged."""
    return wrap(text, columns_of(stream)) if stream.isatty() else text


def wrap(text: str, columns: int) -> str:
    r"""Breaks long lines between words; commands to be copied and rows of tables stay whole.

    Commands are indented, and rows have more than one space between words.

    Example:
        >>> print(wrap("the last stage is damaged\n  cpsl adapt --config my.toml", 20))
        the last stage is
          damaged
          cpsl adapt --config my.toml
    """
    return "\n".join(
        line if _stays(line) or columns_taken(line) <= columns else _fill(line, columns)
        for line in text.split("\n")
    )


def _stays(line: str) -> bool:
    return line.startswith(" ") or "  " in line


def _fill(line: str, columns: int) -> str:
    """Breaks a line between words; `textwrap` counts characters, not the columns that they take."""
    first, *words = line.split(" ")
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if columns_taken(longer) <= columns:
            lines[-1] = longer
        else:
            lines.append(f"  {word}")
    return "\n".join(lines)
