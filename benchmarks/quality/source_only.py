"""Trains and evaluates the source-only network of a run, and nothing else: `cpsl adapt` without adaptation.

python benchmarks/quality/source_only.py --config FILE
"""

import sys
from functools import partial

from cpsl.app.command_line import parse
from cpsl.app.data_record import record_data
from cpsl.app.run import begin_run, run_stage
from cpsl.app.stages import TRAINERS


def main(arguments: list[str]) -> None:
    """Trains with the settings of a command line like that of `cpsl adapt`."""
    config, stage = parse(arguments), "source_only"
    with begin_run(config) as process:
        record_data(config)
        run_stage(stage, partial(TRAINERS[stage], stage=stage), config, process)


if __name__ == "__main__":
    main(sys.argv[1:])
