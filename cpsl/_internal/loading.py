"""A sign of life while the command `cpsl` loads PyTorch, which takes seconds; erased before other output."""

import os
import sys

from cpsl._internal.interrupts import is_command

TEXT = "Loading PyTorch ..."

# In a terminal alone; of several processes, the first speaks.
SHOWN = is_command(sys.orig_argv) and os.environ.get("RANK", "0") == "0" and os.isatty(2)


def erase() -> None:
    """Erases the text, if it was shown."""
    if SHOWN:
        os.write(2, f"\r{' ' * len(TEXT)}\r".encode())


if SHOWN:
    os.write(2, TEXT.encode())
