"""Text for people at a terminal, as wide as the terminal is."""

import os
import textwrap
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


def fit(text: str, stream: TextIO) -> str:
    """Wraps a text if its stream is a terminal; files and other programs receive it unchanged."""
    return wrap(text, columns_of(stream)) if stream.isatty() else text


def wrap(text: str, columns: int) -> str:
    r"""Breaks long lines between words; indented lines are commands to be copied, and stay whole.

    Example:
        >>> print(wrap("the last stage is damaged\n  cpsl adapt --config my.toml", 20))
        the last stage is
          damaged
          cpsl adapt --config my.toml
    """
    wrapper = textwrap.TextWrapper(
        columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(
        line if len(line) <= columns or line.startswith(" ") else wrapper.fill(line)
        for line in text.split("\n")
    )
