"""Looks for problems before a run of days, and says what it would take."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from config import Config
from cpsl.data import check_dataset
from cpsl.engine import (
    STOPPED_EXIT_CODE,
    Process,
    logger,
    progress,
    start_logging,
    write_text,
)
from domains import draw_streets, evaluation_dataset, label_space, source_dataset, target_dataset
from networks import build_model, load_model
from rehearse import rehearse, table
from stage import changed_settings, stages_of

TOLD = 10  # of one domain, in the terminal: one wrong setting can make every label a problem
OPEN = {"source": source_dataset, "target": target_dataset, "evaluation": evaluation_dataset}


def check(config: Config, process: Process) -> None:
    """Reads all data once, loads all weights, runs some iterations of each stage, and lists all problems.

    Raises:
        SystemExit: There are problems; the last line says how many.
    """
    if process.world_size > 1:
        raise SystemExit("--check True is for one process: start it without torchrun")
    start_logging(config.output, process)
    draw_streets(config)
    (config.output / "problems.txt").unlink(missing_ok=True)  # of an earlier check
    problems = [*look_ahead(config, process), *_weights(config)]
    if changed := changed_settings(config):
        problems.append(changed)
    for name in _domains(config):
        try:
            dataset = OPEN[name](config)
        except (OSError, ValueError):
            continue  # look_ahead has listed it
        read = partial(progress, title=name, process=process, total=len(dataset))
        result = check_dataset(dataset, read)
        sizes = ", ".join(f"{n} of {w}x{h}" for (h, w), n in sorted(result.sizes.items())[:5])
        logger.info(f"{name}: {result.images} images ({sizes}), {result.labelled} with labels")
        for label, count in zip(dataset.label_space.names, result.counts.tolist(), strict=True):
            if result.labelled:
                logger.info(f"  {label:20} {100 * count / max(int(result.counts.sum()), 1):7.3f} %")
        problems += [f"{name}: {problem}" for problem in result.problems]
        if name != "target" and not result.labelled and not result.problems:
            problems.append(f"{name}: none of the images has a label")
        elif name != "target" and not result.counts.sum() and not result.problems:
            problems.append(f"{name}: all pixels of all labels are ignored")
    _tell(problems, config.output / "problems.txt")
    found = _measure(config, process, known=bool(problems))
    _tell(found, config.output / "problems.txt")
    problems += found
    if problems:
        raise SystemExit(f"{len(problems)} problem(s)")
    logger.info("no problems")


def _tell(problems: list[str], path: Path) -> None:
    """Says the first problems of each domain, and writes all into a file if there are more."""
    told: Counter[str] = Counter()
    for problem in problems:
        domain = problem.partition(":")[0]
        told[domain] += 1
        if told[domain] <= TOLD:
            logger.error(problem)
    if more := sum(max(count - TOLD, 0) for count in told.values()):
        write_text(path, "".join(f"{problem}\n" for problem in problems))
        logger.error(f"... and {more} more like these; {path} lists all")


def look_ahead(config: Config, process: Process) -> list[str]:
    """Lists what would stop a run, perhaps after days, as far as it shows without reading images.

    Args:
        config: Settings.
        process: The batches are shared out among its peers.
    """
    try:
        label_space(config)
    except ValueError as error:
        return [f"classes, palette: {error}"]
    problems = []
    for name in _domains(config):
        try:
            OPEN[name](config)
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
        problems += _overlaps(config, name)
    trained = [stage for stage in stages_of(config) if not getattr(config.given, stage)]
    for stage in stages_of(config):
        given = getattr(config.given, stage)
        if given and not given.is_file():
            problems.append(f"given.{stage}: there is no file {given}")
    for option, start, words in _starts(config, trained):
        if start not in words and not Path(start).is_file():
            problems.append(
                f"{option}: there is no file {start}, nor is it one of {', '.join(words)}"
            )
    if config.model.imagenet_file and not config.model.imagenet_file.is_file():
        problems.append(f"model.imagenet_file: there is no file {config.model.imagenet_file}")
    parts = process.world_size * config.accumulate
    for stage in dict.fromkeys("distill" if "distill" in stage else stage for stage in trained):
        settings = getattr(config, stage)
        if settings.batch_size < 1 or settings.batch_size % parts:
            problems.append(
                f"{stage}.batch_size {settings.batch_size} must be a multiple of processes "
                f"({process.world_size}) times accumulate ({config.accumulate})"
            )
        if settings.repeat_backbone_steps and settings.optimizer != "sgd":
            problems.append(f'{stage}.repeat_backbone_steps needs the optimizer "sgd"')
    if config.hand_on == "best" and not (config.evaluate_every > 0 and config.evaluation.given):
        problems.append(
            'hand_on = "best" needs evaluate_every above 0 and an [evaluation] with labels'
        )
    return problems


def _overlaps(config: Config, name: str) -> Iterator[str]:
    """Says whether what the run writes would be found among a domain's images or labels."""
    domain = getattr(config, name)
    for option in ("images", "labels"):
        folder = getattr(domain, option)
        if folder and config.output.resolve().is_relative_to(folder.resolve()):
            yield (
                f"output {config.output} lies in {name}.{option} {folder}: what the run writes would be "
                "taken for images; choose another --output"
            )


def _starts(config: Config, trained: list[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields option, value and the words that it knows, of what the trained stages start from."""
    if "source_only" in trained:
        yield "source_only.start", config.source_only.start, ("imagenet", "random")
    if "warmup" in trained:
        yield "warmup.start", config.warmup.start, ("imagenet", "random", "source_only")
    if "distill_1" in trained or "distill_2" in trained:
        yield "distill.student", config.distill.student, ("previous", "imagenet", "random")


def _weights(config: Config) -> list[str]:
    """Loads all weights that stages start from; returns what does not load."""
    problems = []
    trained = [stage for stage in stages_of(config) if not getattr(config.given, stage)]
    starts = {start: option for option, start, _ in _starts(config, trained)}
    for start, option in starts.items():
        if start in ("random", "previous", "source_only") or not (
            start == "imagenet" or Path(start).is_file()
        ):
            continue
        try:
            build_model(config, start)
            logger.info(f"{option}: {start} loads")
        except (OSError, ValueError) as error:
            hint = " (model.imagenet_file)" if start == "imagenet" else ""
            problems.append(f"{option}: {error}{hint}")
    for stage in stages_of(config):
        given = getattr(config.given, stage)
        if given and given.is_file():
            try:
                load_model(given, label_space(config).names)
                logger.info(f"given.{stage}: {given} loads")
            except ValueError as error:
                problems.append(f"given.{stage}: {error}")
    return problems


def _measure(config: Config, process: Process, known: bool) -> list[str]:
    """Rehearses the run and says what it would take; returns what would not fit.

    Args:
        config: Settings.
        process: This process.
        known: Whether problems are known, that may stop the rehearsal too.
    """
    logger.info("some iterations of each stage, to see what they take ...")
    try:
        parts = rehearse(config, process)
    except torch.OutOfMemoryError as error:
        return [
            f"the device's memory does not suffice: {str(error).splitlines()[0]} "
            "Try --precision bfloat16, a larger --accumulate, a smaller --views.crop."
        ]
    except (OSError, ValueError, RuntimeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == STOPPED_EXIT_CODE:
            raise  # by the user
        return [] if known else [f"a first iteration fails: {error}"]
    logger.info(table(parts))
    needed, free = sum(part.disk for part in parts), shutil.disk_usage(config.output).free
    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "CPU"
    logger.info(
        f"measured on this machine ({device}, {os.cpu_count()} cores) with one process; N processes that "
        f"share each batch take about 1/N of the hours\ndisk: {free / 1e9:.1f} GB are free"
    )
    if needed > free:
        return [
            f"the run needs about {needed / 1e9:.1f} GB in {config.output}, "
            f"{free / 1e9:.1f} GB are free: choose another --output"
        ]
    return []


def _domains(config: Config) -> list[str]:
    return [name for name in OPEN if name != "evaluation" or config.evaluation.given]
