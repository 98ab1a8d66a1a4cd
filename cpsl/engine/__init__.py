"""What every trainer shares: devices and processes, checkpoints, logs.

Needs the extra `cpsl[examples]`. Knows neither CPSL nor any data set.
"""

from importlib.util import find_spec

if missing := [name for name in ("tensorboard", "tqdm") if find_spec(name) is None]:
    raise ImportError(
        f"cpsl.engine needs {' and '.join(missing)}, which come with an extra: pip install 'cpsl[examples]', "
        "or pip install '.[examples]' in a clone"
    )

from cpsl.engine.cost import Cost, peak_memory, reset_peak_memory
from cpsl.engine.files import load, only_run_in, remove_partial_files, save, write_text
from cpsl.engine.log import (
    ScalarLog,
    logger,
    progress,
    read_scalars,
    start_logging,
    text_table,
)
from cpsl.engine.loop import TrainingLoop
from cpsl.engine.optimization import (
    Optimization,
    Precision,
    RepeatedSGD,
    autocast,
    trainable,
)
from cpsl.engine.process import Process, local_gradients, start_process, unwrap
from cpsl.engine.stopping import STOPPED_EXIT_CODE, exit_when_stopped

__all__ = [
    "STOPPED_EXIT_CODE",
    "Cost",
    "Optimization",
    "Precision",
    "Process",
    "RepeatedSGD",
    "ScalarLog",
    "TrainingLoop",
    "autocast",
    "exit_when_stopped",
    "load",
    "local_gradients",
    "logger",
    "only_run_in",
    "peak_memory",
    "progress",
    "read_scalars",
    "remove_partial_files",
    "reset_peak_memory",
    "save",
    "start_logging",
    "start_process",
    "text_table",
    "trainable",
    "unwrap",
    "write_text",
]
