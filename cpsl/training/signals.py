"""SIGTERM, SIGINT and SIGHUP stop a run so that the same command resumes it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any

from cpsl._internal.interrupts import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopSignals:
    """Context that records SIGTERM, SIGINT and SIGHUP instead of exiting; true once one was received.

    A second signal, if it is SIGINT, exits at once, without a checkpoint.

    Attributes:
        interrupted: Whether one of the signals was SIGINT.

    Example:
        >>> import os
        >>> with StopSignals() as stopped:
        ...     before = bool(stopped)
        ...     os.kill(os.getpid(), signal.SIGTERM)
        >>> before, bool(stopped)
        (False, True)
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._received = False
        self._process = os.getpid()
        self._handlers = _handlers(self._record)

    def __bool__(self) -> bool:
        return self._received

    def __enter__(self) -> "StopSignals":
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(*error)

    def _record(self, number: int, frame: FrameType | None) -> None:
        again, self._received = self._received, True
        if number != signal.SIGINT:
            return
        self.interrupted = True
        if os.getpid() != self._process:
            return  # a process that loads images: it ends with its parent
        if again:
            raise SystemExit(INTERRUPTED_EXIT_CODE)
        if os.environ.get("RANK", "0") == "0":  # a handler must not use buffered streams
            with suppress(OSError):  # nobody may read it any more
                os.write(2, b"\nStopping after this iteration; Ctrl-C again stops without a checkpoint.\n")


def exit_when_stopped() -> AbstractContextManager[None]:
    """Exits on SIGTERM and SIGHUP with code 75, on SIGINT with 130, outside of loops; files are complete."""

    def exit_(number: int, frame: FrameType | None) -> None:
        raise SystemExit(INTERRUPTED_EXIT_CODE if number == signal.SIGINT else STOPPED_EXIT_CODE)

    return _handlers(exit_)


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    heard = [number for number in _SIGNALS if in_main_thread and not _is_ignored(number)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _is_ignored(number: int) -> bool:
    """Returns whether SIGHUP is ignored: `nohup` lets a run outlive its terminal."""
    return number not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(number) == signal.SIG_IGN
