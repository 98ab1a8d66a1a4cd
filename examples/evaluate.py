"""Evaluation: whole images, logits upsampled to the labels, IoU of each class.

python examples/evaluate.py --config examples/configs/demo.toml --weights runs/demo/distill_2/model.pt
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from config import Config, parse
from cpsl.alignment import class_counts
from cpsl.data import HardLabelStore, whole_image
from cpsl.distributed import all_reduce_sum
from cpsl.engine import Process, autocast, progress, start_process
from cpsl.metrics import ConfusionMatrix
from cpsl.models import DeepLabV2
from domains import evaluation_dataset, label_space
from networks import build_model, resize, to_unit


@torch.inference_mode()
def evaluate(
    model: DeepLabV2,
    config: Config,
    process: Process,
    predictions: Path,
    predictions_before: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a model on all evaluation images, shared out among the processes.

    Args:
        model: On the device of the process.
        config: Settings.
        process: This process.
        predictions: Folder to write the predicted label maps to.
        predictions_before: Those of the stage before, to see what changed.

    Returns:
        `miou` and `iou` of each class in percent (None without labels, or where a class neither occurs
        nor is predicted); of the predictions `class_frequency` in 0...1, mean `confidence` in 0...1 and
        `changed`, the share of pixels that differ from the stage before.
    """
    model.eval()
    dataset = evaluation_dataset(config)
    names = dataset.label_space.names
    confusion = ConfusionMatrix(len(names)).to(process.device)
    written, before = HardLabelStore(predictions), predictions_before
    store_before = HardLabelStore(before) if before is not None and before.exists() else None
    counts = torch.zeros(len(names), dtype=torch.int64, device=process.device)
    sums = torch.zeros(4, dtype=torch.float64, device=process.device)  # see the end
    mine = range(process.rank, len(dataset), process.world_size)
    for index in progress(mine, "evaluation", process, total=len(mine)):
        sample = dataset[index]
        logits = predict(model, sample.image, config, process)
        confidence, prediction = logits.softmax(dim=1).max(dim=1)
        prediction = prediction[0]
        if sample.label is not None:
            confusion.update(prediction, sample.label.to(process.device))
        counts += class_counts(prediction, len(names))
        sums[0] += confidence.double().mean()
        sums[1] += 1
        if store_before is not None:
            changed = store_before.read(sample.name).to(process.device) != prediction
            sums[2] += changed.double().mean()
            sums[3] += 1
        written.write(sample.name, prediction.to(torch.uint8).cpu())
    confusion.reduce()
    for tensor in (counts, sums):
        all_reduce_sum(tensor)
    labelled = confusion.matrix.sum() > 0
    return {
        "miou": _percent(float(confusion.miou)) if labelled else None,
        "iou": {
            name: _percent(float(iou)) if labelled else None
            for name, iou in zip(names, confusion.iou, strict=True)
        },
        "class_frequency": (counts / counts.sum().clamp_min(1)).tolist(),
        "confidence": float(sums[0] / sums[1]),
        "changed": float(sums[2] / sums[3]) if sums[3] > 0 else None,
    }


def predict(model: DeepLabV2, image: Tensor, config: Config, process: Process) -> Tensor:
    """Returns the logits of one image at its own size.

    Args:
        model: On the device of the process.
        image: (3, H, W) uint8; seen by the model at the settings' full size.
        config: Settings.
        process: This process.

    Returns:
        (1, K, H, W) float32.
    """
    whole = whole_image(image, config.views.full_size)[None].to(process.device)
    with autocast(process.device, config.precision):
        logits = model(to_unit(whole)).logits
    return resize(logits, image.shape[1:])


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


@dataclass(frozen=True)
class Arguments:
    """Evaluates one model on the evaluation images of the settings."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    weights: Path
    """A `model.pt` of a run."""
    predictions: Path = Path("predictions")
    """Folder to write the predicted label maps to."""


if __name__ == "__main__":
    from report import metrics_table
    from stage import friendly_errors

    arguments = parse(Arguments)
    config = arguments.config
    with friendly_errors(config.debug), start_process(config.device) as process:
        model = build_model(config, arguments.weights).to(process.device)
        metrics = evaluate(model, config, process, arguments.predictions)
        if process.is_main:
            shown = {arguments.weights.parent.name or "model": {**metrics, "seconds": 0.0}}
            print(metrics_table(shown, label_space(config).names))
