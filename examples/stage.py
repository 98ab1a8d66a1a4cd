"""One stage of a run: begun, resumed or skipped, trained, evaluated."""

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from config import Config, parse, to_toml
from cpsl.data import HardLabelStore
from cpsl.engine import (
    Cost,
    Process,
    exit_when_stopped,
    logger,
    only_run_in,
    remove_partial_files,
    start_logging,
    start_process,
    write_text,
)
from cpsl.files import check_sums
from cpsl.randomness import derive_seed
from domains import draw_streets, label_space
from evaluate import evaluate
from networks import build_model, load_model, save_model
from settings_file import read_toml

Train = Callable[[Config, Process], Cost]

STAGES = ("source_only", "warmup", "self_label", "distill_1", "distill_2")
"""The stages in their order; the folder of each in a run has its name."""

# Settings that another machine may need and that do not change what is computed.
FREE_SETTINGS = ("device", "workers", "checkpoint_every", "check", "debug")


def stages_of(config: Config) -> tuple[str, ...]:
    """Returns the stages of a run: all, or from the last one on whose model is given."""
    given = [number for number, stage in enumerate(STAGES) if getattr(config.given, stage)]
    return STAGES[given[-1] :] if given else STAGES


def run_stage(stage: str, train: Train, config: Config, process: Process) -> None:
    """Trains and evaluates a stage, unless that was done before.

    Args:
        stage: Name of the stage and of its folder in the run.
        train: Trains, writes `model.pt` into the folder and returns what it took; not called where the
            settings give the model.
        config: Settings.
        process: This process.
    """
    folder = config.output / stage
    if (folder / "metrics.json").exists() and _is_whole(folder / "model.pt"):
        logger.info(f"{stage}: finished before")
        return
    logger.info(f"{stage}: begins")
    given = getattr(config.given, stage)
    if given:
        logger.info(f"{stage}: the model is {given}")
        cost = Cost()
        if process.is_main:
            model = load_model(given, label_space(config).names)
            save_model(folder / "model.pt", model, config)
    else:
        # Weights that start at random are those of the seed, and the same on every rank.
        torch.manual_seed(derive_seed(config.seed, stage))
        cost = train(config, process)
    process.barrier()
    model = build_model(config, folder / "model.pt").to(process.device)
    predictions = HardLabelStore(folder / "predictions")
    metrics = evaluate(model, config, process, [predictions], _predictions_before(stage, config))
    if process.is_main:
        write_text(folder / "metrics.json", json.dumps({**metrics, **cost._asdict()}, indent=1))
        miou = metrics["miou"]
        result = "no labels" if miou is None else f"mIoU {miou:.1f}"
        logger.info(
            f"{stage}: {result}, {cost.seconds:.0f} s of training, "
            f"peak memory {cost.peak_memory / 1e9:.1f} GB"
        )
    process.barrier()


def _is_whole(model: Path) -> bool:
    """Returns whether a model is there and undamaged; without it a stage is not finished."""
    try:
        check_sums(model)
    except FileNotFoundError:
        logger.warning(f"{model} is gone: it is made again")
        return False
    except (OSError, BadZipFile) as error:
        logger.warning(f"{model} is damaged ({error}): it is made again")
        return False
    return True


@contextmanager
def begin_run(config: Config) -> Iterator[Process]:
    """Begins a run, or goes on with one: processes, log, the settings noted in its folder.

    Errors that a person can act on end the program with one line; `debug` shows where they come from.

    Yields:
        This process.

    Raises:
        SystemExit: Something is wrong, for example the folder holds a run with other settings.
    """
    with (
        friendly_errors(config.debug),
        exit_when_stopped(),
        start_process(config.device) as process,
        only_run_in(config.output) if process.is_main else nullcontext(),
    ):
        start_logging(config.output, process)
        if process.is_main:
            remove_partial_files(config.output)
            _note_settings(config)
            draw_streets(config)
        process.barrier()
        yield process


@contextmanager
def friendly_errors(debug: bool = False) -> Iterator[None]:
    """Turns errors about data, files, settings and numbers into one line each."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        if debug:
            raise
        message, notes = str(error) or type(error).__name__, getattr(error, "__notes__", [])
        if "in DataLoader worker" in message:  # torch puts the worker's traceback before its error
            message = message.rpartition(f"\n{type(error).__name__}: ")[2].strip()
        elif "DataLoader worker" in message:  # it was killed, most often for want of memory
            notes = [
                *notes,
                "Fewer --workers take less memory; with --workers 0 errors are plainer.",
            ]
        raise SystemExit(
            "\n".join([f"error: {message}", *notes, "--debug True shows where it was raised"])
        ) from None


def main(stage: str, train: Train) -> None:
    """Runs one stage as a program of its own."""
    config = parse(Config)
    with begin_run(config) as process:
        run_stage(stage, train, config, process)


def _note_settings(config: Config) -> None:
    if changed := changed_settings(config):
        raise SystemExit(changed)
    write_text(config.output / "config.toml", to_toml(config))


def changed_settings(config: Config) -> str:
    """Says how settings differ from those of the run in their folder; nothing if they do not."""
    noted = config.output / "config.toml"
    # Before the first checkpoint a setting can still be mended without losing anything.
    if not noted.exists() or not any(config.output.glob("*/checkpoint.pt*")):
        return ""
    changed = _differences(read_toml(noted), tomllib.loads(to_toml(config)))
    if not changed:
        return ""
    return (
        f"{config.output} holds a run with other settings:\n  "
        + "\n  ".join(changed)
        + "\nChoose another folder with --output, or delete this one."
    )


def read_metrics(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the metrics of the stages that are finished, in their order."""
    paths = {stage: config.output / stage / "metrics.json" for stage in STAGES}
    return {stage: _read_metrics(path) for stage, path in paths.items() if path.exists()}


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(metrics["iou"], dict) or not {"miou", "seconds"} <= metrics.keys():
            raise ValueError("entries are missing")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: delete it, and the stage is evaluated again ({error})"
        ) from error
    return dict(metrics)


def _predictions_before(stage: str, config: Config) -> HardLabelStore | None:
    place = STAGES.index(stage)
    return HardLabelStore(config.output / STAGES[place - 1] / "predictions") if place else None


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted(before.keys() | now.keys()):
        if not prefix and key in (*FREE_SETTINGS, "output"):
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} then, {new} now")
    return lines
