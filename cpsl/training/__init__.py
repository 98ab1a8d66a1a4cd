"""Training loops: processes and devices, optimization, checkpoints, logs.

Needs the extra `cpsl[train]`. Knows neither the method nor any data set.
"""

from importlib.util import find_spec

if missing := [name for name in ("tensorboard", "tqdm") if find_spec(name) is None]:
    raise ImportError(
        f"cpsl.training needs {' and '.join(missing)}: pip install 'cpsl[train]', or '.[train]' in a clone"
    )

from cpsl.training.checkpoints import load, save
from cpsl.training.cost import Cost
from cpsl.training.display import Position
from cpsl.training.log import logger, progress, read_scalars, start_logging
from cpsl.training.loop import TrainingLoop
from cpsl.training.optimization import Optimization, Precision, autocast
from cpsl.training.process import Process, start_process

__all__ = [
    "Cost",
    "Optimization",
    "Position",
    "Precision",
    "Process",
    "TrainingLoop",
    "autocast",
    "load",
    "logger",
    "progress",
    "read_scalars",
    "save",
    "start_logging",
    "start_process",
]
