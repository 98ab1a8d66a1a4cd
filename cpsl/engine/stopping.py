"""SIGTERM and SIGINT: a run is stopped so that the same command goes on with it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOPPED_EXIT_CODE = 75
"""With which a stopped run leaves; "temporary failure" in sysexits.h: run the same command again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM and SIGINT while a training loop runs, instead of dying of them; true once one came.

    A second SIGINT leaves at once, for people who do not want to wait for the checkpoint.

    Example:
        >>> import os
        >>> with StopSignals() as stopped:
        ...     before = bool(stopped)
        ...     os.kill(os.getpid(), signal.SIGTERM)
        >>> before, bool(stopped)
        (False, True)
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._came

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # others cannot listen
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._came and number == signal.SIGINT:
            raise SystemExit(STOPPED_EXIT_CODE)
        self._came = True


@contextmanager
def exit_when_stopped() -> Iterator[None]:
    """Makes SIGTERM and SIGINT leave with exit code 75 from wherever the program is.

    For work between training loops, which is written file by file, each as a whole.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED_EXIT_CODE)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
