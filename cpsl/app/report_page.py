"""The report of a run as an HTML page, and its table of metrics as text."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cpsl import class_counts
from cpsl.training.checkpoints import write_text
from cpsl.training.log import text_table
from cpsl.visualize import assignment_map, colorize, heatmap, overlay, panel, similarity_map

TITLES = {
    "source_only": "Source only",
    "warmup": "Warm-up",
    "self_label": "Self-labeling",
    "distill_1": "Distillation 1",
    "distill_2": "Distillation 2",
    "online": "Online self-labeling",
}
SCORES = {
    "flip_miou": "Consistency with the mirrored image, mean of the classes (higher is better)",
    "information": "Mutual information (higher is better)",
    "flip_agreement": "Agreement with the mirrored image (higher is better)",
    "density": "Soft neighborhood density (higher is better)",
    "entropy": "Entropy (lower is more confident)",
    "class_variation": "Distance to the source's classes (lower is closer)",
}
"""Label-free scores of the report, in order, with their titles."""

WIDTH = 640
"""Largest width of a picture in pixels."""

CORRECTED, REGRESSED = (37, 99, 235), (234, 88, 12)
"""Blue and orange, which color-blind people can distinguish."""


class Clusters(NamedTuple):
    """How self-labeling clustered an image."""

    similarity: Tensor  # (K, h, w) cosines of the teacher's features and the prototypes
    indices: Tensor  # (1, n) sampled pixels, y·w + x
    assignments: Tensor  # (n, K)
    align_corners: bool = True  # of the network


@dataclass(frozen=True)
class Picture:
    """A target image and its predictions; the last three fields are empty if self-labeling did not run."""

    name: str
    image: Tensor  # (3, H, W) uint8
    ground_truth: Tensor | None  # (H, W) class indices
    predictions: dict[str, Tensor]  # (H, W) class indices by stage
    pseudo_labels: dict[str, Tensor] = field(default_factory=dict)  # (H, W) class indices by description
    confidence: Tensor | None = None  # (H, W) of the rectified pseudo labels, 0...1
    clusters: Clusters | None = None


@dataclass(frozen=True)
class Report:
    """Content of a report."""

    title: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    metrics: dict[str, dict[str, Any]]  # results of `cpsl.app.evaluate.evaluate` and `seconds`, by stage
    class_distributions: dict[str, list[float]]  # K frequencies by description
    curves: dict[str, dict[str, list[tuple[int, float]]]]  # points (iteration, value) by stage and name
    pictures: list[Picture]
    config: str  # TOML
    selected: str = "last"  # `select_checkpoint`
    chosen: str = ""  # stage of the run's model
    reason: str = ""  # why that stage, a sentence without its period


class Curve(NamedTuple):
    """A curve as points in a box of 100 x 40, with its first and last value."""

    name: str
    points: str
    first: float
    last: float
    iterations: int


class Figure(NamedTuple):
    """A picture with its caption and its alternative text."""

    caption: str
    source: str
    alt: str
    is_label: bool = False


def write_report(report: Report, path: Path) -> None:
    """Writes a report as one HTML file without any other, atomically."""
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
        scores=SCORES if any(values.get("scores") for values in report.metrics.values()) else {},
        colors=_hexadecimal(report.palette),
        gain=known[-1] - known[0] if len(known) > 1 else None,
        best=max(known, default=None),
        largest=max((max(d) for d in report.class_distributions.values()), default=0) or 1,
        curves={
            TITLES.get(stage, stage): [_curve(name, points) for name, points in of_stage.items()]
            for stage, of_stage in report.curves.items()
        },
        images=[_figures(picture, report) for picture in report.pictures],
        heat=_hexadecimal(heatmap(torch.linspace(0, 1, 9)[None])[:, 0].t().tolist()),
    )
    write_text(path, html)


def metrics_table(metrics: dict[str, dict[str, Any]], classes: tuple[str, ...]) -> str:
    """Returns IoU by class and stage, mIoU and the time of training as a table of text.

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


def describe_scores(scores: dict[str, Any]) -> str:
    """Returns the label-free scores of a network in one line of text.

    Example:
        >>> describe_scores({"entropy": 0.25, "information": None, "flip_agreement": 0.875})
        'flip_agreement 0.875, entropy 0.250'
    """
    known = {name: scores.get(name) for name in SCORES}
    return ", ".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _hexadecimal(colors: Iterable[Sequence[int]]) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in colors]


def _curve(name: str, points: list[tuple[int, float]]) -> Curve:
    values = np.array([value for _, value in points])
    # A median of five smooths the noise of single batches.
    padded = np.pad(values, 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    low, high = float(smooth.min()), float(smooth.max())
    last = max(points[-1][0], 1)
    x = [100 * iteration / last for iteration, _ in points]
    y = 38 - 36 * (smooth - low) / (high - low or 1)
    drawn = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]
    if len(drawn) == 1:  # a point is invisible
        drawn = ["0,20", "100,20"]
    title = name.replace("loss_", "loss: ").replace("_", " ")
    return Curve(title, " ".join(drawn), float(smooth[0]), float(smooth[-1]), last)


def _figures(picture: Picture, report: Report) -> dict[str, Any]:
    """Returns the name, the first and last prediction side by side, the stages, and the clustering."""

    def labels(caption: str, label: Tensor) -> Figure:
        present = sorted({report.classes[k] for k in label.unique().tolist() if k < len(report.classes)})
        drawn = _embed(colorize(label, report.palette), lossless=True)
        return Figure(caption, drawn, f"{caption} of {picture.name}: {', '.join(present)}", is_label=True)

    stages = [Figure("Image", _embed(picture.image), f"Target image {picture.name}")]
    if picture.ground_truth is not None:
        stages.append(labels("Ground truth", picture.ground_truth))
    stages += (labels(TITLES.get(stage, stage), label) for stage, label in picture.predictions.items())
    lead = None
    if len(picture.predictions) > 1:
        lead, change = _first_and_last(picture, report)
        stages.append(change)
    pseudo = [labels(f"Pseudo labels {name}", label) for name, label in picture.pseudo_labels.items()]
    clustering = pseudo + _clustering(picture, report)
    return {"name": picture.name, "lead": lead, "stages": stages, "clustering": clustering}


def _first_and_last(picture: Picture, report: Report) -> tuple[Figure, Figure]:
    """Shows the first and the last stage side by side, and where they differ; with labels, which is right."""
    image, percent = _shrunk(picture.image), "\N{NO-BREAK SPACE}%"
    ends = [list(picture.predictions)[end] for end in (0, -1)]
    first, last = (TITLES.get(stage, stage) for stage in ends)
    before, after = (_fit(picture.predictions[stage], image) for stage in ends)
    halves = [overlay(image, label, report.palette, alpha=0.6) for label in (before, after)]
    caption = f"{first} on the left, {last} on the right"
    drawn = _embed(panel(halves, columns=2), width=2 * WIDTH + 4)
    lead = Figure(caption, drawn, f"Predictions over {picture.name}: {caption}")
    if picture.ground_truth is None:
        changed = after != before
        shown = overlay(image, after.masked_fill(~changed, 255), report.palette, alpha=0.8)
        caption = f"Changed from {first} to {last}: {100 * float(changed.float().mean()):.1f}{percent}"
        return lead, Figure(caption, _embed(shown), f"{caption} of the pixels of {picture.name}")
    truth = _fit(picture.ground_truth, image)
    known = truth < len(report.classes)
    corrected = known & (after == truth) & (before != truth)
    regressed = known & (after != truth) & (before == truth)
    kind = torch.full_like(truth, 255).masked_fill(corrected, 0).masked_fill(regressed, 1)
    gray = image.float().mean(dim=0).to(torch.uint8).expand(3, -1, -1)
    shown = overlay(gray, kind, (CORRECTED, REGRESSED), alpha=0.8)
    pixels = max(int(known.sum()), 1)
    better, worse = (f"{100 * int(p.sum()) / pixels:.1f}{percent}" for p in (corrected, regressed))
    caption = f"From {first} to {last}: {better} corrected (blue), {worse} regressed (orange)"
    return lead, Figure(caption, _embed(shown), f"{caption}, of the labeled pixels of {picture.name}")


def _clustering(picture: Picture, report: Report) -> list[Figure]:
    name, figures = picture.name, []
    if picture.confidence is not None:
        mean = float(picture.confidence.mean())
        alt = f"Confidence of the pseudo labels of {name}, {mean:.2f} on average"
        figures.append(Figure("Confidence after rectification", _embed(heatmap(picture.confidence)), alt))
    if picture.clusters is None:
        return figures
    similarity, indices, assignments, corners = picture.clusters
    image = _shrunk(picture.image)  # before the dots are drawn, which keep their size
    size = image.shape[1:]
    counts = class_counts(assignments.argmax(dim=1), len(report.classes)).tolist()
    assigned = {k: count for k, count in enumerate(counts) if count}
    sampled = ", ".join(f"{count} {report.classes[k]}" for k, count in assigned.items())
    dots = assignment_map(
        image[None], indices, assignments, similarity.shape[1:], report.palette, align_corners=corners
    )
    rare = min(assigned, key=counts.__getitem__)
    alt = f"Pixels sampled from {name} by assigned class: {sampled}"
    figures.append(Figure("Sampled pixels and their assignments", _embed(dots[0]), alt))
    mean, cosine = float(similarity.amax(dim=0).mean()), f"Cosine of each position of {name} and"
    shown = _embed(similarity_map(similarity, size, align_corners=corners))
    alt = f"{cosine} its most similar prototype, {mean:.2f} on average"
    figures.append(Figure("Similarity to the nearest prototype", shown, alt))
    mean, title = float(similarity[rare].mean()), f"the prototype of {report.classes[rare]}"
    shown = _embed(similarity_map(similarity, size, rare, align_corners=corners))
    alt = f"{cosine} {title}, the rarest class assigned here, {mean:.2f} on average"
    return [*figures, Figure(f"Similarity to {title}", shown, alt)]


def _shrunk(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    if width <= WIDTH:
        return image
    size = [round(height * WIDTH / width), WIDTH]
    shrunk = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return shrunk.round().to(torch.uint8)


def _fit(label: Tensor, image: Tensor) -> Tensor:
    """Returns a label map at the size of an image: predictions may have another."""
    size = list(image.shape[1:])
    return F.interpolate(label[None, None].float(), size, mode="nearest-exact")[0, 0].long()


def _embed(image: Tensor, lossless: bool = False, width: int = WIDTH) -> str:
    """Returns a picture as a data URL."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width > width:
        method = Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS
        drawn = drawn.resize((width, round(drawn.height * width / drawn.width)), method)
    buffer, kind = io.BytesIO(), "png" if lossless else "jpeg"
    if lossless:
        drawn.quantize(256).save(buffer, kind, optimize=True)
    else:
        drawn.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
