"""What a run tells: lines in the terminal and a file, scalars, pictures, a progress bar."""

import io
import json
import logging
import math
import sys
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cpsl.engine.process import Process

T = TypeVar("T")
logger = logging.getLogger("cpsl")
"""Where all messages of a run go; `start_logging` says where they come out."""


def start_logging(folder: Path, process: Process) -> None:
    """Sends messages to the terminal and to `log.txt` in a folder; ranks other than 0 stay silent.

    Args:
        folder: Folder of the run; made if it is not there.
        process: This process.
    """
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if process.is_main else logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know all letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(terminal)
    if process.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)


def progress(
    items: Iterable[T], title: str, process: Process, **options: int
) -> Generator[T, None, None]:
    """Shows a bar while items are worked through; in a log file instead of a terminal, nothing.

    Args:
        items: What is worked through.
        title: What the bar is called.
        process: Only rank 0 shows it.
        options: `total` and `initial`, as tqdm knows them.
    """
    if not (process.is_main and sys.stderr.isatty()):
        yield from items
        return
    with logging_redirect_tqdm([logger]):
        yield from tqdm(items, title, leave=False, dynamic_ncols=True, **options)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines of text, the first column to the left, the others to the right.

    Example:
        >>> print(text_table([("", "mIoU"), ("warm-up", "41.4")]))
                  mIoU
        warm-up   41.4
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        ).rstrip()
        for first, *others in rows
    )


class ScalarLog:
    """Curves and pictures of one stage: TensorBoard events and `scalars.jsonl`.

    Args:
        folder: Folder of the stage.
        process: Ranks other than 0 write nothing.
        start: Iterations that are done; what an interrupted run wrote beyond them is dropped.
    """

    def __init__(self, folder: Path, process: Process, start: int = 0) -> None:
        self._path = folder / "scalars.jsonl"
        self._writer: SummaryWriter | None = None
        if process.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [
                json.dumps(row) + "\n" for row in read_scalars(folder) if row["iteration"] <= start
            ]
            self._path.write_text("".join(kept), encoding="utf-8")
            self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Writes one point of each curve."""
        if self._writer is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Writes a picture, (3, H, W) uint8."""
        if self._writer is not None:
            self._writer.add_image(name, image, iteration)

    def close(self) -> None:
        """Flushes what is still in memory."""
        if self._writer is not None:
            self._writer.close()


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """Reads the curves of a stage: one dictionary for each iteration that was logged.

    Lines that are damaged, as by a kill, are left out.
    """
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
