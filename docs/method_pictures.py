"""Draws the pictures of docs/method.md from a run with a finished warm-up, and prints their figures.

    cpsl demo --method paper --output runs/demo_paper
    python docs/method_pictures.py --config demo --method paper --output runs/demo_paper

Labels of the target, which generated streets have, are used for measurements only.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cpsl import (
    ClassBalancedPrototypeClustering,
    ConfusionMatrix,
    View,
    class_counts,
    prototype_similarity,
    sinkhorn,
    warp,
)
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.datasets import label_space, target_dataset
from cpsl.app.networks import build_model
from cpsl.data import StrongAugmentation, WeakView, whole_image
from cpsl.data.views import render
from cpsl.geometry import resize_labels
from cpsl.methods.step import to_float
from cpsl.models import segment as run_network
from cpsl.training import load
from cpsl.training.log import text_table
from cpsl.visualize import assignment_map, colorize, outline, overlay, panel, titled

FOLDER = Path(__file__).parent / "pictures"
EVERY = 3  # every third target image is clustered
SHOWN = 8  # index of the image that is shown
STEPS, PIXELS = 500, 4096  # of the experiment with a fixed network
INTERVAL, MEASURED = 25, 40000  # steps between measurements, pixels of a measurement
VIEW_SEED = 195  # gives a mirrored and rotated strong view
FOLLOWED = ("car", "truck", "person", "pole")
NEAREST, UNIFORM, ALIGNED = "nearest prototype", "uniform", "aligned"
COLORS = {NEAREST: "#d55e00", UNIFORM: "#009e73", ALIGNED: "#0072b2"}  # Okabe and Ito, 2008

Assign = Callable[[Tensor], Tensor]


class Pixels(NamedTuple):
    """Outputs of the warm-up network for target images, and the state in which self-labeling starts.

    Attributes:
        images: (B, 3, H, W) uint8.
        features: (B, D, h, w).
        probabilities: (B, K, h, w).
        labels: (B, h, w) ground truth on the grid of the features.
        prototypes: (K, D) of length 1; random for a class that was never predicted.
        delta: (K,) class distribution of the predictions.
    """

    images: Tensor
    features: Tensor
    probabilities: Tensor
    labels: Tensor
    prototypes: Tensor
    delta: Tensor
    align_corners: bool

    def flat(self) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) and labels (N,) of all pixels."""
        return self.features.movedim(1, 3).flatten(0, 2), self.labels.flatten()


@torch.inference_mode()
def segment(config: Config) -> Pixels:
    """Applies the warm-up network to the target images."""
    model = build_model(config, config.output / "warmup" / "model.pt").eval()
    start = load(config.output / "pseudo_labels" / "start.pt")
    torch.manual_seed(config.seed)
    clustering = ClassBalancedPrototypeClustering(model.num_classes, model.feature_dim)
    clustering.initialize(start["prototypes"], start["class_distribution"])
    dataset = target_dataset(config)
    images, features, probabilities, labels = [], [], [], []
    for index in range(0, len(dataset), EVERY):
        sample = dataset[index]
        if sample.label is None:
            raise SystemExit(f"{sample.name} has no labels to measure with")
        images.append(whole_image(sample.image, config.views.full_size))
        output = run_network(model, to_float(images[-1][None]))
        features.append(output.features)
        probabilities.append(output.logits.softmax(dim=1))
        grid = output.features.shape[2:]
        label = sample.label[None].long()
        labels.append(resize_labels(label, grid, model.align_corners))
    return Pixels(
        torch.stack(images),
        torch.cat(features),
        torch.cat(probabilities),
        torch.cat(labels),
        clustering.prototypes.clone(),
        clustering.aligner.distribution,
        model.align_corners,
    )


def assignments_of(delta: Tensor) -> dict[str, Assign]:
    """Returns three functions that assign pixels by their scores (N, K)."""
    return {
        NEAREST: lambda scores: F.one_hot(scores.argmax(dim=1), len(delta)).float(),
        UNIFORM: lambda scores: sinkhorn(scores),
        ALIGNED: lambda scores: sinkhorn(scores, delta),
    }


def quality(assigned: Tensor, labels: Tensor, num_classes: int) -> tuple[str, str]:
    """Returns the percentage of pixels assigned to their true class, and the mIoU in percent."""
    confusion = ConfusionMatrix(num_classes)
    confusion.update(assigned, labels)
    correct = (assigned == labels)[labels < num_classes].float().mean()
    return f"{100 * float(correct):.1f}", f"{100 * float(confusion.miou):.1f}"


def shares(labels: Tensor, num_classes: int) -> Tensor:
    """Returns the share of each class in percent, (K,)."""
    counts = class_counts(labels, num_classes)
    return 100 * counts / counts.sum()


def numbers(values: Tensor) -> list[str]:
    """Returns values (N,) as text."""
    return [f"{value:.2f}" for value in values.tolist()]


def draw_class_sizes(config: Config, pixels: Pixels, assigned: dict[str, Tensor]) -> None:
    """Draws and prints the sizes of the classes if all pixels are assigned."""
    names, labels = label_space(config).names, pixels.labels.flatten()
    sizes = {
        "ground truth": shares(labels, len(names)),
        "class distribution δ": 100 * pixels.delta,
        **{kind: 100 * q.mean(dim=0) for kind, q in assigned.items()},
    }
    figures = [quality(q.argmax(dim=1), labels, len(names)) for q in assigned.values()]
    rows = [("percent of the pixels", *sizes)]
    rows += zip(names, *map(numbers, sizes.values()), strict=True)
    rows.append(("assigned to their class", "", "", *(correct for correct, _ in figures)))
    rows.append(("mIoU", "", "", *(miou for _, miou in figures)))
    print(text_table(rows))

    figure, axes = plt.subplots(figsize=(7.2, 5.2), layout="constrained")
    order = pixels.delta.argsort().tolist()
    markers = {"ground truth": "s", NEAREST: "x", UNIFORM: "|", ALIGNED: "."}
    for kind, marker in markers.items():
        size, color = sizes[kind][order].clamp_min(0.01), COLORS.get(kind, "#b9c0c9")
        axes.plot(size, [names[k] for k in order], marker, color=color, label=kind, markersize=10, mew=2)
    axes.set(xscale="log", xlim=(0.009, 60), xlabel="share of all pixels, logarithmic")
    axes.set_xticks([0.01, 0.1, 1, 10], labels=["≤ 0.01 %", "0.1 %", "1 %", "10 %"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_chart(figure, "class_sizes")


def draw_assignments(config: Config, pixels: Pixels, assigned: dict[str, Tensor]) -> None:
    """Draws one image with each assignment of all pixels, and the pixels sampled by a clustering step."""
    palette, grid = label_space(config).palette, pixels.labels.shape[1:]
    image, whole = pixels.images[SHOWN], View.whole(config.views.full_size)
    one = slice(SHOWN, SHOWN + 1)

    def drawn(labels: Tensor) -> Tensor:
        label, _ = warp(
            labels[one], whole, whole, align_corners=pixels.align_corners, output_align_corners=False
        )
        return overlay(image, label[0], palette, alpha=0.75)

    torch.manual_seed(config.seed)
    clustering = ClassBalancedPrototypeClustering(*pixels.prototypes.shape)
    clustering.initialize(pixels.prototypes, pixels.delta)
    output = clustering(pixels.features[one], pixels.probabilities[one].argmax(dim=1))
    dots = assignment_map(
        pixels.images[one],
        output.indices,
        output.assignments,
        grid,
        palette,
        align_corners=pixels.align_corners,
    )
    pictures = [
        titled(image, "target image"),
        titled(drawn(pixels.labels), "ground truth"),
        titled(dots[0], "256 sampled pixels, aligned"),
    ]
    for kind, q in assigned.items():
        pictures.append(titled(drawn(q.argmax(dim=1).reshape(-1, *grid)), kind))
    save_picture(panel(pictures, columns=2, gap=8), "assignments")


def train_prototypes(config: Config, pixels: Pixels, assign: Assign) -> tuple[Tensor, Tensor, Tensor]:
    """Trains the prototypes with one kind of assignment, while the features are fixed.

    Returns:
        (T, K) percent of the pixels nearest to each prototype, every `INTERVAL` steps; and of the measured
        pixels (M,) the nearest prototype after the last step, and (M,) the ground truth.
    """
    features, labels = pixels.flat()
    torch.manual_seed(config.seed)
    measured = torch.randperm(len(labels))[:MEASURED]
    prototypes = torch.nn.Parameter(pixels.prototypes.clone())
    optimizer = torch.optim.AdamW([prototypes], lr=5e-4, weight_decay=0.01)
    course = []
    for step in range(STEPS + 1):
        if step % INTERVAL == 0:
            with torch.no_grad():
                nearest = prototype_similarity(features[measured], prototypes).argmax(dim=1)
            course.append(shares(nearest, len(prototypes)))
        sampled = features[torch.randint(len(features), (PIXELS,))]
        scores = prototype_similarity(sampled, prototypes)
        log_p = (scores / config.self_label.temperature).log_softmax(dim=1)
        loss = -(assign(scores.detach()) * log_p).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(course), nearest, labels[measured]


def draw_rare_classes(config: Config, pixels: Pixels) -> None:
    """Draws and prints how the sizes of some classes change during training."""
    names = label_space(config).names
    followed = [names.index(name) for name in FOLLOWED]
    sizes = {"δ": 100 * pixels.delta, "ground truth": shares(pixels.labels.flatten(), len(names))}
    courses = {}
    rows: list[tuple[str, ...]] = [("after the last step, percent", "correct", "mIoU", *FOLLOWED)]
    for kind, assign in assignments_of(pixels.delta).items():
        courses[kind], nearest, labels = train_prototypes(config, pixels, assign)
        last = numbers(courses[kind][-1, followed])
        rows.append((kind, *quality(nearest, labels, len(names)), *last))
    rows += [(title, "", "", *numbers(size[followed])) for title, size in sizes.items()]
    print("\n" + text_table(rows))

    figure, grid = plt.subplots(2, 2, figsize=(7.2, 4.8), layout="constrained", sharex=True)
    for axes, k in zip(grid.flat, followed, strict=True):
        for kind, course in courses.items():
            share = course[:, k].clamp_min(0.01)
            axes.plot(range(0, STEPS + 1, INTERVAL), share, color=COLORS[kind], label=kind, lw=2)
        for (title, size), style in zip(sizes.items(), ("--", ":"), strict=True):
            axes.axhline(float(size[k]), color="black", ls=style, lw=1.2, label=title)
        axes.set(yscale="log", ylim=(0.009, 12), title=names[k])
        axes.set_yticks([0.01, 0.1, 1, 10], labels=["0.01 %", "0.1 %", "1 %", "10 %"])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[1]:
        axes.set_xlabel("step")
    lines, titles = grid[0, 0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside lower center", ncols=5, frameon=False)
    save_chart(figure, "rare_classes")


def draw_views(config: Config, pixels: Pixels) -> None:
    """Draws a weak and a strong view of an image, and pseudo labels warped to them."""
    image, views, palette = pixels.images[SHOWN], config.views, label_space(config).palette
    random = np.random.default_rng(VIEW_SEED)
    weak_view = WeakView(views.full_size, views.crop, views.width, views.scale).sample(
        views.full_size, random
    )
    weak = render(image, weak_view)
    strong, strong_view = StrongAugmentation().sample(weak, weak_view, random)
    frames = outline(outline(image, weak_view), strong_view, (255, 200, 0))

    whole, corners = View.whole(views.full_size), {"align_corners": pixels.align_corners}
    soft = pixels.probabilities[SHOWN : SHOWN + 1]
    on_image, _ = warp(soft, whole, whole, **corners, output_align_corners=False)
    in_weak, _ = warp(soft, whole, weak_view, **corners, output_align_corners=False)
    in_strong, valid = warp(in_weak, weak_view, strong_view)
    labels_strong = colorize(in_strong[0].argmax(dim=0), palette)
    columns = [
        (frames, "weak view white, strong view yellow"),
        (colorize(on_image[0].argmax(dim=0), palette), "pseudo labels"),
        (weak, "weak view"),
        (colorize(in_weak[0].argmax(dim=0), palette), "warped to the weak view"),
        (strong, "strong view"),
        (torch.where(valid[0], labels_strong, 225), "warped on; gray: not valid"),
    ]
    pictures = [
        titled(
            F.interpolate(picture[None].float(), views.full_size, mode="bilinear")[0].round().byte(), title
        )
        for picture, title in columns
    ]
    save_picture(panel(pictures, columns=2, gap=8), "views")


def save_picture(picture: Tensor, name: str) -> None:
    """Writes a photograph."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    image.save(FOLDER / f"{name}.jpg", quality=85, optimize=True)


def save_chart(figure: Figure, name: str) -> None:
    """Writes a chart with few colors."""
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def main(arguments: list[str]) -> None:
    """Draws all pictures."""
    plt.switch_backend("agg")
    FOLDER.mkdir(exist_ok=True)
    config = parse(arguments)
    pixels = segment(config)
    scores = prototype_similarity(pixels.flat()[0], pixels.prototypes)
    assigned = {kind: assign(scores) for kind, assign in assignments_of(pixels.delta).items()}
    draw_class_sizes(config, pixels, assigned)
    draw_assignments(config, pixels, assigned)
    draw_rare_classes(config, pixels)
    draw_views(config, pixels)


if __name__ == "__main__":
    main(sys.argv[1:])
