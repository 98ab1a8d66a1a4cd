"""`cpsl report`: the report of a run, from the files in its folder and, if they exist, its images."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier, class_counts, prototype_similarity
from cpsl._internal.randomness import derive_seed
from cpsl.app.clusterings import self_label_clustering
from cpsl.app.command_line import CommandParser, read_layers
from cpsl.app.config import METHODS, Config
from cpsl.app.datasets import evaluation_dataset, label_space
from cpsl.app.errors import friendly_errors
from cpsl.app.evaluate import read_metrics
from cpsl.app.longer import longer_run
from cpsl.app.networks import build_model
from cpsl.app.pseudo_labels import read_start
from cpsl.app.reporting.compare import chosen_images
from cpsl.app.reporting.content import Clusters, Picture, Report, compared_stages
from cpsl.app.reporting.evidence import UnreadableDataError, gather, read_prediction, reading_data
from cpsl.app.reporting.facts import describe_adaptation, describe_run, describe_settings, iterations
from cpsl.app.reporting.page import write_report
from cpsl.app.selection import choose
from cpsl.app.settings import UsageError, to_toml
from cpsl.app.titles import STAGE_TITLES
from cpsl.app.usage import how_to_use, list_next, require_one_process
from cpsl.data import SegmentationDataset, whole_image
from cpsl.data.sample import files_of, read_label
from cpsl.methods.step import to_float
from cpsl.models import resize, segment
from cpsl.training import Process, autocast, load, read_scalars, start_process

EACH = 2
"""Images of the report that are among the best, of those in the middle, and among the worst."""


@torch.inference_mode()
def collect(config: Config, process: Process) -> Report:
    """Reads metrics, curves and predictions of a run, and rectifies the pseudo labels of some images."""
    classes, metrics = label_space(config), read_metrics(config)
    missing = tuple(stage for stage in config.stages if stage not in metrics)
    chosen, reason = choose(metrics, STAGE_TITLES)
    curves = {stage: _read_curves(config, stage) for stage in METHODS[config.method]}
    evidence = gather(config, compared_stages(list(metrics), chosen))
    shown = {
        evidence.comparison.images[i].name: choice
        for i, choice in chosen_images(evidence.comparison.images, EACH).items()
    }
    pictures, unreadable = _pictures(config, process, shown, evidence.changed)
    return Report(
        title=describe_adaptation(config),
        classes=classes.names,
        palette=classes.palette,
        metrics=metrics,
        curves={stage: of_stage for stage, of_stage in curves.items() if of_stage},
        pictures=pictures,
        config=to_toml(config),
        settings=describe_settings(config),
        chosen=chosen,
        reason=reason,
        selected=config.select_checkpoint,
        model=(config.output / "model.pt").as_posix(),
        finished=not missing and (config.output / "model.pt").exists(),
        missing=missing,
        seed=config.seed,
        iterations=iterations(config),
        longer=longer_run(config),
        comparison=evidence.comparison,
        data_sets=evidence.data_sets,
        source_labels=evidence.source_labels,
        shared=evidence.shared,
        unreadable=list(dict.fromkeys([*evidence.unreadable, *unreadable])),
        clustering=_clustering(config, process),
        facts=describe_run(config, chosen),
    )


def load_clustering(config: Config, process: Process) -> ClassBalancedPrototypeClustering:
    """Loads prototypes, bank and class distribution as they are after self-labeling."""
    path = config.output / "self_label" / "clustering.pt"
    state = load(path, process.device)
    try:
        # The bank is the share of rank 0, whatever the number of ranks was.
        settings = replace(config.self_label, bank_size=len(state["bank.features"]))
        config = replace(config, self_label=settings)
        clustering = self_label_clustering(config, *state["prototypes"].shape)
        clustering.load_state_dict(state)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not the clustering of this run: {error}") from error
    return clustering.to(process.device)


def _self_labeled(config: Config) -> bool:
    """Returns whether self-labeling ran in this run; its model may also come from a file."""
    return (config.output / "self_label" / "clustering.pt").exists()


def _clustering(config: Config, process: Process) -> dict[str, list[float]]:
    """Returns the class frequencies at the steps of self-labeling by their description."""
    if not _self_labeled(config):
        return {}
    clustering = load_clustering(config, process)
    bank = clustering.bank.features[clustering.bank.valid]
    scores = prototype_similarity(bank, clustering.prototypes)
    epsilon, iterations = clustering.epsilon, clustering.sinkhorn_iterations
    aligned = clustering.aligner(scores, epsilon=epsilon, iterations=iterations)
    nearest = class_counts(scores.argmax(dim=1), scores.shape[1]) / max(len(scores), 1)
    _, after_warm_up = read_start(config, clustering.prototypes.shape)
    return {
        "target predictions after warm-up": after_warm_up.tolist(),
        "class distribution after self-labeling": clustering.aligner.distribution.tolist(),
        "aligned assignments": aligned.mean(dim=0).tolist(),
        "nearest prototypes, not aligned": nearest.tolist(),
    }


def _read_curves(config: Config, stage: str) -> dict[str, list[tuple[int, float]]]:
    rows = read_scalars(config.output / stage)
    given = ("iteration", "learning_rate")  # known from the settings
    names = dict.fromkeys(name for row in rows for name in row if name not in given)
    return {name: [(int(row["iteration"]), row[name]) for row in rows if name in row] for name in names}


def _pictures(
    config: Config, process: Process, chosen: dict[str, str], changed: frozenset[str]
) -> tuple[list[Picture], list[str]]:
    """Returns the pictures of images, given their names and choices, and why photographs are missing.

    Files that changed since the run are omitted: they are not those of its predictions and figures.
    """
    stages, unreadable = list(read_metrics(config)), list[str]()
    dataset: SegmentationDataset | None = None
    try:
        with reading_data():
            dataset = evaluation_dataset(config)
    except UnreadableDataError as error:
        unreadable.append(str(error))
    pictures = []
    for name, choice in chosen.items():
        image = label = None
        try:
            if dataset is not None and name in dataset.names:
                with reading_data():
                    index = dataset.names.index(name)
                    if changed.isdisjoint(path.as_posix() for path in files_of(dataset, index) if path):
                        image, label = dataset.image(index), read_label(dataset, index)
        except UnreadableDataError as error:
            unreadable.append(str(error))
        predictions = {stage: read_prediction(config, stage, name) for stage in stages}
        pictures.append(Picture(name, image, label, predictions, choice=choice))
    return [*_with_clusters(config, process, pictures)], unreadable


def _with_clusters(config: Config, process: Process, pictures: list[Picture]) -> Iterable[Picture]:
    """Adds pseudo labels and clusters to the pictures, if self-labeling ran in this run."""
    if not _self_labeled(config):
        return pictures
    files = (config.output / "warmup" / "model.pt", config.output / "self_label" / "teacher.pt")
    warmup, teacher = (build_model(config, file).to(process.device).eval() for file in files)
    clustering = load_clustering(config, process)
    settings = config.self_label
    rectifier = PseudoLabelRectifier(settings.temperature, settings.confidence_threshold)

    def rectify(picture: Picture) -> Picture:
        if picture.image is None:
            return picture
        image = to_float(whole_image(picture.image, config.views.full_size)[None].to(process.device))
        with autocast(process.device, config.precision):
            soft = segment(warmup, image).logits.float().softmax(dim=1)
            logits, features = segment(teacher, image)
        rectified = rectifier(soft, features, clustering.ema_prototypes)
        torch.manual_seed(derive_seed(config.seed, f"report {picture.name}"))  # samples pixels
        options = {"logits": logits} if config.authors.logit_assignments else {}
        clusters = clustering(features, rectified.labels, **options)
        size = picture.image.shape[1:]
        before = resize(soft, size, warmup.align_corners)[0].argmax(dim=0).cpu()
        after = resize(rectified.probabilities, size, warmup.align_corners)[0].cpu()
        similarity = prototype_similarity(features, clustering.prototypes)[0].cpu()
        return replace(
            picture,
            pseudo_labels={"before rectification": before, "after rectification": after.argmax(dim=0)},
            confidence=after.amax(dim=0),
            clusters=Clusters(
                similarity, clusters.indices.cpu(), clusters.assignments.cpu(), teacher.align_corners
            ),
        )

    return map(rectify, pictures)


def main(arguments: list[str]) -> None:
    """Runs `cpsl report`."""
    parser = CommandParser(
        "report",
        "Regenerates the report of a run, whose folder may have been moved. Images that cannot be read any "
        "more are omitted.",
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    options = parser.parse_args(arguments)
    require_one_process("report")
    if options.run is None:
        raise UsageError(how_to_use("report", ["the folder of a run"]))
    if not (options.run / "config.toml").is_file():
        raise UsageError(
            f"{options.run} is not a run: there is no file {options.run / 'config.toml'}; "
            "name the folder that a run had as --output"
        )
    config = replace(read_layers([str(options.run / "config.toml")]), output=options.run)
    with friendly_errors(options.debug), start_process(options.device) as process:
        if not read_metrics(config):
            raise UsageError(f"{options.run} has no finished stage to report")
        report = collect(config, process)
        write_report(report, options.run / "report.html")
        if not report.finished:
            print(f"{options.run} is not finished: the report is that of the stages so far", file=sys.stderr)
        if report.unreadable:
            omitted = "; ".join(report.unreadable)
            print(f"without data that cannot be read, or changed: {omitted}", file=sys.stderr)
        print(
            list_next(
                {"open the report in a browser, or send it on": quote(str(options.run / "report.html"))}
            )
        )
