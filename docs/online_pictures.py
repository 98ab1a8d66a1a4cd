"""Draws the picture of the online method in docs/method.md: one step after the demo, with its real state.

    cpsl demo
    python docs/online_pictures.py --config demo

The step has the teacher, clusters, thresholds and limits with which the run ended. Labels of the target,
which generated streets have, are used for the comparison only.
"""

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from cpsl import (
    ClassBalancedPrototypeClustering,
    ConfusionMatrix,
    DiceThresholds,
    ShareLimits,
    agreeing_labels,
    class_counts,
    warp,
)
from cpsl.app.clusterings import online_clustering
from cpsl.app.command_line import parse
from cpsl.app.datasets import label_space, source_batches, target_batches, target_dataset
from cpsl.app.networks import build_model
from cpsl.data import SegmentationDataset, SourceBatch, StrongAugmentation, TargetBatch
from cpsl.data.sample import read_label
from cpsl.data.views import render_label
from cpsl.geometry import View
from cpsl.methods.step import to_float
from cpsl.mixing import Mixed, classmix
from cpsl.models import SegmentationNetwork, resize
from cpsl.models import segment as run_network
from cpsl.training import Process, load
from cpsl.training.log import text_table
from cpsl.visualize import Palette, colorize, overlay, panel, titled

FOLDER = Path(__file__).parent / "pictures"
BATCHES = 30  # whose labels are compared; the crop with the most changes is shown


class Step(NamedTuple):
    """What a step of `OnlineSelfLabeling` computes of its batches.

    Attributes:
        probable: (B, H, W) most probable class of the teacher in the weak view.
        labels: (B, H, W) pseudo labels in the weak view, after thresholds and limits.
        reliable: (B, H, W) pseudo labels in the weak view where the clusters agree, elsewhere 255.
        mixed: Strong views with parts of source images, and their labels.
        confident: Share q of pixels above the confidence threshold, the weight of pixels not pasted.
    """

    probable: Tensor
    labels: Tensor
    reliable: Tensor
    mixed: Mixed
    confident: float

    @property
    def changed(self) -> Tensor:
        """(B,) share of the pixels whose label is not the most probable class."""
        return (self.probable != self.labels).float().mean(dim=(1, 2))


@torch.inference_mode()
def take_step(
    teacher: SegmentationNetwork,
    clustering: ClassBalancedPrototypeClustering,
    thresholds: DiceThresholds,
    limits: ShareLimits,
    source: SourceBatch,
    target: TargetBatch,
    confidence_threshold: float,
) -> Step:
    """Computes pseudo labels and mixed images as `OnlineSelfLabeling` does."""
    corners, size = teacher.align_corners, target.weak.shape[2:]
    logits, features = run_network(teacher, to_float(target.weak))
    teacher_soft = logits.softmax(dim=1)
    soft = limits(thresholds(teacher_soft))
    in_strong, valid = warp(
        soft, target.weak_view, target.strong_view, size, align_corners=corners, output_align_corners=False
    )
    labels = in_strong.argmax(dim=1).masked_fill(~valid | ~(in_strong.sum(dim=1) > 0.5), 255)
    in_weak = resize(soft, size, corners).argmax(dim=1)
    return Step(
        resize(teacher_soft, size, corners).argmax(dim=1),
        in_weak,
        agreeing_labels(in_weak, resize(clustering.assign(features), size, corners)),
        classmix(target.strong, labels, source.image, source.label),
        float((teacher_soft.amax(dim=1) > confidence_threshold).float().mean()),
    )


def true_labels(dataset: SegmentationDataset, target: TargetBatch) -> Tensor:
    """Returns the ground truth (B, H, W) in the weak views of a batch."""
    labels = []
    for index, name in enumerate(target.names):
        label = read_label(dataset, dataset.names.index(name))
        if label is None:
            raise SystemExit(f"{name} has no labels to compare with")
        view = View(target.weak_view.matrix[index : index + 1], target.weak_view.size)
        labels.append(render_label(label, view))
    return torch.stack(labels)


def draw(step: Step, target: TargetBatch, truth: Tensor, index: int, palette: Palette) -> Tensor:
    """Draws one crop of a step as a panel of nine pictures."""
    weak = target.weak[index]
    probable, labels, pasted = (part[index] for part in (step.probable, step.labels, step.mixed.pasted))
    changed = probable != labels
    new = labels.masked_fill(~changed, 255)
    gray = weak.float().mean(dim=0).byte().expand(3, -1, -1)
    weights = torch.where(pasted, 255, round(255 * step.confident)).byte().expand(3, -1, -1)
    share = 100 * float(changed.float().mean())
    pictures = {
        "target, weak view": weak,
        "teacher: most probable class": colorize(probable, palette),
        "pseudo labels": colorize(labels, palette),
        "ground truth, for comparison": colorize(truth[index], palette),
        f"changed: {share:.1f} % of the pixels": overlay(gray, new, palette, 0.9),
        "labels where the clusters agree": colorize(step.reliable[index], palette),
        "mixed image": step.mixed.image[index],
        "its labels": colorize(step.mixed.labels[index], palette),
        f"weights: white 1, gray {step.confident:.2f}": weights,
    }
    return panel([titled(picture, title) for title, picture in pictures.items()], columns=3, gap=6)


def compare(
    steps: list[tuple[Step, Tensor]], thresholds: DiceThresholds, limits: ShareLimits, names: Sequence[str]
) -> None:
    """Prints state and labels by class, and how many of the labels are right."""
    columns: dict[str, Tensor] = {"threshold": thresholds.compute(), "factor": limits.factors}
    columns["limit, %"] = 100 * limits.limits()
    truth = torch.cat([true for _, true in steps])
    probable = torch.cat([step.probable for step, _ in steps])
    labels = torch.cat([step.labels for step, _ in steps])
    agree = torch.cat([step.reliable for step, _ in steps]) == labels
    parts = {
        "most probable": probable,
        "pseudo label": labels,
        "where the clusters agree": labels.masked_fill(~agree, 255),
        "where they do not": labels.masked_fill(agree, 255),
    }
    quality = [("labels", "pixels, %", "of these right, %", "mIoU, %")]
    for title, part in parts.items():
        confusion, known = ConfusionMatrix(len(names)), (truth < len(names)) & (part != 255)
        confusion.update(part, truth.masked_fill(~known, 255))
        share, right = known.float().mean(), (part == truth)[known].float().mean()
        quality.append((title, *(f"{100 * float(value):.1f}" for value in (share, right, confusion.miou))))
    for title in ("most probable", "pseudo label"):
        columns[f"{title}, %"] = 100 * class_counts(parts[title], len(names)) / truth.numel()
    columns["ground truth, %"] = 100 * class_counts(truth, len(names)) / truth.numel()
    rows = [("class", *columns)]
    rows += [(name, *(f"{values[k]:.2f}" for values in columns.values())) for k, name in enumerate(names)]
    changed = torch.cat([step.changed for step, _ in steps])
    print(f"{text_table(rows)}\n\n{text_table(quality)}\n")
    print(f"changed: {100 * float(changed.mean()):.1f} % of the pixels of {len(changed)} crops")


def main(arguments: list[str]) -> None:
    """Draws the picture, and prints the figures."""
    config = parse(arguments)
    settings, process = config.online, Process(torch.device("cpu"))
    state = load(config.output / "online" / "checkpoint.pt", process.device)["state"]
    teacher = build_model(config, config.output / "online" / "model.pt").eval()
    thresholds = DiceThresholds(teacher.num_classes)
    limits = ShareLimits(torch.ones(teacher.num_classes))
    thresholds.load_state_dict(state["thresholds"])
    limits.load_state_dict(state["limits"])
    clustering = online_clustering(config, teacher)
    clustering.load_state_dict(load(config.output / "online" / "clustering.pt", process.device))
    start, size = settings.iterations, settings.batch_size
    strong = StrongAugmentation(jitter=0.25, operations=0, cutout=0)
    batches = zip(
        source_batches(config, "online", process, size, start),
        target_batches(config, "online", process, size, start, strong=strong),
        strict=False,
    )
    classes, dataset = label_space(config), target_dataset(config)
    steps, most = list[tuple[Step, Tensor]](), 0.0
    for source, target in islice(batches, BATCHES):
        torch.manual_seed(config.seed)
        step = take_step(
            teacher, clustering, thresholds, limits, source, target, settings.confidence_threshold
        )
        truth = true_labels(dataset, target)
        steps.append((step, truth))
        changed, index = step.changed.max(dim=0)
        if float(changed) > most:
            most, picture = float(changed), draw(step, target, truth, int(index), classes.palette)
    compare(steps, thresholds, limits, classes.names)
    FOLDER.mkdir(exist_ok=True)
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    image.save(FOLDER / "online_step.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
