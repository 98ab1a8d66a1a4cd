"""Made-up reports, whose metrics are computed from made-up predictions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cpsl import class_counts
from cpsl.app.reporting.compare import chosen_images, compare
from cpsl.app.reporting.content import Clusters, DataSet, Picture, Report, compared_stages
from cpsl.app.selection import SCORE, SCORE_IN_WORDS
from cpsl.metrics import ConfusionMatrix

STAGES = ("source_only", "warmup", "self_label", "distill_1", "distill_2")


def metrics_of(
    classes: Sequence[str],
    labels: Sequence[Tensor | None],
    predictions: Sequence[Tensor],
    changed: float | None,
) -> dict[str, Any]:
    """Returns the metrics of a stage, computed like those of a run."""
    confusion = ConfusionMatrix(len(classes))
    counts = torch.zeros(len(classes), dtype=torch.int64)
    for label, prediction in zip(labels, predictions, strict=True):
        counts += class_counts(prediction, len(classes))
        if label is not None:
            confusion.update(prediction, label)
    known = [None if math.isnan(iou) else 100 * iou for iou in confusion.iou.tolist()]
    miou = float(confusion.miou)
    return {
        "miou": None if math.isnan(miou) else 100 * miou,
        "iou": dict(zip(classes, known, strict=True)),
        "class_frequency": (counts / counts.sum()).tolist(),
        "confidence": 0.8,
        "changed": changed,
        "scores": {SCORE: 0.5, "flip_miou": 0.5, "entropy": 0.2, "flip_agreement": None},
        "collapses": [],
        "seconds": 7500.0,
        "seconds_per_iteration": 0.25,
        "peak_memory": 1_400_000_000,
    }


def build_report(
    classes: tuple[str, ...],
    labels: Sequence[Tensor | None],
    predictions: Mapping[str, Sequence[Tensor]],
    chosen: str | None = None,
    names: Sequence[str] | None = None,
    **changes: Any,
) -> Report:
    """Returns a report of images with labels (or None) and the predictions of each stage."""
    stages = list(predictions)
    chosen = chosen or stages[-1]
    names = names or [f"city/{i}" for i in range(len(labels))]
    ends = compared_stages(stages, chosen)

    def read(index: int) -> tuple[Tensor | None, Tensor, Tensor]:
        before, after = (predictions[stage][index] for stage in ends)
        return labels[index], before, after

    comparison = compare(names, read, len(classes))
    pictures = [
        Picture(
            names[i],
            torch.randint(256, (3, *predictions[stages[0]][i].shape), dtype=torch.uint8),
            labels[i],
            {stage: predictions[stage][i] for stage in stages},
            choice=choice,
        )
        for i, choice in chosen_images(comparison.images).items()
    ]
    content: dict[str, Any] = {
        "title": "a run",
        "classes": classes,
        "palette": tuple((40 * k % 256, 90, 180) for k in range(len(classes))),
        "metrics": {
            stage: metrics_of(classes, labels, predictions[stage], 0.1 if i else None)
            for i, stage in enumerate(stages)
        },
        "curves": {stages[0]: {"loss_source": [(20 * i, 1 / i) for i in range(1, 20)], "flat": [(20, 1.0)]}},
        "pictures": pictures,
        "config": 'output = "runs/x"\n',
        "settings": {"seed": ("0", True), "views.width": ("400", False)},
        "chosen": chosen,
        "reason": f"its {SCORE_IN_WORDS} is the highest: 0.500",
        "iterations": dict.fromkeys(stages, 1000),
        "comparison": comparison,
        "data_sets": [
            DataSet("source", 532, 532, "480 × 360 pixels", "day"),
            DataSet("target", 124, None, "480 × 360 pixels", "dusk"),
            DataSet("evaluation", 80, 80, "480 × 360 pixels", "dusk_val"),
        ],
        "source_labels": {"source": [1 / len(classes)] * len(classes)},
        "facts": {"Started": ["26 November 2026, 12:06 UTC"], "Command": ["cpsl adapt"], "Seed": ["0"]},
    }
    return Report(**(content | changes))


def sample_report(
    labeled: bool = True, classes: tuple[str, ...] = ("road", "sky"), name: str = "city/one", **changes: Any
) -> Report:
    """Returns a report of five stages with one picture, whose halves are two classes; the last is right."""
    label = torch.zeros(24, 32, dtype=torch.int64)
    label[:, 16:] = 1
    predictions = {stage: [label.roll(4 - i, dims=1)] for i, stage in enumerate(STAGES)}
    report = build_report(classes, [label if labeled else None], predictions, names=[name], **changes)
    report.metrics["self_label"]["collapses"] = ["sky is lost"]
    similarity = torch.linspace(-1, 1, len(classes) * 12).reshape(len(classes), 3, 4)
    picture = report.pictures[0]
    report.pictures[0] = Picture(
        name=picture.name,
        image=picture.image,
        ground_truth=picture.ground_truth,
        predictions=picture.predictions,
        pseudo_labels={"before rectification": label, "after rectification": label},
        confidence=torch.rand(24, 32),
        clusters=Clusters(
            similarity, torch.tensor([[0, 5, 11]]), torch.eye(len(classes))[torch.tensor([0, 1, 1])]
        ),
        choice=picture.choice,
    )
    return report
