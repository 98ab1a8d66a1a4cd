"""Evaluation: whole images, scores upsampled to the labels, IoU of each class.

    python examples/evaluate.py --config examples/configs/demo.toml --weights runs/demo/distill_2/model.pt

The weights may be a `.pkl` of the authors' release, too.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from config import Config, parse
from cpsl import Segmenter, class_counts
from cpsl.data import (
    CITYSCAPES_13,
    CITYSCAPES_16,
    ColorStore,
    HardLabelStore,
    LabelIdStore,
    Sample,
    render_label,
)
from cpsl.distributed import all_reduce_sum
from cpsl.engine import Process, autocast, progress, start_process
from cpsl.geometry import View
from cpsl.metrics import ConfusionMatrix
from cpsl.models import DeepLabV2
from domains import evaluation_dataset, label_space
from networks import load_model


@torch.inference_mode()
def evaluate(
    model: DeepLabV2,
    config: Config,
    process: Process,
    predictions: Sequence[Any] = (),
    before: HardLabelStore | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on all evaluation images, shared out among the processes.

    Args:
        model: On the device of the process.
        config: Settings.
        process: This process.
        predictions: Stores that the predicted label maps are written to.
        before: Predictions of the stage before, to see what changed.
        scales: Sizes at which an image is seen, as multiples of the settings' full size.
        flip: Whether its mirror image is seen as well.

    Returns:
        `miou` and `iou` of each class in percent (None without labels, or where a class neither occurs
        nor is predicted), `miou_13` where the classes are the 16 that SYNTHIA has; of the predictions
        `class_frequency` in 0...1, mean `confidence` in 0...1 and `changed`, the share of pixels that
        differ from the stage before.
    """
    dataset = evaluation_dataset(config)
    names = dataset.label_space.names
    segmenter = Segmenter(model.eval(), dataset.label_space, config.views.full_size)
    confusion = ConfusionMatrix(len(names)).to(process.device)
    counts = torch.zeros(len(names), dtype=torch.int64, device=process.device)
    sums = torch.zeros(4, dtype=torch.float64, device=process.device)  # see the end
    mine = range(process.rank, len(dataset), process.world_size)
    for index in progress(mine, "evaluation", process, total=len(mine)):
        sample = _at_evaluation_size(dataset[index], config)
        size = sample.image.shape[1:] if sample.label is None else sample.label.shape
        with autocast(process.device, config.precision):
            predicted = segmenter.predict(sample.image, size=size, scales=scales, flip=flip)
        prediction = predicted.labels
        if sample.label is not None:
            confusion.update(prediction, sample.label.to(process.device))
        counts += class_counts(prediction, len(names))
        sums[0] += predicted.grid_confidence
        sums[1] += 1
        if before is not None and sample.name in before:
            earlier = before.read(sample.name).to(process.device)
            if earlier.shape != prediction.shape:
                raise ValueError(
                    f"{sample.name}: the prediction in {before.folder} is of another size; delete that folder"
                )
            changed = earlier != prediction
            sums[2] += changed.double().mean()
            sums[3] += 1
        for store in predictions:
            store.write(sample.name, prediction.cpu())
    confusion.reduce()
    for tensor in (counts, sums):
        all_reduce_sum(tensor)
    labelled = confusion.matrix.sum() > 0
    metrics = {
        "miou": _percent(float(confusion.miou)) if labelled else None,
        "iou": {
            name: _percent(float(iou)) if labelled else None
            for name, iou in zip(names, confusion.iou, strict=True)
        },
        "class_frequency": (counts / counts.sum().clamp_min(1)).tolist(),
        "confidence": float(sums[0] / sums[1]),
        "changed": float(sums[2] / sums[3]) if sums[3] > 0 else None,
    }
    if names == CITYSCAPES_16.names:
        of_13 = [names.index(name) for name in CITYSCAPES_13.names]
        metrics["miou_13"] = _percent(float(confusion.iou[of_13].nanmean())) if labelled else None
    return metrics


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model that is being trained into evaluation mode for a while, and each part back as it was."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _at_evaluation_size(sample: Sample, config: Config) -> Sample:
    size = config.views.evaluation_size
    if sample.label is None or size is None or sample.label.shape == size:
        return sample
    view = View.whole((sample.label.shape[0], sample.label.shape[1])).resized(size)
    return sample._replace(label=render_label(sample.label, view))


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


@dataclass(frozen=True)
class Arguments:
    """Evaluates one model on the evaluation images of the settings."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    weights: Path
    """A `model.pt` of a run, or a `.pkl` of the authors' release."""
    flip: bool = False
    """Whether the mirror image is seen as well; probabilities are averaged."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which an image is seen, as multiples of the full size; probabilities are averaged."""
    predictions: Path | None = None
    """Folder for the predictions as PNGs of class indices, such as the pipeline keeps."""
    label_ids: Path | None = None
    """Folder for the predictions as PNGs of Cityscapes' label ids, as its server takes them."""
    colors: Path | None = None
    """Folder for the predictions as PNGs in the colours of the classes."""


def stores(arguments: Arguments) -> list[Any]:
    """Returns what the predictions are written to."""
    classes = label_space(arguments.config)
    wanted: list[Any] = []
    if arguments.predictions:
        wanted.append(HardLabelStore(arguments.predictions, classes.palette))
    if arguments.label_ids:
        wanted.append(LabelIdStore(arguments.label_ids, classes))
    if arguments.colors:
        wanted.append(ColorStore(arguments.colors, classes))
    return wanted


if __name__ == "__main__":
    from report import metrics_table
    from stage import friendly_errors

    arguments = parse(Arguments)
    config = arguments.config
    with friendly_errors(config.debug), start_process(config.device) as process:
        written = stores(arguments)
        model = load_model(arguments.weights, label_space(config).names).to(process.device)
        metrics = evaluate(
            model, config, process, written, scales=arguments.scales, flip=arguments.flip
        )
        if process.is_main:
            shown = {arguments.weights.parent.name or "model": {**metrics, "seconds": None}}
            print(metrics_table(shown, label_space(config).names))
            for store in written:
                print(f"predictions in {store.folder}")
