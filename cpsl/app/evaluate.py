"""`cpsl evaluate`: IoU of a model on labeled images, per class, and its scores without labels."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from shlex import join
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from cpsl import LabelFreeScores, Segmenter, class_counts
from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.terminal import fit
from cpsl.app.command_line import parse_arguments, read_layers
from cpsl.app.config import METHODS, Config
from cpsl.app.datasets import FOLDER_SETTINGS, data_folders, evaluation_dataset, label_space, share_of_rank
from cpsl.app.domain import Domain, Ids
from cpsl.app.errors import friendly_errors, mentions
from cpsl.app.metrics_text import describe_gaps, describe_scores, metrics_table
from cpsl.app.networks import builder_option, custom_builder, for_inference
from cpsl.app.ranges import Location, Positive
from cpsl.app.result_folders import refuse_foreign, refuse_overlaps, refuse_results
from cpsl.app.settings import UsageError
from cpsl.app.usage import list_next, program
from cpsl.data import CITYSCAPES_13, CITYSCAPES_16, IGNORE_INDEX, HardLabelStore
from cpsl.data.legends import write_legend
from cpsl.data.predictions import ColorStore, LabelIdStore
from cpsl.data.views import render_label
from cpsl.geometry import View
from cpsl.metrics import ConfusionMatrix
from cpsl.models import SegmentationNetwork
from cpsl.scores import Scores
from cpsl.training import Precision, Process, autocast, logger, start_process

SCORED = 100
"""Most images, evenly spaced, whose label-free scores are computed."""

MIRRORED = 5
"""One of this many images is evaluated again, mirrored: a fifth more time."""

MIRRORED_AT_LEAST = 20
"""Images that are mirrored of small data sets, whose fifth would be a few images; all if there are fewer."""

SCORED_PIXELS = 8192
"""Pixels per image, about, that are scored, on a regular grid."""


@torch.inference_mode()
def evaluate(
    model: SegmentationNetwork,
    config: Config,
    process: Process,
    stores: Sequence[Any] = (),
    before: HardLabelStore | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    source: Tensor | None = None,
) -> dict[str, Any]:
    """Evaluates a model on all evaluation images, divided among the processes; `stores` receive the labels.

    `source` is the class distribution of the source's labels, with which that of the predictions is compared.

    Returns:
        `miou` and `iou` of each class in percent: None without labels, or if a class neither occurs nor is
        predicted. `miou_13` for the 16 classes of SYNTHIA. `label_pixels` of each class in the labels, and
        ignored ones. Of the predictions, `class_frequency` and mean `confidence` in 0...1, and `changed`, the
        share of pixels that differ from those of the stage before. `scores` are those of `cpsl.scores`, which
        need no labels; `mirrored` images were predicted twice for them. `non_finite` is the number of pixels
        whose scores are NaN or infinite, which count as the first class.
    """
    dataset = evaluation_dataset(config)
    names = dataset.label_space.names
    for store in stores:
        refuse_foreign(store.folder, dataset.names)
    segmenter = Segmenter(model.eval(), dataset.label_space, config.views.full_size)
    predict = partial(segmenter.predict, scales=scales, flip=flip, allow_non_finite=True)
    confusion = ConfusionMatrix(len(names)).to(process.device)
    counts = torch.zeros(len(names), dtype=torch.int64, device=process.device)
    # Of confidence, images, changed shares, images with a prediction of the stage before, non-finite pixels,
    # and ignored pixels of labels.
    sums = torch.zeros(6, dtype=torch.float64, device=process.device)
    scores = LabelFreeScores(len(names), source, ["flip"]).to(process.device)
    scored = evenly_spaced(len(dataset), SCORED)
    wanted = max(math.ceil(len(dataset) / MIRRORED), MIRRORED_AT_LEAST)
    wanted = 0 if flip else wanted  # a mean with the mirror image is symmetric
    mirrored = {scored[i] for i in evenly_spaced(len(scored), wanted)}
    for index in share_of_rank(range(len(dataset)), process, "evaluation"):
        sample = dataset[index]
        sample = sample._replace(label=evaluation_label(sample.label, config))
        size = sample.image.shape[1:] if sample.label is None else sample.label.shape
        with autocast(process.device, config.precision):
            predicted = predict(sample.image, size=size)
            others = {}
            if index in mirrored:
                others["flip"] = _grid(predict(sample.image.flip(-1), size=size).scores.flip(-1))
        prediction = predicted.labels
        if index in scored:
            scores.update(_grid(predicted.scores), others)
        if sample.label is not None:
            confusion.update(prediction, sample.label.to(process.device))
            sums[5] += int((sample.label == IGNORE_INDEX).sum())
        counts += class_counts(prediction, len(names))
        sums[0] += predicted.grid_confidence
        sums[1] += 1
        sums[4] += predicted.non_finite
        if before is not None and sample.name in before:
            earlier = before.read(sample.name).to(process.device)
            if earlier.shape != prediction.shape:
                raise ValueError(
                    f"{sample.name}: the prediction in {before.folder} has another size: delete that folder"
                )
            sums[2] += (earlier != prediction).double().mean()
            sums[3] += 1
        for store in stores:
            store.write(sample.name, prediction.cpu())
    confusion.reduce()
    for tensor in (counts, sums):
        all_reduce_sum(tensor)
    metrics = {
        "miou": _percent(float(confusion.miou)),
        "iou": {name: _percent(float(iou)) for name, iou in zip(names, confusion.iou, strict=True)},
        "label_pixels": [*confusion.matrix.sum(dim=1).tolist(), int(sums[5])],
        "class_frequency": (counts / counts.sum().clamp_min(1)).tolist(),
        "confidence": float(sums[0] / sums[1]),
        "changed": float(sums[2] / sums[3]) if sums[3] > 0 else None,
        "scores": _as_numbers(scores.compute()),
        "mirrored": len(mirrored),
        "non_finite": int(sums[4]),
    }
    if metrics["non_finite"] and process.is_main:
        advice = "" if config.precision == "float32" else ": evaluate with --precision float32"
        logger.warning(
            f"Warning: the scores of {metrics['non_finite']} of {int(counts.sum())} pixels are not finite, "
            f"and count as {names[0]}{advice}"
        )
    if names == CITYSCAPES_16.names:
        of_13 = [names.index(name) for name in CITYSCAPES_13.names]
        metrics["miou_13"] = _percent(float(confusion.iou[of_13].nanmean()))
    return metrics


def read_metrics(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the metrics of the finished stages, in order; raises ValueError if a file is damaged."""
    results = {}
    for stage in METHODS[config.method]:
        path = config.output / stage / "metrics.json"
        if not path.exists():
            continue
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(metrics["iou"], dict) or not {"miou", "seconds"} <= metrics.keys():
                raise ValueError("entries are missing")
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to evaluate the stage again") from error
        results[stage] = metrics
    return results


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and restores the mode of each module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def evaluation_label(label: Tensor | None, config: Config) -> Tensor | None:
    """Returns a label (H, W) in the size in which predictions are compared with it."""
    size = config.views.evaluation_size
    if label is None or size is None or label.shape == size:
        return label
    return render_label(label, View.whole((label.shape[0], label.shape[1])).resized(size))


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Returns the indices of at most `wanted` of `count` items, evenly spaced.

    Example:
        >>> evenly_spaced(10, 4), evenly_spaced(2, 4)
        ([0, 2, 5, 7], [0, 1])
    """
    return [i * count // wanted for i in range(wanted)] if wanted < count else list(range(count))


def _grid(scores: Tensor) -> Tensor:
    """Returns the scores (1, K, h, w) of about `SCORED_PIXELS` pixels of an image, given (K, H, W)."""
    step = max(round(math.sqrt(scores[0].numel() / SCORED_PIXELS)), 1)
    return scores[None, :, step // 2 :: step, step // 2 :: step]


def _as_numbers(scores: Scores) -> dict[str, Any]:
    """Returns scores as they are stored; None where there are none, for example without a source."""
    flip = scores.agreements["flip"]
    values = {
        "entropy": scores.entropy,
        "information": scores.information,
        "density": scores.density,
        "flip_miou": flip.miou,
        "flip_agreement": flip.labels,
        "flip_divergence": flip.divergence,
        "class_divergence": scores.class_divergence,
        "class_variation": scores.class_variation,
    }
    numbers: dict[str, Any] = {name: _finite(float(value)) for name, value in values.items()}
    shares = [_finite(share) for share in scores.class_distribution.tolist()]
    return {**numbers, "class_distribution": shares, "non_finite": int(scores.non_finite)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


@dataclass(frozen=True)
class Arguments:
    """Computes the IoU on labeled images, and scores that need no labels.

    The images are those of --config, or of --images and --labels. With both, the folders are read with the
    settings of [evaluation] in the file, without one of [target].
    """

    weights: Location
    """A `model.pt` of a run, or a `.pkl` of the authors."""
    config: Annotated[tuple[str, ...], Field(json_schema_extra={"minItems": 1})] = ()
    """Recipe or TOML file with the data set and the classes, such as the config.toml of a run."""
    images: Location | None = None
    """Folder of images, searched recursively."""
    labels: Location | None = None
    """Folder of label images, named like the images."""
    ids: Ids = field(default_factory=dict)
    """Stored number or color to class, 255 to ignore; those of --config, or equal numbers, if omitted."""
    flip: bool = False
    """Average over the image and its mirror image."""
    scales: tuple[Positive, ...] = (1.0,)
    """Average over these multiples of the full size."""
    predictions: Location | None = None
    """Write the predictions into this folder, as PNGs of class indices."""
    label_ids: Location | None = None
    """Write the predictions into this folder, as PNGs of Cityscapes' label ids for its server."""
    colors: Location | None = None
    """Write the predictions into this folder, as PNGs in the colors of the classes."""
    network: str | None = None
    """MODULE:FUNCTION that builds the network, if the file contains a custom network."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "float32"
    """Precision of the network; the half precisions are mixed precision."""
    debug: bool = False
    """Show the traceback of errors."""


def prepare(arguments: Arguments) -> tuple[Config, Segmenter]:
    """Returns the settings of an evaluation, and the model.

    Classes, colors, size and range of values are those of the model where no file of --config sets them.
    """
    given = set[str]()
    config = read_layers(arguments.config, given)
    config = replace(config, device=arguments.device, precision=arguments.precision)
    if arguments.network:
        builder_option(arguments.network)
        config = replace(config, model=replace(config.model, network=arguments.network))
    if arguments.labels and not arguments.images:
        raise UsageError(f"--labels {arguments.labels} needs --images, the folder of the images")
    if not (arguments.images or config.evaluation.given or config.target.given):
        raise UsageError("cpsl evaluate needs --config FILE, or --images and, for the IoU, --labels")
    wanted = label_space(config) if "classes" in given else None
    segmenter = Segmenter.load(arguments.weights, wanted, build=custom_builder(config.model.network))
    classes = segmenter.classes
    config = replace(config, classes=classes.names, palette=config.palette or classes.palette)
    if "views.full_size" not in given:
        if segmenter.full_size is None:
            raise ValueError(
                f"{arguments.weights} does not store the size of its images: "
                "add --config, the run's config.toml, or a file that sets views.full_size"
            )
        config = replace(config, views=replace(config.views, full_size=segmenter.full_size))
    config = replace(config, target=_with_range(config.target, segmenter))
    if arguments.images or arguments.ids or config.evaluation.given:
        domain = _with_range(_evaluation(arguments, config), segmenter)
        config = replace(config, evaluation=domain)
    written = {"--predictions": arguments.predictions, "--label-ids": arguments.label_ids}
    written |= {"--colors": arguments.colors}
    refuse_overlaps(written, data_folders(config))
    refuse_results(written)
    return config, segmenter


def _with_range(domain: Domain, segmenter: Segmenter) -> Domain:
    """Returns the domain with the model's `value_range`, unless it has its own or is no folder of images."""
    unset = domain.dataset == "folder" and domain.value_range is None
    return replace(domain, value_range=segmenter.value_range) if unset else domain


def _evaluation(arguments: Arguments, config: Config) -> Domain:
    """Returns the domain of the images, with the settings of the files except for `ids` that are given.

    Settings of an evaluation without images of its own change those of the target.
    """
    domain = config.evaluation if config.evaluation.given else config.target
    if arguments.images:
        settings = {name: getattr(domain, name) for name in FOLDER_SETTINGS}
        evaluation = {name: getattr(config.evaluation, name) for name in FOLDER_SETTINGS}
        settings |= {name: value for name, value in evaluation.items() if value != getattr(Domain(), name)}
        domain = Domain(images=arguments.images, labels=arguments.labels, **settings)
    if not arguments.ids:
        return domain
    if domain.dataset == "folder" and domain.labels is None:
        raise UsageError("--ids gives classes to the values of labels: add --labels")
    return replace(domain, ids=arguments.ids, first_id=0)


def main(arguments: list[str]) -> None:
    """Runs `cpsl evaluate`."""
    options = parse_arguments(Arguments, arguments, "evaluate")
    with friendly_errors(options.debug), start_process(options.device) as process:
        config, segmenter = prepare(options)
        classes = label_space(config)
        model = for_inference(segmenter).to(process.device)
        stores: list[Any] = []
        if options.predictions:
            stores.append(HardLabelStore(options.predictions, classes.palette))
        if options.label_ids:
            stores.append(LabelIdStore(options.label_ids, classes))
        if options.colors:
            stores.append(ColorStore(options.colors, classes))
        try:
            metrics = evaluate(model, config, process, stores, scales=options.scales, flip=options.flip)
        except (OSError, ValueError) as error:
            if mentions(str(error), FOLDER_SETTINGS, (options.images, options.labels)):
                error.add_note("Put it below [evaluation] in a TOML file that --config names.")
            raise
        if process.is_main:
            name = options.weights.parent.name or "model"
            print(metrics_table({name: metrics}, classes.names))
            for gap in describe_gaps(metrics, classes.names):
                print(fit(f"Warning: {gap}", sys.stdout))
            print(fit(f"without labels: {describe_scores(metrics['scores'])}", sys.stdout))
            for store in stores:
                print(f"predictions in {store.folder}")
            if options.colors and (legend := write_legend(options.colors, classes)):
                print(f"colors: {legend}")
            if not stores:
                again = join(["evaluate", *arguments, "--colors", "colors"])
                print(
                    list_next({"write its predictions, in the colors of the classes": f"{program()} {again}"})
                )
