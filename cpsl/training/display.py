"""Progress of a stage: a bar in a terminal, and lines in the log."""

import logging
import sys
from contextlib import ExitStack
from typing import NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cpsl._internal.durations import describe_duration
from cpsl._internal.terminal import MARGIN, columns_of
from cpsl.training.log import logger
from cpsl.training.process import Process

TENTHS, SHORTEST, LONGEST = 10, 5.0, 60.0
"""The log has a line for each tenth of a stage, unless the last is SHORTEST seconds old or less, and one when
LONGEST seconds have passed; of longer stages when a twentieth of the time so far has passed."""

NARROWEST_BAR = 5
"""Characters of the bar itself, below which less is written beside it."""


class Position(NamedTuple):
    """Position of a stage in its run: its number from 1, number of stages, iterations of later stages.

    Later iterations count as many of this stage as take the same time.
    """

    number: int = 1
    stages: int = 1
    later_iterations: int = 0


class State(NamedTuple):
    """The state of a stage.

    Attributes:
        stage: Name.
        position: Its position in the run.
        done: Completed iterations.
        total: All iterations.
        step_seconds: Seconds per iteration, None until it is known.
        loss: Mean of the last iterations, None until it is known.
        evaluated: Result of the last evaluation, "mIoU 41.4", or of an earlier stage, "mIoU before: 36.4".
    """

    stage: str
    position: Position
    done: int
    total: int
    step_seconds: float | None = None
    loss: float | None = None
    evaluated: str = ""

    @property
    def title(self) -> str:
        """Name and number of the stage."""
        return f"stage {self.position.number} of {self.position.stages}: {self.stage}"

    @property
    def left(self) -> str:
        """Time left of the stage; "" until the speed is known."""
        return self._time_of(self.total - self.done)

    @property
    def left_of_run(self) -> str:
        """Time left of this stage and all later ones, about; "" in the last stage."""
        later = self.position.later_iterations
        return self._time_of(self.total - self.done + later) if later else ""

    def _time_of(self, iterations: int) -> str:
        return "" if self.step_seconds is None else describe_duration(self.step_seconds * iterations)


def describe_line(state: State) -> str:
    """Returns the state of a stage as a line of the log.

    Example:
        >>> describe_line(State("source_only", Position(1, 2, 300), 225, 500, 0.5, 0.835, "mIoU 23.1"))
        'stage 1 of 2: source_only, 225 of 500, loss 0.835, mIoU 23.1, stage 2 min, run about 5 min left'
    """
    parts = [state.title, f"{state.done} of {state.total}", _loss(state), state.evaluated]
    return ", ".join(filter(None, [*parts, _left(state, "about ")]))


def describe_bar(state: State, columns: int) -> tuple[str, str]:
    """Returns what is written before a bar, and behind it and the number of iterations.

    Example:
        >>> state = State("source_only", Position(1, 2, 300), 225, 500, 0.5, 0.835, "mIoU 23.1")
        >>> describe_bar(state, 90)
        ('source_only 1/2', 'loss 0.835, mIoU 23.1, stage 2 min, run 5 min left')
        >>> describe_bar(state, 80)
        ('source_only 1/2', 'loss 0.835, mIoU 23.1, run 5 min left')
        >>> describe_bar(state, 60)
        ('source_only 1/2', 'loss 0.835, run 5 min left')
    """
    short = f"{state.stage} {state.position.number}/{state.position.stages}"
    count = f"{state.done}/{state.total}"
    run = f"run {state.left_of_run} left" if state.left_of_run else _left(state)
    fullest = [_loss(state), state.evaluated, _left(state)]
    choices = [
        (state.title, fullest),
        (short, fullest),
        (short, [_loss(state), state.evaluated, run]),
        (short, [_loss(state), run]),
        (short, []),
    ]
    for before, parts in choices:
        after = ", ".join(filter(None, parts))
        if len(f"{before} || {count}, {after}") + NARROWEST_BAR <= columns:
            break
    return before, after


def _loss(state: State) -> str:
    return "" if state.loss is None else f"loss {state.loss:.3f}"


def _left(state: State, about: str = "") -> str:
    if state.left_of_run:
        return f"stage {state.left}, run {about}{state.left_of_run} left"
    return f"{state.left} left" if state.left else ""


class Progress:
    """Shows the progress of a stage, on rank 0: as a bar in a terminal, and as lines in the log.

    Without a bar, the lines are on the terminal as well.

    Args:
        state: State at the start.
        process: This process.
        seconds: Seconds since the start of the stage.
    """

    def __init__(self, state: State, process: Process, seconds: float = 0.0) -> None:
        self.state = state
        self._is_main = process.is_main
        self._has_bar = process.is_main and sys.stderr.isatty()
        self._stack = ExitStack()
        self._bar: tqdm[None] | None = None
        self._logged_at, self._logged_tenth = seconds, TENTHS * state.done // max(state.total, 1)

    def __enter__(self) -> "Progress":
        if self._has_bar:
            self._stack.enter_context(logging_redirect_tqdm([logger]))
            columns = self._columns
            self._bar = tqdm(
                desc=describe_bar(self.state, columns)[0],
                total=self.state.total,
                initial=self.state.done,
                leave=False,
                ncols=columns,
                bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
            self._stack.callback(self._bar.close)
            self._describe(self._bar)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def advance(self, step_seconds: float | None, evaluated: str) -> None:
        """Shows that an iteration is complete."""
        self.state = self.state._replace(
            done=self.state.done + 1, step_seconds=step_seconds, evaluated=evaluated
        )
        if self._bar is not None:
            self._describe(self._bar)
            self._bar.update()

    def report(self, seconds: float, values: dict[str, float]) -> None:
        """Shows the means of the last iterations, given the seconds since the start of the stage."""
        self.state = self.state._replace(loss=values.get("loss"))
        tenth, waited = TENTHS * self.state.done // self.state.total, seconds - self._logged_at
        longest = max(LONGEST, 0.05 * seconds)
        if not self._is_main or waited < (longest if tenth == self._logged_tenth else SHORTEST):
            return
        self._logged_at, self._logged_tenth = seconds, tenth
        self._log(describe_line(self.state))

    @property
    def _columns(self) -> int:
        return max(columns_of(sys.stderr) - MARGIN, 1)

    def _describe(self, bar: "tqdm[None]") -> None:
        bar.ncols = self._columns  # the window may have another size now
        before, after = describe_bar(self.state, bar.ncols)
        bar.set_description_str(before, refresh=False)
        bar.set_postfix_str(after, refresh=False)

    def _log(self, text: str) -> None:
        """Writes to the log file; beside a bar not to the terminal."""
        if not logger.isEnabledFor(logging.INFO):
            return
        beside = self._has_bar and sys.stdout.isatty()
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)
        for handler in logger.handlers:
            if not beside or isinstance(handler, logging.FileHandler):
                handler.handle(record)
