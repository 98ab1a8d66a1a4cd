"""The report of a run: one HTML file that needs nothing else, and a table for the terminal."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cpsl import class_counts
from cpsl.engine import text_table, write_text
from cpsl.visualize import assignment_map, colorize, heatmap, overlay, panel, similarity_map

TITLES = {
    "source_only": "Source only",
    "warmup": "Warm-up",
    "self_label": "Self-labeling",
    "distill_1": "Distillation 1",
    "distill_2": "Distillation 2",
}
WIDTH = 640  # pixels: larger pictures are shrunk to it
MENDED, BROKEN = (
    (37, 99, 235),
    (234, 88, 12),
)  # blue and orange: told apart by colour-blind people too


class Clusters(NamedTuple):
    """How self-labeling clustered an image.

    Attributes:
        similarity: (K, h, w) cosines of the teacher's features and the prototypes.
        indices: (1, n) drawn pixels, y·w + x.
        assignments: (n, K) of the drawn pixels.
    """

    similarity: Tensor
    indices: Tensor
    assignments: Tensor


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
        clusters: How it was clustered; None where self-labeling did not run.
    """

    name: str
    image: Tensor
    ground_truth: Tensor | None
    predictions: dict[str, Tensor]
    pseudo_labels: dict[str, Tensor]
    confidence: Tensor | None
    clusters: Clusters | None


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

    name: str
    points: str
    first: float
    last: float
    iterations: int


class Figure(NamedTuple):
    """A picture with what it shows."""

    caption: str
    source: str
    alt: str
    is_label: bool = False


class Shown(NamedTuple):
    """The figures of a target image.

    Attributes:
        name: Key of the image.
        lead: Before and after, side by side; None before there are two stages.
        stages: The image, its labels, and the predictions of every stage.
        clustering: What self-labeling saw; empty where it did not run.
    """

    name: str
    lead: Figure | None
    stages: list[Figure]
    clustering: list[Figure]


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
        curves={
            TITLES.get(stage, stage): [_curve(name, points) for name, points in of_stage.items()]
            for stage, of_stage in report.curves.items()
        },
        shown=[_figures(picture, report) for picture in report.pictures],
        heat=["#{:02x}{:02x}{:02x}".format(*color) for color in _heat_colors()],
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


def _heat_colors() -> list[list[int]]:
    colors: list[list[int]] = heatmap(torch.linspace(0, 1, 9)[None])[:, 0].t().tolist()
    return colors


def _curve(name: str, points: list[tuple[int, float]]) -> Curve:
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
    if len(drawn) == 1:  # a short run: a level line, since a point is not seen
        drawn = ["0,20", "100,20"]
    title = name.replace("loss_", "loss: ").replace("_", " ")
    return Curve(title, " ".join(drawn), float(smooth[0]), float(smooth[-1]), last)


def _figures(picture: Picture, report: Report) -> Shown:
    def labels(caption: str, label: Tensor) -> Figure:
        present = sorted(
            {report.classes[k] for k in label.unique().tolist() if k < len(report.classes)}
        )
        alt = f"{caption} of {picture.name}: {', '.join(present)}"
        drawn = _embed(colorize(label, report.palette), lossless=True)
        return Figure(caption, drawn, alt, is_label=True)

    stages = [Figure("Image", _embed(picture.image), f"Target image {picture.name}")]
    if picture.ground_truth is not None:
        stages.append(labels("Ground truth", picture.ground_truth))
    for stage, label in picture.predictions.items():
        stages.append(labels(TITLES.get(stage, stage), label))
    several = len(picture.predictions) > 1
    return Shown(
        picture.name,
        _side_by_side(picture, report) if several else None,
        [*stages, _change(picture, report)] if several else stages,
        [
            *(
                labels(f"Pseudo labels {name}", label)
                for name, label in picture.pseudo_labels.items()
            ),
            *_clustering(picture, report),
        ],
    )


def _first_and_last(picture: Picture, image: Tensor) -> tuple[list[str], list[Tensor]]:
    """Returns titles and labels of the first and the last stage, the labels in the size of an image."""
    stages = list(picture.predictions)
    ends = (stages[0], stages[-1])
    return (
        [TITLES.get(stage, stage) for stage in ends],
        [_fit(picture.predictions[stage], image) for stage in ends],
    )


def _side_by_side(picture: Picture, report: Report) -> Figure:
    image = _shrunk(picture.image)
    (first, last), labels = _first_and_last(picture, image)
    halves = [overlay(image, label, report.palette, alpha=0.6) for label in labels]
    return Figure(
        f"{first} on the left, {last} on the right",
        _embed(panel(halves, columns=2), width=2 * WIDTH + 4),
        f"Predictions over {picture.name}: {first} on the left, {last} on the right",
    )


def _change(picture: Picture, report: Report) -> Figure:
    """Shows where the last stage differs from the first, and whether for better or worse."""
    image, percent = _shrunk(picture.image), "\N{NO-BREAK SPACE}%"
    (first, last), (before, after) = _first_and_last(picture, image)
    if picture.ground_truth is None:
        changed = after != before
        shown = overlay(image, after.masked_fill(~changed, 255), report.palette, alpha=0.8)
        share = 100 * float(changed.float().mean())
        caption = f"Changed from {first} to {last}: {share:.1f}{percent}"
        return Figure(caption, _embed(shown), f"{caption} of the pixels of {picture.name}")
    truth = _fit(picture.ground_truth, image)
    known = truth < len(report.classes)
    mended = known & (after == truth) & (before != truth)
    broken = known & (after != truth) & (before == truth)
    kind = torch.full_like(truth, 255).masked_fill(mended, 0).masked_fill(broken, 1)
    gray = image.float().mean(dim=0).to(torch.uint8).expand(3, -1, -1)
    shown = overlay(gray, kind, (MENDED, BROKEN), alpha=0.8)
    pixels = max(int(known.sum()), 1)
    better, worse = (f"{100 * int(p.sum()) / pixels:.1f}{percent}" for p in (mended, broken))
    caption = f"From {first} to {last}: {better} mended (blue), {worse} broken (orange)"
    return Figure(caption, _embed(shown), f"{caption}, of the labelled pixels of {picture.name}")


def _clustering(picture: Picture, report: Report) -> list[Figure]:
    figures = []
    if picture.confidence is not None:
        mean = float(picture.confidence.mean())
        figures.append(
            Figure(
                "Confidence after rectification",
                _embed(heatmap(picture.confidence)),
                f"Confidence of the pseudo labels of {picture.name}, {mean:.2f} on average",
            )
        )
    if picture.clusters is None:
        return figures
    similarity, indices, assignments = picture.clusters
    # Shrunk before the dots are drawn: they keep their size.
    image, name = _shrunk(picture.image), picture.name
    size = image.shape[1:]
    counts = class_counts(assignments.argmax(dim=1), len(report.classes)).tolist()
    drawn = ", ".join(
        f"{count} {title}" for title, count in zip(report.classes, counts, strict=True) if count
    )
    dots = assignment_map(image[None], indices, assignments, similarity.shape[1:], report.palette)
    rare = min((k for k, count in enumerate(counts) if count), key=lambda k: counts[k])
    rare_name = report.classes[rare]
    return [
        *figures,
        Figure(
            "Drawn pixels and their assignments",
            _embed(dots[0]),
            f"Pixels drawn from {name} by the class they were assigned to: {drawn}",
        ),
        Figure(
            "Similarity to the best prototype",
            _embed(similarity_map(similarity, size)),
            f"Cosine of each place of {name} and its most similar prototype, "
            f"{float(similarity.amax(dim=0).mean()):.2f} on average",
        ),
        Figure(
            f"Similarity to the prototype of {rare_name}",
            _embed(similarity_map(similarity, size, rare)),
            f"Cosine of each place of {name} and the prototype of {rare_name}, "
            f"the rarest class assigned here, {float(similarity[rare].mean()):.2f} on average",
        ),
    ]


def _shrunk(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    if width <= WIDTH:
        return image
    size = [round(height * WIDTH / width), WIDTH]
    shrunk = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return shrunk.round().to(torch.uint8)


def _fit(label: Tensor, image: Tensor) -> Tensor:
    """Returns a label map in the size of an image: stages may be evaluated at another."""
    size = list(image.shape[1:])
    return F.interpolate(label[None, None].float(), size, mode="nearest-exact")[0, 0].long()


def _embed(image: Tensor, lossless: bool = False, width: int = WIDTH) -> str:
    """Returns a picture as an address that holds it."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width > width:
        method = Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS
        drawn = drawn.resize((width, round(drawn.height * width / drawn.width)), method)
    buffer = io.BytesIO()
    if lossless:
        drawn.quantize(256).save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        drawn.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
