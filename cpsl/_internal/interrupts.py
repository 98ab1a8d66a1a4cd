"""Ctrl-C while the command `cpsl` is imported, which takes seconds. `cpsl` imports this module first."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

INTERRUPTED_EXIT_CODE = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as in a shell."""

STOPPED_EXIT_CODE = 75
"""Exit code of a run stopped by SIGTERM; "temporary failure" in sysexits.h: run the same command again."""

STOPPED_EXIT_CODES = (STOPPED_EXIT_CODE, INTERRUPTED_EXIT_CODE)
"""Exit codes of a run stopped by SIGTERM, and by Ctrl-C."""


def is_command(words: Sequence[str]) -> bool:
    """Returns whether the words of a process start the command; a library must not change its process.

    Example:
        >>> is_command(["python", "-m", "cpsl", "demo"]), is_command(["python", "train.py", "cpsl"])
        (True, False)
    """
    rest = list(words[1:])
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-m", "-c"):
            return option == "-m" and rest[:1] == ["cpsl"]
        if option in ("-X", "-W"):  # options of Python with a value
            del rest[:1]
    return bool(rest) and Path(rest[0]).stem == "cpsl"


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Exits without a traceback: many libraries turn a KeyboardInterrupt during their import into errors."""
    os.write(2, b"\nInterrupted while starting; nothing was changed.\n")
    os._exit(INTERRUPTED_EXIT_CODE)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt, as Python does by default, instead of `exit_at_once`."""
    before = signal.getsignal(signal.SIGINT)
    if before is not exit_at_once:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the results are complete, the interpreter ends


if is_command(sys.orig_argv):
    signal.signal(signal.SIGINT, exit_at_once)
