"""Execution of a run: starts, resumes or skips its stages, trains and evaluates them."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from cpsl._internal.durations import describe_duration
from cpsl._internal.files import check_sums
from cpsl._internal.randomness import derive_seed
from cpsl.app.class_shares import source_distribution
from cpsl.app.config import METHODS, STAGES, Config
from cpsl.app.curves import result_by_title
from cpsl.app.data_record import evaluation_version
from cpsl.app.datasets import draw_streets
from cpsl.app.errors import describe_changes, describe_error, friendly_errors
from cpsl.app.evaluate import evaluate, read_metrics
from cpsl.app.networks import build_model, custom_builder, load_model, save_model
from cpsl.app.run_record import record_session
from cpsl.app.selection import describe_collapses, earlier_metrics, summarize
from cpsl.app.settings import flatten, read_toml, to_toml
from cpsl.data import HardLabelStore
from cpsl.training import Cost, Process, logger, start_logging, start_process
from cpsl.training.checkpoints import exclusive_run, remove_partial_files, write_text
from cpsl.training.log import write_result
from cpsl.training.signals import exit_when_stopped

FREE_SETTINGS = ("output", "device", "workers", "checkpoint_every", "trace_non_finite", "debug")
"""Settings that may change when a run is resumed, for example on another machine."""

RESULTS = ("checkpoint.pt*", "metrics.json", "labels/*")
"""Files in the folder of a stage that depend on the settings and are not computed again."""


def run_stage(stage: str, train: Callable[[Config, Process], Cost], config: Config, process: Process) -> None:
    """Trains and evaluates a stage, unless it is finished; only evaluates it if the evaluation data changed.

    `train` writes `model.pt` into the folder of the stage. It is not called if the settings name a file with
    the model.
    """
    folder, version = config.output / stage, evaluation_version(config)
    trained = (folder / "metrics.json").exists() and _is_intact(folder / "model.pt")
    if trained:
        earlier = read_metrics(config)[stage]
        if earlier.get("evaluation_data") == version:
            logger.info(f"{stage}: already finished{_evaluated(earlier)}")
            return
    process.barrier()  # before rank 0 writes, all have read
    number = config.stages.index(stage) + 1
    title = f"stage {number} of {len(config.stages)}: {stage}"
    if trained:
        logger.info(f"{title}: evaluated again, not trained again")
        cost = Cost(*(earlier.get(name, 0) for name in Cost._fields))
    elif init_from := getattr(config.init_from, stage):
        logger.info(f"{title}: uses the model {init_from}")
        cost = Cost()
        if process.is_main:
            save_model(folder / "model.pt", load_model(config, init_from), config)
    else:
        logger.info(title)
        # Random initial weights depend on the seed alone, and are the same on every rank.
        torch.manual_seed(derive_seed(config.seed, stage))
        cost = train(config, process)
    if process.is_main:  # also of images that are no longer there
        shutil.rmtree(folder / "predictions", ignore_errors=True)
    process.barrier()
    model = build_model(config, folder / "model.pt").to(process.device)
    stages = METHODS[config.method]
    index = stages.index(stage)
    before = HardLabelStore(config.output / stages[index - 1] / "predictions") if index else None
    stores, source = [HardLabelStore(folder / "predictions")], source_distribution(config)
    metrics = evaluate(model, config, process, stores, before, source=source)
    if process.is_main:
        metrics["collapses"] = describe_collapses(metrics, earlier_metrics(config, stage), config, source)
        result = {**metrics, **cost._asdict(), "evaluation_data": version}
        write_text(folder / "metrics.json", json.dumps(result, indent=1))
        iterations = config.settings_of(stage).iterations
        write_result(folder, f"{number} {stage}, result", iterations, result_by_title(metrics))
        labeled = "no labels" if metrics["miou"] is None else f"mIoU {metrics['miou']:.1f}"
        logger.info(
            f"{stage}: {labeled}, trained in {describe_duration(cost.seconds)}, "
            f"peak memory {cost.peak_memory / 1e9:.1f} GB"
        )
        if metrics["collapses"]:
            logger.warning(f"{stage}: {summarize(metrics['collapses'])}")
    process.barrier()


def _evaluated(metrics: dict[str, Any]) -> str:
    return "" if metrics["miou"] is None else f", mIoU {metrics['miou']:.1f}"


def _is_intact(model: Path) -> bool:
    try:
        check_sums(model)
    except (OSError, BadZipFile) as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({describe_error(error)})"
        logger.warning(f"{model} is {problem}: the stage runs again")
        return False
    return True


@contextmanager
def begin_run(config: Config, arguments: Sequence[str] = ()) -> Iterator[Process]:
    """Begins or resumes a run: processes, log, the settings in its folder, generated data.

    `arguments` are those of the command `cpsl`, for the record.

    Raises:
        SystemExit: An error with a short message, also if the folder holds a run with other settings.
    """
    with (
        friendly_errors(config.debug),
        exit_when_stopped(),
        start_process(config.device) as process,
        exclusive_run(config.output) if process.is_main else nullcontext(),
    ):
        start_logging(config.output, process)
        if process.is_main:
            remove_partial_files(config.output)
            if changed := changed_settings(config):
                raise SystemExit(changed)
            try:
                custom_builder(config.model.network)  # a wrong name ends the run before scenes are generated
            except ValueError as error:
                raise SystemExit(f"model.network: {error}") from error
            write_text(config.output / "config.toml", to_toml(config))
            if not all((config.output / stage / "metrics.json").exists() for stage in config.stages):
                record_session(config.output, arguments, process)
            draw_streets(config)
        process.barrier()
        yield process


def changed_settings(config: Config) -> str:
    """Returns how settings differ from those of the run in their folder, "" if they do not.

    Before the first result any setting may still change. Those of the evaluation may change later as well, if
    it selects no weights: finished stages are then evaluated again.
    """
    path = config.output / "config.toml"
    if not path.exists() or not _has_results(config.output):
        return ""
    before, now = flatten(read_toml(path)), flatten(tomllib.loads(to_toml(config)))
    free = set(FREE_SETTINGS)
    if config.select_checkpoint == "last":
        names = before.keys() | now.keys()
        free |= {name for name in names if name.startswith("evaluation.")} | {"views.evaluation_size"}
    return describe_changes(path, "a run with other settings", before, now, free)


def _has_results(folder: Path) -> bool:
    """Returns whether a run has results of its settings; a network from a file does not depend on them."""
    patterns = [f"{stage}/{name}" for stage in STAGES for name in RESULTS]
    return any(any(folder.glob(pattern)) for pattern in [*patterns, "pseudo_labels/soft/*"])
