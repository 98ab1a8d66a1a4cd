"""Check of settings and weights, without reading images."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cpsl._internal.files import in_full
from cpsl.app.config import METHODS, PREVIOUS, STAGES, Authors, Config
from cpsl.app.datasets import (
    LABEL_SETTINGS,
    domains,
    label_space,
    micro_batches,
    open_dataset,
    size_of_source,
)
from cpsl.app.domain import Domain
from cpsl.app.errors import describe_error
from cpsl.app.networks import build_model, custom_builder, load_model
from cpsl.app.sizes import fit_crop, is_same_shape, median_shape, size_at_width
from cpsl.app.source_sampling import named_sources
from cpsl.app.stages import trained_stages
from cpsl.app.words import plural
from cpsl.data import SegmentationDataset
from cpsl.training import Process, logger

FOLDER = "check"
"""Folder of pictures and of the list of problems, in that of the run, which does not read it."""

MOST_WARMUP = 0.2
"""Share of a stage up to which it is long enough for the warm-up of its learning rate."""


class Opened(NamedTuple):
    """The data sets of a run."""

    datasets: dict[str, SegmentationDataset]  # by the name of their domain
    problems: dict[str, str]  # of the domains that cannot be opened


ROLES = {"source": "labeled images", "target": "unlabeled images", "evaluation": "labeled target images"}
"""What the images of a domain are."""


def unset_folders(config: Config) -> dict[str, str]:
    """Returns the missing settings of folders, with what to do about each."""
    found = dict[str, str]()
    labels_alone = {"evaluation": config.evaluation} if config.evaluation.labels else {}
    for name, domain in (domains(config) | labels_alone).items():
        role = name.partition(" ")[0]
        needed = {"root": f"{domain.dataset}, as unpacked"}
        if domain.dataset == "folder":
            needed = {"images": f"the {ROLES[role]}"}
            if role == "source" and trained_stages(config):
                needed["labels"] = "their labels"
        for option, what in needed.items():
            if getattr(domain, option) is None:
                setting = f"{name}.{option}"
                where = f"under [{name}] or with --{setting} FOLDER"
                if name.startswith("source "):
                    where = "in its table [[source]]"
                found[setting] = f"{setting} is not set: name the folder of {what}, in your file {where}"
    return found


def open_domains(config: Config) -> Opened:
    """Opens all data sets once, which searches their folders."""
    opened = Opened({}, {})
    for name, domain in domains(config).items():
        try:
            opened.datasets[name] = open_dataset(config, domain)
        except (OSError, ValueError) as error:
            opened.problems[name] = describe_error(error)
    return opened


def refuse_output_among_data(config: Config) -> None:
    """Raises SystemExit, before anything is written, if the run would lie in a folder of images or labels."""
    for name, domain in domains(config).items():
        for option in ("images", "labels"):
            folder = getattr(domain, option)
            if folder and (config.output / FOLDER).resolve().is_relative_to(folder.resolve()):
                raise SystemExit(
                    f"output {config.output} is inside {name}.{option} {folder}, where results would be "
                    "read as data: choose another --output"
                )


def validate(config: Config, process: Process, opened: Opened | None = None) -> list[str]:
    """Returns the problems that can be detected without reading images."""
    try:
        label_space(config)
    except ValueError as error:
        return [f"classes, palette: {error}"]
    opened = opened or open_domains(config)
    unset = unset_folders(config)
    problems = list(unset.values())
    if problems:
        problems[-1] += "\n`cpsl adapt` without options shows the smallest file"
    for name, domain in domains(config).items():
        if name in opened.problems and not {f"{name}.images", f"{name}.root"} & unset.keys():
            problems.append(f"{name}: {opened.problems[name]}")
        if name in ("target", "evaluation") and (domain.weight or domain.from_target or domain.size):
            problems.append(f"{name}: weight, from_target and size are settings of sources")
    unweighted = [name for name, source in named_sources(config).items() if source.weight is None]
    if 0 < len(unweighted) < len(config.sources):
        problems.append(
            f"{', '.join(unweighted)}: weight is not set, though it is in other sources: "
            "set it in each [[source]], or in none"
        )
    for name, weights, words in initial_weights(config):
        if str(weights) not in words and not Path(weights).is_file():
            known = f", and it is not one of {', '.join(words)}" if words else ""
            problems.append(f"{name}: there is no file {in_full(Path(weights))}{known}")
    starts = [str(weights) for _, weights, words in initial_weights(config) if words]
    if config.model.weights and starts and "pretrained" not in starts:
        problems.append(
            f"model.weights: {config.model.weights} is not read, since stages start from random weights or "
            'other files: set start = "pretrained"'
        )
    try:
        custom_builder(config.model.network)
    except ValueError as error:
        problems.append(f"model.network: {error}")
    for stage in STAGES:
        if stage not in METHODS[config.method] and getattr(config.init_from, stage):
            problems.append(f'init_from.{stage} is not read: method = "{config.method}" has no such stage')
    if config.method != "paper" and config.authors != Authors():
        problems.append('authors deviates from the paper: set method = "paper"')
    aligned = config.model.network.startswith("deeplabv2:")
    for switch in () if aligned else ("repeat_backbone_steps", "rectify_features"):
        if getattr(config.authors, switch):
            problems.append(f'authors.{switch} needs model.network = "deeplabv2:NAME", the authors\' network')
    for stage in dict.fromkeys("distill" if s in PREVIOUS else s for s in trained_stages(config)):
        settings = getattr(config, stage)
        try:
            micro_batches(config, settings.batch_size, process)
        except ValueError as error:
            problems.append(f"{stage}.{error}")
        if config.authors.repeat_backbone_steps and settings.optimizer.name != "sgd":
            problems.append(f'authors.repeat_backbone_steps needs {stage}.optimizer.name = "sgd"')
    if config.select_checkpoint == "best" and not (config.evaluate_every and config.evaluation.given):
        problems.append(
            'select_checkpoint = "best" needs evaluate_every above 0 and labeled images in evaluation'
        )
    return problems


def advice(config: Config, datasets: Mapping[str, SegmentationDataset]) -> list[str]:
    """Returns warnings about settings that are valid but probably not intended.

    `datasets` are those of the domains by name.
    """
    return [
        *_enlarged_target(config, datasets["target"]),
        *_distorted_sources(config, datasets),
        *_long_warmup(config),
        *_unused_label_settings(config),
    ]


def _enlarged_target(config: Config, target: SegmentationDataset) -> Iterator[str]:
    height, width = target.image(0).shape[1:]
    full_height, full_width = config.views.full_size
    if full_height <= 1.5 * height or full_width <= 1.5 * width:
        return
    crop = fit_crop((height, width))
    factor = full_height * full_width / (height * width)
    yield (
        f"Target images of {height}x{width} are enlarged to views.full_size {full_height}x{full_width}, "
        f"which needs {factor:.0f} times the time and memory. For their own size:\n"
        f"  --views.full-size {height} {width} --views.crop {crop[0]} {crop[1]} "
        f"--views.width {width}"
    )


def _distorted_sources(config: Config, datasets: Mapping[str, SegmentationDataset]) -> Iterator[str]:
    """Yields the folders of source images that are resized to another shape: all sources have one size."""
    for name, source in named_sources(config).items():
        shape = median_shape(datasets[name]) if source.dataset == "folder" else None
        height, width = size_of_source(config, source)
        if shape is None or is_same_shape(shape, (height, width)):
            continue
        kept = size_at_width(shape, width)
        setting = f"size = [{kept[0]}, {kept[1]}]  # of this [[source]]"
        if not config.more_sources:
            setting = f"--views.source-size {kept[0]} {kept[1]}"
        yield (
            f"{name}: images of {shape[0]}x{shape[1]} are distorted, since they are resized to "
            f"{height}x{width}. For their own shape:\n  {setting}"
        )


def _long_warmup(config: Config) -> Iterator[str]:
    online = config.online
    if "online" in trained_stages(config) and online.warmup_iterations > MOST_WARMUP * online.iterations:
        yield (
            f"The learning rate of the stage online rises for {online.warmup_iterations} of its "
            f"{plural(online.iterations, 'iteration')} (online.warmup_iterations). For a twentieth of them:\n"
            f"  --online.warmup-iterations {online.iterations // 20}"
        )


def _unused_label_settings(config: Config) -> Iterator[str]:
    for name, domain in domains(config).items():
        unused = [option for option in LABEL_SETTINGS if getattr(domain, option) != getattr(Domain(), option)]
        if domain.dataset == "folder" and domain.labels is None and unused:
            yield f"{name}: without labels, there is no effect of {', '.join(unused)}"


def initial_weights(config: Config) -> Iterator[tuple[str, str | Path, tuple[str, ...]]]:
    """Yields settings that name weights: name, value, and the keywords allowed in place of a file."""
    trained = trained_stages(config)
    if "source_only" in trained:
        yield "source_only.start", config.source_only.start, ("pretrained", "random")
    if "warmup" in trained:
        yield "warmup.start", config.warmup.start, ("pretrained", "random", "source_only")
    if "distill_1" in trained or "distill_2" in trained:
        yield "distill.student", config.distill.student, ("previous", "pretrained", "random")
    if "online" in trained:
        yield "online.start", config.online.start, ("pretrained", "random", "source_only")
    for stage in config.stages:
        if path := getattr(config.init_from, stage):
            yield f"init_from.{stage}", path, ()
    if config.model.weights:
        yield "model.weights", config.model.weights, ()


def check_weights(config: Config) -> list[str]:
    """Loads the initial weights of all stages; returns the problems."""
    problems = []
    for name, weights, _ in initial_weights(config):
        if weights == "random":
            logger.info(f"{name}: random weights")
        if weights != "pretrained" and not Path(weights).is_file():
            continue  # a keyword, or already reported
        if name == "model.weights":
            continue  # loaded as "pretrained"
        try:
            if name.startswith("init_from"):
                load_model(config, Path(weights))
            else:
                build_model(config, str(weights))
            logger.info(f"{name}: {weights} loads")
        except (OSError, ValueError, TypeError, ImportError) as error:
            hint = " (model.weights)" if weights == "pretrained" else ""
            problems.append(f"{name}: {describe_error(error)}{hint}")
    return problems
