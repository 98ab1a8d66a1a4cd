"""`cpsl check`: data, weights and settings before a run, and its time, memory and disk space."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from cpsl._internal.interrupts import STOPPED_EXIT_CODES
from cpsl.app.checking.hints import describe_files, propose
from cpsl.app.checking.images import warn_of_images
from cpsl.app.checking.overlap import warn_of_overlap
from cpsl.app.checking.picture import write_contact_sheet
from cpsl.app.checking.settings import (
    FOLDER,
    Opened,
    advice,
    check_weights,
    initial_weights,
    open_domains,
    refuse_output_among_data,
    unset_folders,
    validate,
)
from cpsl.app.checking.words import class_shares, describe_kinds, find_warnings, summary
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.data_record import changed_data
from cpsl.app.datasets import domains, draw_streets, file_workers, label_space
from cpsl.app.dry_run import dry_run, table
from cpsl.app.errors import describe_error, friendly_errors
from cpsl.app.networks import describe_network
from cpsl.app.run import changed_settings
from cpsl.app.source_sampling import describe_sources, named_sources, rare_class_sampling
from cpsl.app.usage import program, require_one_process
from cpsl.app.words import plural
from cpsl.data import DatasetCheck, check_dataset
from cpsl.training import Process, logger, progress, start_logging, start_process
from cpsl.training.checkpoints import write_text
from cpsl.training.log import stop_logging
from cpsl.training.signals import exit_when_stopped


def check(config: Config, process: Process) -> None:
    """Reads all data, loads all weights, runs some iterations of each stage, and lists all problems.

    Raises:
        SystemExit: There are problems; the message is their number.
    """
    draw_streets(config)
    opened = open_domains(config)
    problems = validate(config, process, opened)
    problems += check_weights(config)
    network = list[str]()
    if not problems:
        try:
            network.append(describe_network(config, process))
        except Exception as error:  # of any library
            problems.append(f"model.network {config.model.network}: {describe_error(error)}")
        starts = [f"{name} = {weights}" for name, weights, _ in initial_weights(config)]
        network.append(f"initial weights: {', '.join(starts)}")
    if changed := changed_settings(config):
        problems.append(changed)
    if not problems and (changed := changed_data(config, opened.datasets)):
        problems.append(changed)
    path = config.output / FOLDER / "problems.txt"
    path.unlink(missing_ok=True)  # of an earlier check
    data = _check_data(config, process, opened)
    problems += data.problems
    for problem in problems:
        logger.error(problem)
    if data.complete:
        write_text(path, "".join(f"{problem}\n" for problem in data.complete))
        logger.error(f"All problems of files ({len(data.complete)}): {path}")
    advised = [] if problems else advice(config, opened.datasets)
    warnings = data.warnings + [f"Warning: {line}" for line in advised]
    for line in warnings:
        logger.warning(line)
    if config.more_sources and not problems:
        _log_sources(config, opened, data.results)
    for line in network:
        logger.info(line)
    # Without its data the dry run cannot start; another known problem may stop it as well.
    failed = [] if opened.problems else _check_cost(config, process, report=not problems)
    for problem in failed:
        logger.error(problem)
    if count := len(problems) + len(failed):
        raise SystemExit(f"{plural(count, 'problem')}, described above")
    but = f", but {plural(len(warnings), 'warning')} above" if warnings else ""
    logger.info(f"no problems{but}")


class _Data(NamedTuple):
    """What was found in the data."""

    problems: list[str]  # one text for each kind
    complete: list[str]  # one line for each problem of a file
    warnings: list[str]
    results: dict[str, DatasetCheck]  # by the name of their domain


def _log_sources(config: Config, opened: Opened, results: dict[str, DatasetCheck]) -> None:
    """Logs the share of each source in the samples."""
    sources = {name: opened.datasets[name] for name in named_sources(config)}
    sampling = None
    if config.views.rare_class_temperature:
        sampling = rare_class_sampling(config, {name: results[name].image_counts for name in sources})
    for name, described in describe_sources(config, sources, sampling).items():
        logger.info(f"{name}: {described}")


def _check_data(config: Config, process: Process, opened: Opened) -> _Data:
    """Reads all images and labels, and draws some."""
    problems, complete = list[str](), list[str]()
    results, named = dict[str, DatasetCheck](), domains(config)
    try:
        classes = label_space(config)
    except ValueError:
        return _Data([], [], [], {})  # already reported
    for name, domain in named.items():
        dataset = opened.datasets.get(name)
        if dataset is None:  # already reported
            if proposal := propose(name, domain, classes):
                logger.info(proposal)
            continue
        for line in describe_files(name, dataset):
            logger.info(line)
        show = partial(progress, title=name, process=process, total=len(dataset))
        results[name] = result = check_dataset(dataset, show, workers=file_workers(config, len(dataset)))
        logger.info(summary(name, result))
        if result.examples:
            picture = config.output / FOLDER / f"{name.replace(' ', '_')}.png"
            write_contact_sheet(picture, dataset, result)
            logger.info(f"  as read: {picture}")
        kinds = {finding.kind for finding in result.findings}
        rotated = dataset if "orientation" in kinds else None
        wrong = kinds & {"label", "values", "orientation"}
        proposal = propose(name, domain, classes, rotated) if wrong else ""
        if proposal:
            logger.info(proposal)
        problems += describe_kinds(name, domain, result, classes, proposed=bool(proposal))
        complete += [f"{name}: {problem}" for problem in result.problems]
        if name == "target" or f"{name}.labels" in unset_folders(config):
            continue
        if not result.problems and not int(result.counts.sum()):
            reason = "all pixels of all labels are ignored" if result.labeled else "no image has a label"
            problems.append(f"{name}: {reason}")
    if shares := class_shares(results, classes):
        logger.info(shares)
    warnings = [
        *find_warnings(results, named, classes),
        *warn_of_overlap(opened.datasets, named),
        *warn_of_images(opened.datasets, results, named),
    ]
    return _Data(problems, complete, warnings, results)


def _check_cost(config: Config, process: Process, report: bool) -> list[str]:
    """Logs the time, memory and disk space that the run needs; returns the problems.

    An error of the dry run is reported as a problem only with `report`.
    """
    try:
        parts = dry_run(config, process)
    except torch.OutOfMemoryError as error:
        return [
            f"out of memory: {str(error).splitlines()[0]} "
            "Try --precision bfloat16, more --gradient-accumulation-steps or a smaller --views.crop."
        ]
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code in STOPPED_EXIT_CODES:
            raise  # by the user
        return [f"the dry run fails: {describe_error(error)}"] if report else []
    needed, free = sum(part.disk for part in parts), shutil.disk_usage(config.output).free
    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "CPU"
    logger.info(
        f"{table(parts)}\nSteps of labels and of the evaluation are images. "
        f"Measured with one process on this machine ({device}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {config.precision}). N processes need about 1/N of the time.\n"
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
    require_one_process("check")
    refuse_output_among_data(config)
    with (
        friendly_errors(config.debug),
        exit_when_stopped(),
        start_process(config.device) as process,
        _temporary(config.output),
        TemporaryDirectory() as folder,
        ExitStack() as stack,
    ):
        start_logging(Path(folder), process)
        stack.callback(stop_logging)
        check(config, process)
        logger.info(f"Next:\n  {program()} {shlex.join(['adapt', *arguments])}")
