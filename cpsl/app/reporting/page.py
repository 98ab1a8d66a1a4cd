"""The report of a run as an HTML page, and its table of metrics as text."""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import torch

from cpsl.app.comparable import counted_unequally
from cpsl.app.reporting import charts
from cpsl.app.reporting.changes import class_changes
from cpsl.app.reporting.compare import ImageResult, confusions, normalized
from cpsl.app.reporting.content import UNRECORDED, Report
from cpsl.app.reporting.pictures import draw
from cpsl.app.reporting.verdict import judge
from cpsl.app.titles import SCORES, title_of
from cpsl.app.words import DASH, difference, duration, number, plural, share, size
from cpsl.training.checkpoints import write_text
from cpsl.visualize import heatmap

TEMPLATES = Path(__file__).parent / "templates"

MOST_CLASSES = 40
"""Classes up to which the whole confusion matrix is shown."""


def write_report(report: Report, path: Path) -> None:
    """Writes a report as one HTML file without any other, atomically."""
    rows = [draw(picture, report) for picture in report.pictures]
    shares = charts.class_shares(report)
    several = report.ends[0] != report.ends[1]
    script = (TEMPLATES / "report.js.j2").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=judge(report),
            mious=report.mious,
            of_stages=dict(
                zip(report.metrics, counted_unequally([*report.metrics.values()])[1], strict=True)
            ),
            changes=class_changes(report),
            scores=SCORES if any(values.get("scores") for values in report.metrics.values()) else {},
            colors=_hexadecimal(report.palette),
            matrices=_matrices(report),
            confused=_confused(report),
            curves=charts.curves(report),
            rows=rows,
            choice=_choice(report),
            shown=sorted({k for row in rows for k in row.classes}),
            dots=charts.scatter(report.comparison.images) if several and report.comparison else None,
            extremes=_extremes(report),
            glance=_at_a_glance(report),
            use_of_labels=_use_of_labels(report),
            shares=shares,
            moved=charts.share_changes(shares) if report.mious[1] is None else [],
            by_share=_by_share(shares),
            position=charts.position,
            mark_of_absent=f"{DASH} for a class that is neither labeled nor predicted.",
            heat=_hexadecimal(heatmap(torch.linspace(0, 1, 9)[None])[:, 0].t().tolist()),
            script=script,
            # The only script that a browser runs on this page.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_text(path, page)


@cache
def _environment() -> jinja2.Environment:
    """Returns what renders the templates, which are compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "difference": difference,
        "share": share,
        "duration": duration,
        "size": size,
        "plural": plural,
        "title_of": title_of,
        "unbroken": unbroken,
    }
    return environment


def unbroken(text: str) -> str:
    """Returns a sentence as HTML in which no line ends within a percentage or an option.

    Example:
        >>> print(unbroken("a < b for 14 % of the pixels"))
        a &lt; b for <span class="unbroken">14 %</span> of the pixels
    """
    whole = r"(?<![\w.])\d[\d.]* %|--[\w.]+(?:-[\w.]+)*"
    return re.sub(whole, r'<span class="unbroken">\g<0></span>', html.escape(text))


def _matrices(report: Report) -> list[dict[str, Any]]:
    """Returns the confusion matrices of both ends as shares of each row, without rows for many classes."""
    comparison = report.comparison
    if comparison is None or not comparison.labeled:
        return []
    ends = list(dict.fromkeys(report.ends))
    return [
        {
            "title": title_of(stage),
            "rows": normalized(matrix).tolist() if len(report.classes) <= MOST_CLASSES else [],
            "known": (matrix.sum(dim=1) > 0).tolist(),
        }
        for stage, matrix in zip(ends, comparison.confusion[-len(ends) :], strict=True)
    ]


def _confused(report: Report) -> list[dict[str, float]]:
    """Returns the most frequent confusions after adaptation, with their share before."""
    if report.comparison is None:
        return []
    before, after = report.comparison.confusion
    shares, of_class = before.double() / before.sum().clamp_min(1), normalized(after)
    return [
        {
            "label": k,
            "predicted": j,
            "before": float(shares[k, j]),
            "after": part,
            "of_class": float(of_class[k, j]),
        }
        for k, j, part in confusions(after, report.classes)
    ]


def _extremes(report: Report, each: int = 4) -> list[ImageResult]:
    """Returns the labeled images with the largest gains, then those with the largest losses last."""
    images = report.comparison.images if report.comparison else []
    known = [(i.after - i.before, i) for i in images if i.before is not None and i.after is not None]
    ordered = [image for _, image in sorted(known, key=lambda entry: -entry[0])]
    return ordered if len(ordered) <= 2 * each else ordered[:each] + ordered[-each:]


def _use_of_labels(report: Report) -> str:
    """Returns the end of a sentence on the evaluation images: what else their labels were used for."""
    if report.selected == "best":
        return ", whose labels selected the weights of each stage"
    of_sources = [count for name, count in report.shared.items() if name.startswith("source")]
    own = any(data.name == "evaluation" for data in report.data_sets)
    if not own or not of_sources or any(of_sources):
        return ""
    return ", whose labels were used for nothing else"


def _at_a_glance(report: Report) -> dict[str, str]:
    """Returns the few facts that a reader needs first."""
    glance = {"Folder": PurePosixPath(report.model).parent.as_posix()}
    if not report.facts.get("Started", [UNRECORDED])[0].startswith(UNRECORDED):
        glance["Started"] = report.facts["Started"][0]
    for data in report.data_sets:
        labels = "" if data.labels is None else ", with labels" if data.labels else ", without labels"
        glance[data.name.capitalize()] = plural(data.images, "image") + labels
    for name in ("Network", "Seed"):
        if name in report.facts:
            glance[name] = report.facts[name][0].split(", ")[0]
    if initial := report.facts.get("Initial weights"):
        glance["Network"] = ", ".join([glance["Network"], *initial])
    return glance


def _choice(report: Report) -> str:
    """Returns how the images of the report were chosen, in a sentence."""
    if report.comparison is None or len(report.pictures) >= len(report.comparison.images):
        return f"All {report.evaluated}s."
    of = f"of {plural(len(report.comparison.images), report.evaluated)}"
    if report.comparison.labeled:
        return f"The best, median and worst {of} by mean IoU after adaptation; none is picked by hand."
    return (
        f"Those {of} with the largest, the median and the smallest share of pixels that adaptation changed."
    )


def _by_share(shares: list[charts.Series]) -> list[int]:
    """Returns the classes by their share in the first series, the largest first."""
    first = shares[0].shares if shares else []
    return sorted(range(len(first)), key=lambda k: -first[k])


def _hexadecimal(colors: Iterable[Sequence[int]]) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in colors]
