"""The report of a run: one HTML file that needs nothing else, and a table for the terminal."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image
from torch import Tensor

from cpsl.engine import text_table, write_text
from cpsl.visualize import colorize, heatmap

TITLES = {
    "source_only": "Source only",
    "warmup": "Warm-up",
    "self_label": "Self-labeling",
    "distill_1": "Distillation 1",
    "distill_2": "Distillation 2",
}
WIDTH = 640  # pixels: larger pictures are shrunk to it


@dataclass(frozen=True)
class Picture:
    """A target image through the stages.

    Attributes:
        name: Key of the image.
        image: (3, H, W) uint8.
        ground_truth: (H, W) class indices, None without labels.
        predictions: Stage to (H, W) class indices.
        pseudo_labels: What they are to (H, W) class indices.
        confidence: (H, W) of the rectified pseudo labels, 0...1; None where self-labeling did not run.
    """

    name: str
    image: Tensor
    ground_truth: Tensor | None
    predictions: dict[str, Tensor]
    pseudo_labels: dict[str, Tensor]
    confidence: Tensor | None


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    Attributes:
        title: Name of the run.
        classes: Names.
        palette: Colours (R, G, B), 0...255.
        metrics: Stage to `miou`, `iou` of each class (percent, None where unknown) and `seconds`; without
            labels also `confidence` and `changed`, 0...1.
        class_distributions: What it is a distribution of, to K frequencies.
        curves: Stage to name to (iteration, value) of each point.
        pictures: Some target images.
        config: Settings as TOML.
        selected: Whether the labels of the target chose the weights of each stage.
    """

    title: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    metrics: dict[str, dict[str, Any]]
    class_distributions: dict[str, list[float]]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    pictures: list[Picture]
    config: str
    selected: bool = False


class Curve(NamedTuple):
    """A curve, ready to be drawn in a box of 100 x 40."""

    stage: str
    name: str
    points: str
    first: float
    last: float
    iterations: int


class Panel(NamedTuple):
    """A picture with what it shows."""

    caption: str
    source: str
    alt: str


def write_report(report: Report, path: Path) -> None:
    """Writes the report, as a whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    mious = {stage: values["miou"] for stage, values in report.metrics.items()}
    known = [miou for miou in mious.values() if miou is not None]
    html = environment.get_template("report.html.j2").render(
        report=report,
        titles={stage: TITLES.get(stage, stage) for stage in report.metrics},
        colors=["#{:02x}{:02x}{:02x}".format(*color) for color in report.palette],
        selected=report.selected,
        gain=known[-1] - known[0] if len(known) > 1 else None,
        best=max(known, default=None),
        largest=max((max(d) for d in report.class_distributions.values()), default=0) or 1,
        curves=[
            _curve(TITLES.get(stage, stage), name, points)
            for stage, of_stage in report.curves.items()
            for name, points in of_stage.items()
        ],
        panels=[(picture.name, _panels(picture, report)) for picture in report.pictures],
    )
    write_text(path, html)


def metrics_table(metrics: dict[str, dict[str, Any]], classes: tuple[str, ...]) -> str:
    """Returns IoU by class and stage, mIoU and seconds, as a table of text.

    Example:
        >>> metrics = {"warmup": {"miou": 50.0, "iou": {"road": 50.0, "sky": None}, "seconds": 3.2}}
        >>> print(metrics_table(metrics, ("road", "sky")))
                  Warm-up
        road         50.0
        sky             –
        mIoU         50.0
        seconds         3
    """
    rows = [("", *(TITLES.get(stage, stage) for stage in metrics))]
    for name in classes:
        rows.append((name, *(_number(values["iou"].get(name)) for values in metrics.values())))
    rows.append(("mIoU", *(_number(values["miou"]) for values in metrics.values())))
    if any("miou_13" in values for values in metrics.values()):
        of_13 = (_number(values.get("miou_13")) for values in metrics.values())
        rows.append(("mIoU, 13 classes", *of_13))
    if any(values["seconds"] is not None for values in metrics.values()):
        rows.append(("seconds", *(f"{values['seconds']:.0f}" for values in metrics.values())))
    return text_table(rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _curve(stage: str, name: str, points: list[tuple[int, float]]) -> Curve:
    values = np.array([value for _, value in points])
    # A median of five hides the noise of single batches, not the course.
    padded = np.pad(values, 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    low, high = float(smooth.min()), float(smooth.max())
    last = max(points[-1][0], 1)
    drawn = [
        f"{100 * iteration / last:.1f},{38 - 36 * (value - low) / (high - low or 1):.1f}"
        for (iteration, _), value in zip(points, smooth, strict=True)
    ]
    title = name.replace("loss_", "loss: ").replace("_", " ")
    return Curve(stage, title, " ".join(drawn), float(smooth[0]), float(smooth[-1]), last)


def _panels(picture: Picture, report: Report) -> list[Panel]:
    def labels(caption: str, label: Tensor) -> Panel:
        shown = sorted(
            {report.classes[k] for k in label.unique().tolist() if k < len(report.classes)}
        )
        alt = f"{caption} of {picture.name}: {', '.join(shown)}"
        return Panel(caption, _embed(colorize(label, report.palette), lossless=True), alt)

    panels = [Panel("Image", _embed(picture.image), f"Target image {picture.name}")]
    if picture.ground_truth is not None:
        panels.append(labels("Ground truth", picture.ground_truth))
    for stage, label in picture.predictions.items():
        panels.append(labels(TITLES.get(stage, stage), label))
    for name, label in picture.pseudo_labels.items():
        panels.append(labels(f"Pseudo labels {name}", label))
    if picture.confidence is not None:
        mean = float(picture.confidence.mean())
        panels.append(
            Panel(
                "Confidence after rectification",
                _embed(heatmap(picture.confidence)),
                f"Confidence of the pseudo labels of {picture.name}, {mean:.2f} on average",
            )
        )
    return panels


def _embed(image: Tensor, lossless: bool = False) -> str:
    """Returns a picture as an address that holds it."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width > WIDTH:
        method = Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS
        drawn = drawn.resize((WIDTH, round(drawn.height * WIDTH / drawn.width)), method)
    buffer = io.BytesIO()
    if lossless:
        drawn.quantize(256).save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        drawn.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
