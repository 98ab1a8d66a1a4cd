"""`cpsl check`: data, weights and settings before a run, and its time, memory and disk space."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cpsl.app.command_line import parse
from cpsl.app.config import METHODS, PREVIOUS, STAGES, Authors, Config, Domain
from cpsl.app.datasets import (
    domains,
    draw_streets,
    label_space,
    micro_batch_size,
    open_dataset,
    target_dataset,
)
from cpsl.app.dry_run import dry_run, table
from cpsl.app.errors import friendly_errors
from cpsl.app.networks import build_model, custom_builder, describe_network, load_model
from cpsl.app.run import changed_settings
from cpsl.app.source_sampling import describe_sources, named_sources
from cpsl.app.stages import trained_stages
from cpsl.data import check_dataset
from cpsl.training import Process, logger, progress, start_logging, start_process
from cpsl.training.checkpoints import write_text
from cpsl.training.signals import STOPPED_EXIT_CODE, exit_when_stopped

SHOWN = 10
"""Problems of one domain that are shown; one wrong setting can affect every label."""


def check(config: Config, process: Process) -> None:
    """Reads all data, loads all weights, runs some iterations of each stage, and lists all problems.

    Raises:
        SystemExit: There are problems; the message is their number.
    """
    if process.world_size > 1:
        raise SystemExit("cpsl check runs in one process: start it without torchrun")
    draw_streets(config)
    problems = validate(config, process)
    problems += _check_weights(config)
    if not problems:
        try:
            logger.info(describe_network(config, process))
        except Exception as error:  # of any library
            problems.append(f"model.network {config.model.network}: {error}")
        starts = [f"{name} = {weights}" for name, weights, _ in _initial_weights(config)]
        logger.info(f"initial weights: {', '.join(starts)}")
    if changed := changed_settings(config):
        problems.append(changed)
    if config.more_sources and not problems and not config.views.rare_class_temperature:
        sources = {name: open_dataset(config, source) for name, source in named_sources(config).items()}
        for name, described in describe_sources(config, sources).items():
            logger.info(f"{name}: {described}")
    for name, domain in domains(config).items():
        problems += _check_data(name, domain, config, process)
    for line in [] if problems else advice(config):
        logger.warning(line)
    path = config.output / "problems.txt"
    path.unlink(missing_ok=True)  # of an earlier check
    _report(problems, path)
    # A known problem may stop the dry run as well.
    problems += (failed := _check_cost(config, process, report=not problems))
    _report(failed, path)
    if problems:
        raise SystemExit(f"{len(problems)} problem(s)")
    logger.info("no problems")


def validate(config: Config, process: Process) -> list[str]:
    """Returns the problems that can be detected without reading images."""
    try:
        label_space(config)
    except ValueError as error:
        return [f"classes, palette: {error}"]
    problems = []
    for name, domain in domains(config).items():
        try:
            open_dataset(config, domain)
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
        if name in ("target", "evaluation") and (domain.weight or domain.from_target):
            problems.append(f"{name}: weight and from_target are settings of sources")
        for option in ("images", "labels"):
            folder = getattr(domain, option)
            if folder and config.output.resolve().is_relative_to(folder.resolve()):
                problems.append(
                    f"output {config.output} is inside {name}.{option} {folder}, where results would be "
                    "read as data: choose another --output"
                )
    for name, weights, words in _initial_weights(config):
        if str(weights) not in words and not Path(weights).is_file():
            known = f", and it is not one of {', '.join(words)}" if words else ""
            problems.append(f"{name}: there is no file {weights}{known}")
    starts = [str(weights) for _, weights, words in _initial_weights(config) if words]
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
            micro_batch_size(config, settings.batch_size, process)
        except ValueError as error:
            problems.append(f"{stage}.{error}")
        if config.authors.repeat_backbone_steps and settings.optimizer.name != "sgd":
            problems.append(f'authors.repeat_backbone_steps needs {stage}.optimizer.name = "sgd"')
    if config.select_checkpoint == "best" and not (config.evaluate_every and config.evaluation.given):
        problems.append(
            'select_checkpoint = "best" needs evaluate_every above 0 and labeled images in evaluation'
        )
    return problems


def advice(config: Config) -> list[str]:
    """Returns warnings about settings that are valid but probably not intended."""
    height, width = target_dataset(config).image(0).shape[1:]
    full_height, full_width = config.views.full_size
    if full_height <= 1.5 * height or full_width <= 1.5 * width:
        return []
    crop = [max(extent // 32 * 16, 16) for extent in (height, width)]
    factor = full_height * full_width / (height * width)
    return [
        f"Target images of {height}x{width} are enlarged to views.full_size {full_height}x{full_width}, "
        f"which needs {factor:.0f} times the time and memory. For their own size:\n"
        f"  --views.full-size {height} {width} --views.crop {crop[0]} {crop[1]} "
        f"--views.width {round(1.07 * width)}"
    ]


def _initial_weights(config: Config) -> Iterator[tuple[str, str | Path, tuple[str, ...]]]:
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


def _check_weights(config: Config) -> list[str]:
    """Loads the initial weights of all stages; returns the problems."""
    problems = []
    for name, weights, _ in _initial_weights(config):
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
            problems.append(f"{name}: {error}{hint}")
    return problems


def _check_data(name: str, domain: Domain, config: Config, process: Process) -> list[str]:
    """Reads all images and labels of a domain, logs sizes and class frequencies, and returns the problems."""
    try:
        dataset = open_dataset(config, domain)
    except (OSError, ValueError):
        return []  # already reported
    result = check_dataset(dataset, partial(progress, title=name, process=process, total=len(dataset)))
    sizes = ", ".join(f"{n} of {w}x{h}" for (h, w), n in sorted(result.sizes.items())[:5])
    logger.info(f"{name}: {result.images} images ({sizes}), {result.labeled} with labels")
    pixels = int(result.counts.sum())
    if result.labeled:
        for label, count in zip(dataset.label_space.names, result.counts.tolist(), strict=True):
            logger.info(f"  {label:20} {100 * count / max(pixels, 1):7.3f} %")
    problems = [f"{name}: {problem}" for problem in result.problems]
    if name != "target" and not problems and not pixels:
        reason = "all pixels of all labels are ignored" if result.labeled else "no image has a label"
        problems.append(f"{name}: {reason}")
    return problems


def _report(problems: list[str], path: Path) -> None:
    """Logs the first problems of each domain, and writes all into a file if there are more."""
    counts: Counter[str] = Counter()
    for problem in problems:
        domain = problem.partition(":")[0]
        counts[domain] += 1
        if counts[domain] <= SHOWN:
            logger.error(problem)
    if more := sum(max(count - SHOWN, 0) for count in counts.values()):
        write_text(path, "".join(f"{problem}\n" for problem in problems))
        logger.error(f"... and {more} more like these; {path} lists all")


def _check_cost(config: Config, process: Process, report: bool) -> list[str]:
    """Logs the time, memory and disk space that the run needs; returns the problems.

    An error of the dry run is reported as a problem only with `report`.
    """
    logger.info("dry run: some iterations of each stage")
    try:
        parts = dry_run(config, process)
    except torch.OutOfMemoryError as error:
        return [
            f"out of memory: {str(error).splitlines()[0]} "
            "Try --precision bfloat16, more --gradient-accumulation-steps or a smaller --views.crop."
        ]
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == STOPPED_EXIT_CODE:
            raise  # by the user
        return [f"the dry run fails: {error}"] if report else []
    needed, free = sum(part.disk for part in parts), shutil.disk_usage(config.output).free
    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "CPU"
    logger.info(
        f"{table(parts)}\nMeasured with one process on this machine ({device}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {config.precision}). N processes need about 1/N of the hours.\n"
        f"Free disk space: {free / 1e9:.1f} GB"
    )
    if needed <= free:
        return []
    return [
        f"the run needs about {needed / 1e9:.1f} GB in {config.output}, but only {free / 1e9:.1f} GB "
        "are free: choose another --output"
    ]


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents, and removes those afterwards that did not exist and are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in new:
            if not any(path.iterdir()):
                path.rmdir()


def main(arguments: list[str]) -> None:
    """Runs `cpsl check`."""
    config = parse(arguments, "check")
    with (
        friendly_errors(config.debug),
        exit_when_stopped(),
        start_process(config.device) as process,
        _temporary(config.output),
        TemporaryDirectory() as folder,
    ):
        start_logging(Path(folder), process)
        check(config, process)
