"""The tables of a shift in Markdown, and their place in a page."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .results import SCORES, Result, largest_loss, paired, score_worth, spread
from .rows import OURS, SOURCE_ONLY

HEAD = (
    *("Row", "mIoU", "− source only", "− our recipe", "Rare classes", "− source only"),
    *("Largest loss of a class", "Run's model", "Minutes"),
)
ENOUGH_NETWORKS = 5
"""With fewer networks of a shift, a correlation with their mIoU means nothing."""

BY_CLASS = ("source_only", "dacs", "dacs_our_source", "ours_clustering_false", "ours")
"""Rows of the table of classes, in the order of its columns."""

SCORE_HEAD = ("Score", "Rank correlation", "Loss of its choice", "Stage it chooses − last", "Worst run")


def overview(results: Mapping[str, Sequence[Result]]) -> str:
    """Returns the table of the mIoU by shift (rows) and row of the benchmark, those of `BY_CLASS` (columns).

    Args:
        results: Results of each shift by its name.
    """
    columns = {
        name: next((r.row.title for of_shift in results.values() for r in of_shift if r.row.name == name), "")
        for name in BY_CLASS
    }
    columns = {name: title for name, title in columns.items() if title}
    lines = []
    for shift, of_shift in results.items():
        by_row = {name: [r for r in of_shift if r.row.name == name] for name in columns}
        seeds = sorted({r.seed for of_row in by_row.values() for r in of_row})
        cells = (
            spread([r.miou for r in of_row]).text() + _of_seeds(of_row, len(seeds)) if of_row else "–"
            for of_row in by_row.values()
        )
        lines.append([f"[`{shift}`](#{shift})", ", ".join(map(str, seeds)), *cells])
    return markdown(["Shift", "Seeds", *columns.values()], lines)


def quality_table(results: Sequence[Result], rare: Sequence[str]) -> str:
    """Returns the table of the rows, in the order of their first results.

    Args:
        results: Results of a shift.
        rare: The rare classes.
    """
    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(result.row.name, []).append(result)
    most = max((len(of_row) for of_row in by_row.values()), default=0)
    source, ours = (by_row.get(row.name, []) for row in (SOURCE_ONLY, OURS))
    lines = []
    for of_row in by_row.values():
        title = of_row[0].row.title + _of_seeds(of_row, most)
        loss = None if of_row is source else largest_loss(of_row, source)
        chosen = spread([r.chosen_miou for r in of_row]).text() if of_row[0].row.adapts else "–"
        lines.append(
            [
                title,
                spread([r.miou for r in of_row]).text(),
                _difference(_miou(of_row), _miou(source)) if of_row is not source else "–",
                _difference(_miou(of_row), _miou(ours)) if of_row is not ours else "–",
                spread([*_rare(of_row, rare).values()]).text(),
                _difference(_rare(of_row, rare), _rare(source, rare)) if of_row is not source else "–",
                "–" if loss is None else f"{loss[0]} {loss[1]:+.1f}" if loss[1] < 0 else "none",
                chosen,
                f"{np.mean([r.minutes for r in of_row]):.1f}",
            ]
        )
    return markdown(HEAD, lines)


def _of_seeds(results: Sequence[Result], most: int) -> str:
    return "" if len(results) == most else f" ({len(results)} of {most} seeds)"


def _miou(results: Sequence[Result]) -> dict[int, float]:
    return {result.seed: result.miou for result in results}


def _rare(results: Sequence[Result], rare: Sequence[str]) -> dict[int, float]:
    return {result.seed: result.mean_iou(rare) for result in results}


def _difference(values: dict[int, float], others: dict[int, float]) -> str:
    difference = paired(values, others)
    return "–" if difference is None else difference.text(sign=True)


def class_table(results: Sequence[Result], rare: Sequence[str]) -> str:
    """Returns the table of the IoU of each class, with a column for each of `BY_CLASS` that has results.

    Args:
        results: Results of a shift.
        rare: The rare classes, which are marked.
    """
    columns = {name: [result for result in results if result.row.name == name] for name in BY_CLASS}
    columns = {name: of_row for name, of_row in columns.items() if of_row}
    titles = (of_row[0].row.title for of_row in columns.values())
    classes = dict.fromkeys(name for of_row in columns.values() for result in of_row for name in result.iou)
    lines = []
    for name in classes:
        line = [f"{name} (rare)" if name in rare else name]
        for of_row in columns.values():
            values = [iou for result in of_row if (iou := result.iou.get(name)) is not None]
            line.append(spread(values).text() if values else "–")
        lines.append(line)
    return markdown(["Class", *titles], lines)


def score_table(results: Sequence[Result]) -> str:
    """Returns the table of what each label-free score is worth, or that it would say nothing."""
    lines = []
    for score in SCORES:
        worth = score_worth(results, score)
        if worth is not None and worth.networks < ENOUGH_NETWORKS:
            return f"Too few networks so far, {worth.networks}, to compare the label-free scores."
        if worth is not None:
            values = (f"{worth.correlation:+.2f}", *(f"{value:+.1f}" for value in worth[1:4]))
            lines.append([f"`{score}`", *("–" if "nan" in value else value for value in values)])
    return markdown(SCORE_HEAD, lines)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown.

    Example:
        >>> print(markdown(["Row", "mIoU"], [["ours", "50.1"]]))
        | Row | mIoU |
        |---|---|
        | ours | 50.1 |
    """
    rows = [f"| {' | '.join(line)} |" for line in (head, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def insert(page: str, name: str, text: str) -> str:
    r"""Returns a page in which a text replaces what is between the markers of its name.

    Raises:
        ValueError: The page has no such markers.

    Example:
        >>> insert("<!-- begin a -->old<!-- end a -->", "a", "new")
        '<!-- begin a -->\n\nnew\n\n<!-- end a -->'
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if not re.search(f"{begin}.*{end}", page, re.DOTALL):
        raise ValueError(f"the page needs the lines {begin} and {end}, between which the tables belong")
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
