"""Looks for problems before a run of days: every image, every label, what the model starts from."""

from functools import partial
from pathlib import Path

import torch

from config import Config
from cpsl.data import check_dataset
from cpsl.engine import Process, logger, progress, start_logging
from domains import draw_streets, evaluation_dataset, source_dataset, target_dataset

OPEN = {"source": source_dataset, "target": target_dataset, "evaluation": evaluation_dataset}


def check(config: Config) -> None:
    """Reads all data once and lists all problems.

    Raises:
        SystemExit: There are problems; the last line says how many.
    """
    process = Process(torch.device("cpu"))
    start_logging(config.output, process)
    draw_streets(config)
    problems = look_ahead(config, process)
    for name in _domains(config):
        try:
            dataset = OPEN[name](config)
        except (OSError, ValueError, SystemExit):
            continue  # look_ahead has listed it
        read = partial(progress, title=name, process=process, total=len(dataset))
        result = check_dataset(dataset, read)
        sizes = ", ".join(f"{n} of {w}x{h}" for (h, w), n in sorted(result.sizes.items())[:5])
        logger.info(f"{name}: {result.images} images ({sizes}), {result.labelled} with labels")
        for label, count in zip(dataset.label_space.names, result.counts.tolist(), strict=True):
            if result.labelled:
                logger.info(f"  {label:20} {100 * count / max(int(result.counts.sum()), 1):7.3f} %")
        problems += [f"{name}: {problem}" for problem in result.problems]
    for problem in problems:
        logger.error(problem)
    if problems:
        raise SystemExit(f"{len(problems)} problem(s)")
    logger.info("no problems")


def look_ahead(config: Config, process: Process) -> list[str]:
    """Lists what would stop a run, perhaps after days, as far as it shows without reading images.

    Args:
        config: Settings.
        process: The batches are shared out among its peers.
    """
    problems = []
    for name in _domains(config):
        try:
            OPEN[name](config)
        except (OSError, ValueError, SystemExit) as error:
            problems.append(f"{name}: {error}")
    for stage, start, words in (
        ("source_only", config.source_only.start, ("imagenet", "random")),
        ("warmup", config.warmup.start, ("imagenet", "random", "source_only")),
        ("distill", config.distill.student, ("previous", "random")),
    ):
        if start not in words and not Path(start).exists():
            problems.append(
                f"{stage}: there is no file {start}, nor is it one of {', '.join(words)}"
            )
    if config.model.imagenet_file and not config.model.imagenet_file.exists():
        problems.append(f"model.imagenet_file: there is no file {config.model.imagenet_file}")
    parts = process.world_size * config.accumulate
    for stage in ("source_only", "warmup", "self_label", "distill"):
        batch_size = getattr(config, stage).batch_size
        if batch_size < 1 or batch_size % parts:
            problems.append(
                f"{stage}.batch_size {batch_size} must be a multiple of processes "
                f"({process.world_size}) times accumulate ({config.accumulate})"
            )
    return problems


def _domains(config: Config) -> list[str]:
    return [name for name in OPEN if name != "evaluation" or config.evaluation.given]
