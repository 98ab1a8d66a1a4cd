"""`cpsl adapt`: all stages, then the report. Finished stages are skipped, an interrupted one resumes."""

import json
from functools import partial

from cpsl.app.checking.images import warn_of_label_maps
from cpsl.app.checking.labels import warn_of_labels
from cpsl.app.checking.overlap import warn_of_overlap
from cpsl.app.checking.settings import advice, open_domains, refuse_output_among_data, validate
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.data_record import record_data
from cpsl.app.datasets import domains, label_space
from cpsl.app.errors import friendly_errors
from cpsl.app.evaluate import read_metrics
from cpsl.app.metrics_text import describe_gaps
from cpsl.app.pseudo_labels import describe_target
from cpsl.app.report import collect
from cpsl.app.reporting.page import write_report
from cpsl.app.results import next_steps, results_table, too_short, unkept_stage
from cpsl.app.run import begin_run, run_stage
from cpsl.app.selection import choose
from cpsl.app.stages import TRAINERS
from cpsl.app.unpredicted import describe_unpredicted
from cpsl.app.usage import program
from cpsl.training import Process, load, logger, save
from cpsl.training.checkpoints import write_text
from cpsl.training.signals import exit_when_stopped


def adapt(config: Config, process: Process) -> None:
    """Runs all unfinished stages."""
    for stage in config.stages:
        run_stage(stage, partial(TRAINERS[stage], stage=stage), config, process)
        if stage == "warmup":
            describe_target(config, process)


def conclude(config: Config, process: Process) -> None:
    """Writes `model.pt`, `metrics.json` and `report.html`, logs the results; on the main process only.

    `model.pt` is that of the stage which `choose` determines without labels.
    """
    keys = ("miou", "miou_13", "iou", "seconds", "scores", "collapses")
    complete = read_metrics(config)
    metrics = {
        stage: {key: values[key] for key in keys if key in values} for stage, values in complete.items()
    }
    write_text(config.output / "metrics.json", json.dumps(metrics, indent=1))
    chosen, reason = choose(metrics)
    model = config.output / "model.pt"
    save(model, load(config.output / chosen / "model.pt"))
    report = collect(config, process)
    write_report(report, config.output / "report.html")
    logger.info(f"\n{results_table(complete, report.classes, chosen)}\n")
    if gaps := describe_gaps(complete[chosen], report.classes):
        logger.warning("\n".join([*(f"Warning: {gap}" for gap in gaps), ""]))
    unlabeled = complete[chosen]["miou"] is None
    if unlabeled and (missed := describe_unpredicted(complete[chosen], report.source_labels, report.classes)):
        logger.warning(f"{missed}\n")
    if warning := too_short(config):
        logger.warning(f"{warning}\n")
    unkept = unkept_stage(config, complete, chosen)
    of_model = f"Model: {model}, from {chosen}: {reason}"
    logger.info("\n".join(filter(None, [of_model, unkept, f"\n{next_steps(config, report.longer)}"])))
    if config.target.streets:
        logger.info(f"  adapt to your own images:\n    {program()} adapt")


def main(arguments: list[str], command: str = "adapt", base: tuple[str, ...] = ()) -> None:
    """Runs `cpsl adapt`."""
    config = parse(arguments, command, base)
    refuse_output_among_data(config)
    with begin_run(config, [command, *arguments]) as process:
        opened = open_domains(config)
        if problems := validate(config, process, opened):
            raise SystemExit("\n".join(problems))
        if process.is_main:
            found = opened.datasets, domains(config)
            warnings = [*warn_of_label_maps(*found), *warn_of_overlap(*found)]
            warnings += warn_of_labels(*found, label_space(config))
            for line in [*advice(config, opened.datasets), *warnings]:
                logger.warning(line)
            record_data(config)
        process.barrier()
        adapt(config, process)
    if process.is_main:
        with friendly_errors(config.debug), exit_when_stopped():
            conclude(config, process)
