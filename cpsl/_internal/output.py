"""The output of the command: a reader who leaves early, as `head` does, is no error."""

import errno
import io
import os
import sys
from typing import Any

_LEFT = (errno.EPIPE, errno.EIO)
"""Errors of a closed pipe, and of a closed terminal."""


class _Stream(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _LEFT:
                raise
            return memoryview(data).nbytes


def patient(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Returns a stream to the same file that discards what nobody reads any more.

    A command that trains or exports then goes on, a list ends as usual. Characters that the encoding of the
    stream lacks are written as escapes.
    """
    stream.flush()
    buffer = io.BufferedWriter(_Stream(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        buffer, stream.encoding, "backslashreplace", line_buffering=stream.isatty() or stream.line_buffering
    )


def be_patient() -> None:
    """Makes the standard output and error of this process patient, see `patient`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if os.name == "posix":
            setattr(sys, name, patient(stream))
        else:  # a console of Windows is no file
            stream.reconfigure(errors="backslashreplace")
