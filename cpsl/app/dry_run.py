"""The cost of a run on this machine, measured on some real iterations of each stage."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from cpsl._internal.durations import describe_duration
from cpsl.app.config import PREVIOUS, Config, Distill, InitFrom, Online, SelfLabel, WarmUp
from cpsl.app.datasets import evaluation_dataset, micro_batches, target_dataset
from cpsl.app.evaluate import evaluate
from cpsl.app.networks import build_model, save_model
from cpsl.app.pseudo_labels import describe_target, label_target
from cpsl.app.stages import TRAINERS, trained_stages
from cpsl.data import HardLabelStore
from cpsl.training import Process, logger
from cpsl.training.log import text_table

ITERATIONS = 3
"""Iterations of each stage; the first is not counted."""

IMAGES = 2
"""Images that are labeled and evaluated."""

BYTES_PER_LABEL = 0.05
"""Size of a label map as PNG: 0.01 to 0.05 bytes per pixel for generated streets and frames of CamVid."""

Settings = TypeVar("Settings", WarmUp, SelfLabel, Distill, Online)


class Part(NamedTuple):
    """A stage or other work: seconds per iteration or image, and their number; bytes, 0 if not measured."""

    name: str
    seconds: float
    times: int
    peak_memory: int = 0
    disk: int = 0


def dry_run(config: Config, process: Process) -> list[Part]:
    """Runs some iterations of each stage in a temporary folder, from random weights, in one process.

    Of each batch it computes one micro-batch, and multiplies the time.
    """
    targets, evaluated = len(target_dataset(config)), len(evaluation_dataset(config))
    evaluations = len(config.stages)
    height, width = config.views.full_size
    label_map = int(BYTES_PER_LABEL * height * width)
    parts: list[Part] = []

    def label(name: str, images: int, passes: int, disk: int, run: Callable[[], object]) -> None:
        begin = time.perf_counter()
        run()
        seconds = (time.perf_counter() - begin) / min(IMAGES, images)
        parts.append(Part(name, seconds, passes * images, disk=disk))

    config.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".dry-run-", dir=config.output) as name, ExitStack() as stack:
        folder = Path(name)
        small = _shorten(config, folder, process)
        model = build_model(small, "random").to(process.device)
        logger.info("dry run: some iterations of each stage")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel("ERROR")
        for stage in ("warmup", "self_label", "distill_1"):
            save_model(folder / stage / "model.pt", model, small)
        for stage in trained_stages(config):
            if stage in PREVIOUS:
                store = HardLabelStore(folder / stage / "labels")
                run = partial(label_target, model, store, 0.5, small, process)
                label(f"labels for {stage}", targets, 1, targets * label_map, run)
            elif stage == "self_label":
                # At most one byte per class and position; flat areas compress to a third of it and less.
                soft = targets * -(-height // 8) * -(-width // 8) * model.num_classes
                label("pseudo labels", targets, 1, soft, partial(describe_target, small, process))
            cost = TRAINERS[stage](small, process, stage=stage)
            # The checkpoint before the last is kept as well.
            files = [*(folder / stage).glob("*.pt"), folder / stage / "checkpoint.pt"]
            disk = sum(file.stat().st_size for file in files) + evaluated * label_map
            settings = config.settings_of(stage)
            batches, _ = micro_batches(config, settings.batch_size, process)
            seconds, times = cost.seconds_per_iteration * batches, settings.iterations
            parts.append(Part(stage, seconds, times, cost.peak_memory, disk))
            if config.evaluate_every:
                evaluations += times // config.evaluate_every
        label("evaluation", evaluated, evaluations, 0, partial(evaluate, model, small, process))
    return parts


def table(parts: list[Part]) -> str:
    """Returns the cost of a run as a table of text.

    Example:
        >>> print(table([Part("warmup", 0.5, 90_000, 12 * 10**9, 2 * 10**9)]))
                 s per step    steps          time   memory GB   disk GB
        warmup         0.50   90,000   12 h 30 min        12.0       2.0
        total                          12 h 30 min        12.0       2.0
    """
    times = [part.seconds * part.times for part in parts]
    memory, disk = max(part.peak_memory for part in parts), sum(part.disk for part in parts)
    rows = [["", "s per step", "steps", "time", "memory GB", "disk GB"]]
    for part, needed in zip(parts, times, strict=True):
        sizes = (f"{size / 1e9:.1f}" if size else "" for size in (part.peak_memory, part.disk))
        rows.append([part.name, f"{part.seconds:.2f}", f"{part.times:,}", describe_duration(needed), *sizes])
    rows.append(["total", "", "", describe_duration(sum(times)), f"{memory / 1e9:.1f}", f"{disk / 1e9:.1f}"])
    return text_table(rows)


def _shorten(config: Config, folder: Path, process: Process) -> Config:
    """Returns settings of the same sizes with few iterations and images."""

    def short(settings: Settings) -> Settings:
        parts, _ = micro_batches(config, settings.batch_size, process)
        return replace(settings, iterations=ITERATIONS, batch_size=settings.batch_size // parts)

    return replace(
        config,
        output=folder,
        source=replace(config.source, max_images=4 * IMAGES),
        more_sources=tuple(replace(source, max_images=4 * IMAGES) for source in config.more_sources),
        target=replace(config.target, max_images=IMAGES),
        evaluation=replace(config.evaluation, max_images=IMAGES),
        source_only=short(replace(config.source_only, start="random")),
        warmup=short(replace(config.warmup, start="random")),
        self_label=short(config.self_label),
        distill=short(replace(config.distill, student="random")),
        online=short(replace(config.online, start="random")),
        init_from=InitFrom(),
        evaluate_every=0,
        select_checkpoint="last",
        gradient_accumulation_steps=1,
        checkpoint_every=ITERATIONS,
    )
