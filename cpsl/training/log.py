"""The log of a run: messages, scalars, pictures, a progress bar."""

import io
import json
import logging
import math
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cpsl._internal.durations import describe_duration
from cpsl._internal.terminal import MARGIN, columns_of, columns_taken, fit
from cpsl.training.process import Process

T = TypeVar("T")
logger = logging.getLogger("cpsl")
"""Logger of all messages of a run; `start_logging` gives it handlers."""


class _TerminalFormatter(logging.Formatter):
    """Formats messages as wide as the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return fit(super().format(record), sys.stdout)


class _Terminal(logging.StreamHandler[TextIO]):
    """Shows messages while that is possible: a full disk behind the output must not stop a training."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is that of logging
        self.setLevel(logging.CRITICAL + 1)  # log.txt has all messages


def start_logging(folder: Path, process: Process) -> None:
    """Sends messages to the terminal and to `log.txt` in a folder; ranks other than 0 log errors alone."""
    stop_logging()
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if process.is_main else logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal can show every name
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = _Terminal(sys.stdout)
    terminal.setFormatter(_TerminalFormatter("%(message)s"))
    logger.addHandler(terminal)
    if process.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)


def stop_logging() -> None:
    """Closes `log.txt`, without which Windows does not remove its folder; the terminal still has messages."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()


def log_to_file(message: str) -> None:
    """Writes an error to `log.txt` alone, if there is one: the terminal shows it when the command ends."""
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def progress(items: Iterable[T], title: str, process: Process, **options: int) -> Generator[T, None, None]:
    """Yields items and shows a progress bar, if this is rank 0 in a terminal; options are those of `tqdm`."""
    if not (process.is_main and sys.stderr.isatty()):
        yield from items
        return
    known = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
    form = known if options.get("total") else "{desc}: {n_fmt}"
    columns = columns_of(sys.stderr) - MARGIN
    begun = time.perf_counter()
    with (
        logging_redirect_tqdm([logger]),
        tqdm(desc=title, leave=False, ncols=columns, bar_format=form, **options) as bar,
    ):
        for done, item in enumerate(items, 1):
            yield item
            bar.ncols = columns_of(sys.stderr) - MARGIN  # the window may have another size now
            if bar.total:
                left = (time.perf_counter() - begun) / done * (bar.total - done)
                bar.set_postfix_str(f"{describe_duration(left)} left", refresh=False)
            bar.update()


def text_table(rows: Sequence[Sequence[str]], gap: int = 3) -> str:
    """Formats rows of cells as lines of text, the first column aligned left, the others right.

    `gap` is the number of spaces between columns.

    Example:
        >>> print(text_table([("", "mIoU"), ("warm-up", "41.4")]))
                  mIoU
        warm-up   41.4
    """
    width, *widths = [max(map(columns_taken, column)) for column in zip(*rows, strict=True)]
    aligned = (
        [first + " " * (width - columns_taken(first)), *map(str.rjust, others, widths)]
        for first, *others in rows
    )
    return "\n".join((" " * gap).join(cells).rstrip() for cells in aligned)


class ScalarLog:
    """Curves and pictures of one stage: TensorBoard events and `scalars.jsonl`, written by rank 0.

    Points after iteration `start`, which an interrupted run wrote, are removed. TensorBoard shows curves and
    pictures in a group, and curves by their titles; the file has their names.
    """

    def __init__(
        self,
        folder: Path,
        process: Process,
        start: int = 0,
        group: str = "training",
        titles: Mapping[str, str] | None = None,
    ) -> None:
        self._group, self._titles = group, titles or {}
        self._path = folder / "scalars.jsonl"
        self._writer: SummaryWriter | None = None
        if process.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [json.dumps(row) + "\n" for row in read_scalars(folder) if row["iteration"] <= start]
            self._path.write_text("".join(kept), encoding="utf-8")
            self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Writes one point of each curve."""
        if self._writer is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(f"{self._group}/{self._titles.get(name, name)}", value, iteration)

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Writes a picture, (3, H, W) uint8."""
        if self._writer is not None:
            self._writer.add_image(f"{self._group}/{name}", image, iteration)

    def close(self) -> None:
        """Flushes the buffers and closes the files."""
        if self._writer is not None:
            self._writer.close()


def write_result(folder: Path, group: str, iteration: int, values: Mapping[str, float]) -> None:
    """Writes figures of a finished stage, by their titles, to TensorBoard; `scalars.jsonl` has the curves."""
    with SummaryWriter(str(folder)) as writer:
        for title, value in values.items():
            writer.add_scalar(f"{group}/{title}", value, iteration)


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """Reads the curves of a stage: one dictionary per logged iteration; damaged lines are omitted."""
    path = folder / "scalars.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and "iteration" in row and all(map(_is_finite, row.values())):
            rows.append(row)
    return rows


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
