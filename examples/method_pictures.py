"""Draws the pictures of docs/method.md from a run whose warm-up is finished, and prints their figures.

    python examples/method_pictures.py --config examples/configs/demo.toml

The labels of the target, which the generated streets have, are looked at to measure, and for nothing else.
"""

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

from config import Config, parse
from cpsl import (
    ClassBalancedPrototypeClustering,
    ConfusionMatrix,
    View,
    carry,
    class_counts,
    prototype_similarity,
    sinkhorn,
)
from cpsl.data import StrongAugmentation, WeakView, render, whole_image
from cpsl.engine import load, text_table
from cpsl.visualize import (
    assignment_map,
    colorize,
    outline,
    overlay,
    panel,
    titled,
)
from domains import label_space, target_dataset
from networks import build_model, to_unit

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
EVERY = 3  # of the target images is clustered
SHOWN = 8  # of these is the one that is shown
STEPS, PIXELS = 500, 4096  # of the clustering with a network that stands still
LOOK, MEASURED = 25, 40000  # it is looked at every so many steps, by so many pixels
VIEW_SEED = 195  # of a strong view that is mirrored and turned
FOLLOWED = ("car", "truck", "person", "pole")
NEAREST, UNIFORM, ALIGNED = "nearest prototype", "uniform", "aligned"
COLORS = {NEAREST: "#d55e00", UNIFORM: "#009e73", ALIGNED: "#0072b2"}  # Okabe and Ito, 2008

Assign = Callable[[Tensor], Tensor]


class Pixels(NamedTuple):
    """Target images as the warm-up's network sees them, and what self-labeling starts from.

    Attributes:
        images: (B, 3, H, W) uint8.
        features: (B, D, h, w).
        probabilities: (B, K, h, w).
        labels: (B, h, w) ground truth on the features' grid.
        prototypes: (K, D) of length 1; random for a class that was never predicted.
        delta: (K,) class distribution of the predictions.
    """

    images: Tensor
    features: Tensor
    probabilities: Tensor
    labels: Tensor
    prototypes: Tensor
    delta: Tensor

    def flat(self) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) and labels (N,) of all pixels."""
        return self.features.movedim(1, 3).flatten(0, 2), self.labels.flatten()


@torch.inference_mode()
def look(config: Config) -> Pixels:
    """Runs the warm-up's network over the target images."""
    model = build_model(config, config.output / "warmup" / "model.pt").eval()
    start = load(config.output / "pseudo_labels" / "start.pt")
    torch.manual_seed(config.seed)
    clustering = ClassBalancedPrototypeClustering(model.num_classes, model.feature_dim)
    clustering.initialize(start["prototypes"], start["class_distribution"])
    dataset, size = target_dataset(config), config.views.full_size
    images, features, probabilities, labels = [], [], [], []
    for index in range(0, len(dataset), EVERY):
        sample = dataset[index]
        if sample.label is None:
            raise SystemExit(f"{sample.name} has no labels to measure with")
        images.append(whole_image(sample.image, size))
        output = model(to_unit(images[-1])[None])
        features.append(output.features)
        probabilities.append(output.logits.softmax(dim=1))
        view = View.whole((sample.label.shape[0], sample.label.shape[1]))
        grid = output.features.shape[2:]
        label = sample.label[None].long()
        labels.append(carry(label, view, view, grid, output_layout="corners").values)
    return Pixels(
        torch.stack(images),
        torch.cat(features),
        torch.cat(probabilities),
        torch.cat(labels),
        clustering.prototypes.clone(),
        clustering.aligner.distribution,
    )


def ways(delta: Tensor) -> dict[str, Assign]:
    """Returns three ways to assign pixels by their scores (N, K)."""
    return {
        NEAREST: lambda scores: F.one_hot(scores.argmax(dim=1), len(delta)).float(),
        UNIFORM: lambda scores: sinkhorn(scores),
        ALIGNED: lambda scores: sinkhorn(scores, delta),
    }


def quality(assigned: Tensor, labels: Tensor, num_classes: int) -> tuple[float, float]:
    """Returns the percentage of pixels assigned to their true class, and the mIoU in percent."""
    confusion = ConfusionMatrix(num_classes)
    confusion.update(assigned, labels)
    known = labels < num_classes
    right = (assigned == labels)[known].float().mean()
    return 100 * float(right), 100 * float(confusion.miou)


def draw_sizes(config: Config, seen: Pixels, assignments: dict[str, Tensor]) -> None:
    """Draws and prints how large the classes become by each way to assign all pixels."""
    classes, labels = label_space(config).names, seen.labels.flatten()
    truth = class_counts(labels, len(classes))
    sizes = {
        "ground truth": truth / truth.sum(),
        "class distribution δ": seen.delta,
        **{way: assigned.mean(dim=0) for way, assigned in assignments.items()},
    }
    rows: list[tuple[str, ...]] = [("percent of the pixels", *sizes)]
    for k, name in enumerate(classes):
        rows.append((name, *(f"{100 * float(size[k]):.2f}" for size in sizes.values())))
    figures = [quality(q.argmax(dim=1), labels, len(classes)) for q in assignments.values()]
    rows.append(("assigned to their class", "", "", *(f"{right:.1f}" for right, _ in figures)))
    rows.append(("mIoU", "", "", *(f"{miou:.1f}" for _, miou in figures)))
    print(text_table(rows))

    figure, axes = plt.subplots(figsize=(7.2, 5.2), layout="constrained")
    order = seen.delta.argsort().tolist()
    names = [classes[k] for k in order]
    for way, marker, color in (
        ("ground truth", "s", "#b9c0c9"),
        (NEAREST, "x", COLORS[NEAREST]),
        (UNIFORM, "|", COLORS[UNIFORM]),
        (ALIGNED, ".", COLORS[ALIGNED]),
    ):
        share = 100 * sizes[way][order].clamp_min(1e-4)
        axes.plot(share, names, marker, color=color, label=way, markersize=10, mew=2)
    axes.set(xscale="log", xlim=(0.009, 60), xlabel="part of all pixels, logarithmic")
    axes.set_xticks([0.01, 0.1, 1, 10], labels=["≤ 0.01 %", "0.1 %", "1 %", "10 %"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_chart(figure, "class_sizes")


def draw_maps(config: Config, seen: Pixels, assignments: dict[str, Tensor]) -> None:
    """Draws one image by each way to assign all pixels, and the pixels that a clustering step draws."""
    palette, grid = label_space(config).palette, seen.labels.shape[1:]
    image, whole = seen.images[SHOWN], View.whole(config.views.full_size)
    one = slice(SHOWN, SHOWN + 1)

    def enlarged(labels: Tensor) -> Tensor:
        label, _ = carry(labels[one], whole, whole, layout="corners", output_layout="pixels")
        return overlay(image, label[0], palette, alpha=0.75)

    torch.manual_seed(config.seed)
    clustering = ClassBalancedPrototypeClustering(*seen.prototypes.shape)
    clustering.initialize(seen.prototypes, seen.delta)
    drawn = clustering(seen.features[one], seen.probabilities[one].argmax(dim=1))
    dots = assignment_map(seen.images[one], drawn.indices, drawn.assignments, grid, palette)
    pictures = [
        titled(image, "target image"),
        titled(enlarged(seen.labels), "ground truth"),
        titled(dots[0], "256 drawn pixels, aligned"),
    ]
    for way, assigned in assignments.items():
        pictures.append(titled(enlarged(assigned.argmax(dim=1).reshape(-1, *grid)), way))
    save_picture(panel(pictures, columns=2, gap=8), "assignments")


def cluster_on(config: Config, seen: Pixels, assign: Assign) -> tuple[Tensor, Tensor, Tensor]:
    """Lets assignments move the prototypes, again and again, with features that stand still.

    Args:
        config: Settings.
        seen: Pixels, of which some are drawn uniformly in each step.
        assign: What makes targets of scores (N, K).

    Returns:
        (T, K) percent of the pixels that are nearest to each prototype, every `LOOK` steps; and of the
        pixels by which this is measured the last nearest prototypes and the ground truth, (M,) each.
    """
    features, labels = seen.flat()
    torch.manual_seed(config.seed)
    measured = torch.randperm(len(labels))[:MEASURED]
    prototypes = torch.nn.Parameter(seen.prototypes.clone())
    optimizer = torch.optim.AdamW([prototypes], lr=5e-4, weight_decay=0.01)
    course = []
    for step in range(STEPS + 1):
        if step % LOOK == 0:
            with torch.no_grad():
                nearest = prototype_similarity(features[measured], prototypes).argmax(dim=1)
            course.append(100 * class_counts(nearest, len(prototypes)) / len(measured))
        drawn = features[torch.randint(len(features), (PIXELS,))]
        scores = prototype_similarity(drawn, prototypes)
        log_p = (scores / config.self_label.temperature).log_softmax(dim=1)
        loss = -(assign(scores.detach()) * log_p).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(course), nearest, labels[measured]


def draw_courses(config: Config, seen: Pixels) -> None:
    """Draws and prints what becomes of some classes where clustering goes on, by each way to assign."""
    names = label_space(config).names
    followed = [names.index(name) for name in FOLLOWED]
    truth = class_counts(seen.labels.flatten(), len(names))
    sizes = {"δ": 100 * seen.delta, "ground truth": 100 * truth / truth.sum()}
    courses = {}
    rows: list[tuple[str, ...]] = [("after the last step, percent", "right", "mIoU", *FOLLOWED)]
    for way, assign in ways(seen.delta).items():
        courses[way], nearest, labels = cluster_on(config, seen, assign)
        figures = quality(nearest, labels, len(names))
        shares = (f"{share:.2f}" for share in courses[way][-1, followed].tolist())
        rows.append((way, *(f"{figure:.1f}" for figure in figures), *shares))
    for title, size in sizes.items():
        rows.append((title, "", "", *(f"{share:.2f}" for share in size[followed].tolist())))
    print("\n" + text_table(rows))

    figure, grid = plt.subplots(2, 2, figsize=(7.2, 4.8), layout="constrained", sharex=True)
    for axes, k in zip(grid.flat, followed, strict=True):
        for way, course in courses.items():
            share = course[:, k].clamp_min(0.01)
            axes.plot(range(0, STEPS + 1, LOOK), share, color=COLORS[way], label=way, lw=2)
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


def draw_views(config: Config, seen: Pixels) -> None:
    """Draws a weak and a strong view of an image, and what is carried from one to the other."""
    image, views = seen.images[SHOWN], config.views
    random = np.random.default_rng(VIEW_SEED)
    draw_weak = WeakView(views.full_size, views.crop, views.width, views.scale)
    weak_view = draw_weak.draw(views.full_size, random)
    weak = render(image, weak_view)
    strong, strong_view = StrongAugmentation().draw(weak, weak_view, random)

    frames = outline(outline(image, weak_view), strong_view, (255, 200, 0))
    whole = View.whole(views.full_size)
    soft = seen.probabilities[SHOWN : SHOWN + 1]
    in_weak, _ = carry(soft, whole, weak_view, layout="corners", output_layout="pixels")
    in_strong, known = carry(in_weak, weak_view, strong_view)

    def labels(soft: Tensor, known: Tensor | None = None) -> Tensor:
        label = soft[0].argmax(dim=0)
        drawn = colorize(label, label_space(config).palette)
        return drawn if known is None else torch.where(known[0], drawn, 225)

    on_whole, _ = carry(soft, whole, whole, layout="corners", output_layout="pixels")
    rows = (
        (frames, "weak view white, strong view yellow", labels(on_whole), "pseudo labels"),
        (weak, "weak view", labels(in_weak), "carried to the weak view"),
        (strong, "strong view", labels(in_strong, known), "carried on; gray: not seen"),
    )
    pictures = []
    for left, title, right, title_right in rows:
        pictures.append(titled(larger(left, views.full_size), title))
        pictures.append(titled(larger(right, views.full_size), title_right))
    save_picture(panel(pictures, columns=2, gap=8), "views")


def larger(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarges a picture."""
    return F.interpolate(image[None].float(), size, mode="bilinear")[0].round().to(torch.uint8)


def save_picture(picture: Tensor, name: str) -> None:
    """Writes a photograph."""
    drawn = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    drawn.save(FOLDER / f"{name}.jpg", quality=85, optimize=True)


def save_chart(figure: Figure, name: str) -> None:
    """Writes a chart with few colours."""
    figure.savefig(FOLDER / f"{name}.png", dpi=110)
    plt.close(figure)
    Image.open(FOLDER / f"{name}.png").convert("RGB").quantize(64).save(
        FOLDER / f"{name}.png", optimize=True
    )


if __name__ == "__main__":
    plt.switch_backend("agg")
    FOLDER.mkdir(exist_ok=True)
    config = parse(Config)
    pixels = look(config)
    cosines = prototype_similarity(pixels.flat()[0], pixels.prototypes)
    assignments = {way: assign(cosines) for way, assign in ways(pixels.delta).items()}
    draw_sizes(config, pixels, assignments)
    draw_maps(config, pixels, assignments)
    draw_courses(config, pixels)
    draw_views(config, pixels)
