"""Pictures of a report as data URLs, each with its caption and its alternative text."""

import base64
import io
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cpsl import class_counts
from cpsl.app.reporting.content import Picture, Report
from cpsl.app.titles import title_of
from cpsl.app.words import number, share
from cpsl.visualize import assignment_map, colorize, heatmap, overlay, similarity_map

WIDTH = 720
"""Largest width of a picture in pixels."""

CORRECTED, REGRESSED = (37, 99, 235), (234, 88, 12)
"""Blue and orange, which color-blind people can distinguish."""


class Figure(NamedTuple):
    """A picture with its caption and its alternative text; labels can be blended with the photograph."""

    caption: str
    source: str
    alt: str
    is_label: bool = False


class Row(NamedTuple):
    """The figures of one image: side by side, and those that only an expert needs."""

    name: str
    choice: str
    figures: list[Figure]
    more: list[Figure]
    classes: list[int]  # that occur in its labels


def draw(picture: Picture, report: Report) -> Row:
    """Draws an image, its labels, the predictions before and after, and where they differ."""
    first, last = report.ends
    ends = [stage for stage in dict.fromkeys((first, last)) if stage in picture.predictions]
    figures = []
    if picture.image is not None:
        figures.append(Figure("Image", _embed(picture.image), f"Target image {picture.name}"))
    if picture.ground_truth is not None:
        figures.append(_labels("Labels", picture.ground_truth, picture, report))
    times = ("Before: ", "After: ") if len(ends) == 2 else ("",)
    for when, stage in zip(times, ends, strict=False):
        figures.append(_labels(when + title_of(stage), picture.predictions[stage], picture, report))
    if len(ends) == 2:
        figures.append(_difference(picture, report))
    shown = [picture.predictions[stage] for stage in ends]
    if picture.ground_truth is not None:
        shown.append(picture.ground_truth)
    classes = sorted({k for label in shown for k in label.unique().tolist() if k < len(report.classes)})
    others = {stage: label for stage, label in picture.predictions.items() if stage not in ends}
    more = [_labels(title_of(stage), label, picture, report) for stage, label in others.items()]
    pseudo = picture.pseudo_labels.items()
    more += [_labels(f"Pseudo labels {name}", label, picture, report) for name, label in pseudo]
    return Row(picture.name, picture.choice, figures, more + _clustering(picture, report), classes)


def _labels(caption: str, label: Tensor, picture: Picture, report: Report) -> Figure:
    present = sorted({report.classes[k] for k in label.unique().tolist() if k < len(report.classes)})
    drawn = _embed(colorize(label, report.palette), lossless=True)
    return Figure(caption, drawn, f"{caption}, {picture.name}: {', '.join(present)}", is_label=True)


def _difference(picture: Picture, report: Report) -> Figure:
    """Shows which pixels differ between both ends; with labels, which of them are right."""
    size = picture.predictions[report.ends[1]].shape
    image = _shrunk(picture.image if picture.image is not None else torch.full((3, *size), 128).byte())
    before, after = (_fit(picture.predictions[stage], image) for stage in report.ends)
    gray = image.float().mean(dim=0).to(torch.uint8).expand(3, -1, -1)
    if picture.ground_truth is None:
        changed = after != before
        shown = overlay(gray, after.masked_fill(~changed, 255), report.palette, alpha=0.85)
        caption = f"Changed: {share(float(changed.float().mean()))} of the pixels, in their new class"
        return Figure(caption, _embed(shown), f"{caption}, {picture.name}")
    truth = _fit(picture.ground_truth, image)
    known = truth < len(report.classes)
    corrected = known & (after == truth) & (before != truth)
    regressed = known & (after != truth) & (before == truth)
    kind = torch.full_like(truth, 255).masked_fill(corrected, 0).masked_fill(regressed, 1)
    shown = overlay(gray, kind, (CORRECTED, REGRESSED), alpha=0.85)
    pixels = max(int(known.sum()), 1)
    better, worse = (f"{number(100 * int(p.sum()) / pixels)} %" for p in (corrected, regressed))
    caption = f"Change: {better} corrected (blue), {worse} regressed (orange)"
    return Figure(caption, _embed(shown), f"{caption}, of the labeled pixels of {picture.name}")


def _clustering(picture: Picture, report: Report) -> list[Figure]:
    name, figures = picture.name, []
    if picture.confidence is not None:
        mean = float(picture.confidence.mean())
        alt = f"Confidence of the pseudo labels of {name}, {mean:.2f} on average"
        figures.append(Figure("Confidence after rectification", _embed(heatmap(picture.confidence)), alt))
    if picture.clusters is None or picture.image is None:
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
    size = [max(round(height * WIDTH / width), 1), WIDTH]
    shrunk = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return shrunk.round().to(torch.uint8)


def _fit(label: Tensor, image: Tensor) -> Tensor:
    """Returns a label map at the size of an image: predictions may have another."""
    size = list(image.shape[1:])
    return F.interpolate(label[None, None].float(), size, mode="nearest-exact")[0, 0].long()


def _embed(image: Tensor, lossless: bool = False) -> str:
    """Returns a picture as a data URL."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width > WIDTH:
        method = Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS
        drawn = drawn.resize((WIDTH, max(round(drawn.height * WIDTH / drawn.width), 1)), method)
    buffer, kind = io.BytesIO(), "png" if lossless else "jpeg"
    if lossless:
        drawn.quantize(256).save(buffer, kind, optimize=True)
    else:
        drawn.save(buffer, kind, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
