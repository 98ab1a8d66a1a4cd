"""What a run would take on this machine, measured on a few real iterations of each stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from config import Config, Distill, Given, SelfLabel, WarmUp
from cpsl.data import HardLabelStore
from cpsl.engine import Cost, Process, logger, text_table
from distill import PREVIOUS, distill
from domains import evaluation_dataset, target_dataset
from evaluate import evaluate
from networks import build_model, save_model
from pseudo_labels import describe_target, label_target
from self_label import self_label
from stage import stages_of
from warmup import warm_up

IMAGES = 2
# PNGs of label maps take 0.01 to 0.05 bytes a pixel: the generated streets and the frames of CamVid.
BYTES_PER_LABEL = 0.05

Settings = TypeVar("Settings", WarmUp, SelfLabel, Distill)


class Part(NamedTuple):
    """A part of a run.

    Attributes:
        name: Of the stage, or what is done.
        seconds: For one iteration or image.
        times: Iterations or images.
        peak_memory: Bytes; 0 where it was not measured.
        disk: Bytes that it leaves in the run's folder.
    """

    name: str
    seconds: float
    times: int
    peak_memory: int
    disk: int


def rehearse(
    config: Config, process: Process, iterations: int = 3, whole: bool = False
) -> list[Part]:
    """Runs some iterations of each stage of a run in a folder of its own, which is removed afterwards.

    The networks start from random weights, which take as long as any.

    Args:
        config: Settings of the run, whose data sets must be there.
        process: This process, the only one.
        iterations: How many; the first is not counted.
        whole: Whether an accumulated batch is run as a whole, rather than one of its parts, whose time
            counts as often as there are parts.

    Raises:
        torch.OutOfMemoryError: A stage does not fit into the device's memory.
    """
    targets, evaluated = len(target_dataset(config)), len(evaluation_dataset(config))
    label_map = int(BYTES_PER_LABEL * config.views.full_size[0] * config.views.full_size[1])
    parts: list[Part] = []
    config.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".rehearsal-", dir=config.output) as folder, _quietly():
        small = _small(config, Path(folder), iterations, 1 if whole else config.accumulate)
        model = build_model(small, "random").to(process.device)
        for stage in ("warmup", "self_label", "distill_1"):
            save_model(small.output / stage / "model.pt", model, small)

        def train(stage: str, run: Callable[[], Cost]) -> int:
            """Adds a stage, and returns how often it is evaluated on the way."""
            cost = run()
            files = list((small.output / stage).glob("*.pt"))
            # The checkpoint before the last is kept as well.
            files.append(small.output / stage / "checkpoint.pt")
            disk = sum(file.stat().st_size for file in files) + evaluated * label_map
            settings = getattr(config, "distill" if stage in PREVIOUS else stage)
            seconds = cost.seconds_per_iteration * (1 if whole else config.accumulate)
            parts.append(Part(stage, seconds, settings.iterations, cost.peak_memory, disk))
            return settings.iterations // config.evaluate_every if config.evaluate_every else 0

        def label(name: str, images: int, disk: int, run: Callable[[], object]) -> None:
            begun = time.perf_counter()
            run()
            parts.append(Part(name, (time.perf_counter() - begun) / IMAGES, images, 0, disk))

        stages = stages_of(config)
        evaluations = len(stages)
        for stage in stages:
            if getattr(config.given, stage):
                continue
            if stage in PREVIOUS:
                store = HardLabelStore(small.output / stage / "labels")
                run = partial(label_target, model, store, 0.5, small, process)
                label(f"labels for {stage}", targets, targets * label_map, run)
                evaluations += train(
                    stage, partial(distill, small, process, stage, PREVIOUS[stage])
                )
            elif stage == "self_label":
                # At most a byte for each class and place; flat areas compress to a third of it and less.
                grid = -(-config.views.full_size[0] // 8) * -(-config.views.full_size[1] // 8)
                soft = targets * grid * model.num_classes
                label("pseudo labels", targets, soft, partial(describe_target, small, process))
                evaluations += train(stage, partial(self_label, small, process))
            else:
                evaluations += train(stage, partial(warm_up, small, process, stage))
        evaluation = partial(evaluate, model, small, process)
        label("evaluation", evaluated * evaluations, 0, evaluation)
    return parts


def table(parts: list[Part]) -> str:
    """Returns what a run would take as a table of text.

    Example:
        >>> print(table([Part("warmup", 0.5, 90_000, 12 * 10**9, 2 * 10**9)]))
                   s each    count   hours   memory GB   disk GB
        warmup       0.50   90,000    12.5        12.0       2.0
        together                      12.5        12.0       2.0
    """
    rows = [("", "s each", "count", "hours", "memory GB", "disk GB")]
    for part in parts:
        rows.append(
            (
                part.name,
                f"{part.seconds:.2f}",
                f"{part.times:,}",
                f"{part.seconds * part.times / 3600:.1f}",
                f"{part.peak_memory / 1e9:.1f}" if part.peak_memory else "",
                f"{part.disk / 1e9:.1f}" if part.disk else "",
            )
        )
    hours = sum(part.seconds * part.times for part in parts) / 3600
    memory = max(part.peak_memory for part in parts) / 1e9
    disk = sum(part.disk for part in parts) / 1e9
    rows.append(("together", "", "", f"{hours:.1f}", f"{memory:.1f}", f"{disk:.1f}"))
    return text_table(rows)


def _small(config: Config, folder: Path, iterations: int, parts: int) -> Config:
    """Returns settings of the same sizes with a few iterations and images, written to another folder.

    Args:
        config: Settings.
        folder: The other folder.
        iterations: How many.
        parts: One of so many parts of each batch is used.
    """

    def short(settings: Settings) -> Settings:
        return replace(settings, iterations=iterations, batch_size=settings.batch_size // parts)

    return replace(
        config,
        output=folder,
        source=replace(config.source, limit=4 * IMAGES),
        target=replace(config.target, limit=IMAGES),
        evaluation=replace(config.evaluation, limit=IMAGES),
        source_only=short(replace(config.source_only, start="random")),
        warmup=short(replace(config.warmup, start="random")),
        self_label=short(config.self_label),
        distill=short(replace(config.distill, student="random")),
        given=Given(),
        evaluate_every=0,
        hand_on="last",
        accumulate=config.accumulate // parts,
        checkpoint_every=iterations,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
