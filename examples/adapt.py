"""The whole pipeline: all stages in order, then a report.

    python examples/adapt.py --config examples/configs/demo.toml
    torchrun --nproc_per_node=4 examples/adapt.py --config examples/configs/gta5_to_cityscapes.toml

What is finished is skipped; what was stopped goes on where it was. Each stage can run alone: warmup.py,
pseudo_labels.py, self_label.py, distill.py take the same settings.
"""

import json
from functools import partial
from shlex import quote

from check import check, look_ahead
from config import Config, parse
from cpsl.engine import Process, exit_when_stopped, logger, start_process, write_text
from distill import PREVIOUS, distill
from domains import label_space
from pseudo_labels import describe_target
from report import metrics_table, write_report
from report_data import collect
from self_label import self_label
from stage import begin_run, friendly_errors, read_metrics, run_stage, stages_of
from warmup import warm_up


def adapt(config: Config, process: Process) -> None:
    """Runs every stage that is not finished."""
    stages = stages_of(config)
    if "source_only" in stages:
        run_stage("source_only", partial(warm_up, stage="source_only"), config, process)
    if "warmup" in stages:
        run_stage("warmup", warm_up, config, process)
        describe_target(config, process)
    if "self_label" in stages:
        run_stage("self_label", self_label, config, process)
    for stage, previous in PREVIOUS.items():
        if stage in stages:
            run_stage(stage, partial(distill, stage=stage, previous=previous), config, process)


def conclude(config: Config, process: Process) -> None:
    """Writes `metrics.json` and `report.html`, and says what there is; of one process alone."""
    shown = ("miou", "miou_13", "iou", "seconds")
    kept = {
        stage: {key: values[key] for key in shown if key in values}
        for stage, values in read_metrics(config).items()
    }
    write_text(config.output / "metrics.json", json.dumps(kept, indent=1))
    write_report(collect(config, process), config.output / "report.html")
    logger.info(metrics_table(kept, label_space(config).names))
    logger.info(
        f"\nIn {config.output}: report.html to look at, metrics.json to compute with, "
        "distill_2/model.pt is the adapted model."
        "\nTo use it: python examples/predict.py --weights "
        f"{quote(str(config.output / 'distill_2' / 'model.pt'))} --input IMAGES --output RESULTS"
    )
    if config.target.streets:
        logger.info("To adapt to images of your own: docs/your_data.md.")


def main(config: Config) -> None:
    """Runs, or checks, what the settings say."""
    if config.check:
        with (
            friendly_errors(config.debug),
            exit_when_stopped(),
            start_process(config.device) as process,
        ):
            check(config, process)
        return
    with begin_run(config) as process:
        if problems := look_ahead(config, process):
            raise SystemExit("\n".join(problems))
        adapt(config, process)
    if process.is_main:
        with friendly_errors(config.debug), exit_when_stopped():
            conclude(config, process)


if __name__ == "__main__":
    main(parse(Config))
