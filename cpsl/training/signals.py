"""SIGTERM and SIGINT stop a run so that the same command resumes it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

STOPPED_EXIT_CODE = 75
"""Exit code of a stopped run; "temporary failure" in sysexits.h: run the same command again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context that records SIGTERM and SIGINT instead of exiting; true once one was received.

    A second signal, if it is SIGINT, exits at once, without a checkpoint.

    Example:
        >>> import os
        >>> with StopSignals() as stopped:
        ...     before = bool(stopped)
        ...     os.kill(os.getpid(), signal.SIGTERM)
        >>> before, bool(stopped)
        (False, True)
    """

    def __init__(self) -> None:
        self._received = False
        self._handlers = _handlers(self._record)

    def __bool__(self) -> bool:
        return self._received

    def __enter__(self) -> "StopSignals":
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(*error)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise SystemExit(STOPPED_EXIT_CODE)
        self._received = True


def exit_when_stopped() -> AbstractContextManager[None]:
    """Exits with code 75 on SIGTERM or SIGINT, outside of training loops; files are written atomically."""

    def exit_(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED_EXIT_CODE)

    return _handlers(exit_)


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    before = {number: signal.signal(number, handler) for number in _SIGNALS if in_main_thread}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
