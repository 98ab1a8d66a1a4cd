"""A made-up report."""

import torch

from cpsl.app.report_page import Clusters, Picture, Report

STAGES = ("source_only", "warmup", "self_label", "distill_1", "distill_2")


def sample_report(
    labeled: bool = True, classes: tuple[str, ...] = ("road", "sky"), name: str = "city/one"
) -> Report:
    """Returns a report of five stages with one picture, whose halves are two classes."""
    label = torch.zeros(24, 32, dtype=torch.int64)
    label[:, 16:] = 1
    metrics = {
        stage: {
            "miou": 40.0 + 5 * i if labeled else None,
            "iou": {name: 40.0 + 5 * i if labeled and k else None for k, name in enumerate(classes)},
            "seconds": 12.3,
            "confidence": 0.8,
            "changed": 0.1 if i else None,
            "class_frequency": [1 / len(classes)] * len(classes),
            "scores": {"flip_miou": 0.3 + 0.05 * i, "entropy": 0.2, "flip_agreement": None},
            "collapses": ["sky is lost"] if i == 2 else [],
        }
        for i, stage in enumerate(STAGES)
    }
    similarity = torch.linspace(-1, 1, len(classes) * 12).reshape(len(classes), 3, 4)
    picture = Picture(
        name=name,
        image=torch.randint(256, (3, 24, 32), dtype=torch.uint8),
        ground_truth=label if labeled else None,
        predictions=dict.fromkeys(STAGES, label),
        pseudo_labels={"before rectification": label, "after rectification": label},
        confidence=torch.rand(24, 32),
        clusters=Clusters(
            similarity, torch.tensor([[0, 5, 11]]), torch.eye(len(classes))[torch.tensor([0, 1, 1])]
        ),
    )
    return Report(
        title="a run",
        classes=classes,
        palette=tuple((40 * k % 256, 90, 180) for k in range(len(classes))),
        metrics=metrics,
        class_distributions={
            "source labels": [1 / len(classes)] * len(classes),
            "assignments": [1.0] + [0.0] * (len(classes) - 1),
        },
        curves={"warmup": {"loss_source": [(20, 1.0), (40, 0.5)], "flat": [(20, 1.0)]}},
        pictures=[picture],
        config='output = "runs/x"\n',
        chosen="distill_2",
        reason="its flip_miou 0.500 is the highest",
    )
