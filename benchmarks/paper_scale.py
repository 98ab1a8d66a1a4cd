"""Some iterations of each stage at the paper's sizes, on generated images of the data sets' sizes.

    python benchmarks/paper_scale.py
    python benchmarks/paper_scale.py --precision bfloat16 --iterations 100    # on a GPU

Prints seconds an iteration, peak memory and what the whole run would take. The networks' weights are random
and the images generated: neither changes what an iteration costs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from config import Config, parse  # noqa: E402
from cpsl.data import write_streets  # noqa: E402
from cpsl.engine import Precision, start_logging, start_process  # noqa: E402
from rehearse import rehearse, table  # noqa: E402


@dataclass(frozen=True)
class Arguments:
    """Runs some iterations of each stage at the paper's sizes."""

    recipe: Path = ROOT / "examples" / "configs" / "gta5_to_cityscapes.toml"
    """Settings of the run."""
    release: bool = False
    """Whether to compute as the authors' release does."""
    iterations: int = 2
    """Iterations of each stage; the first is not counted."""
    precision: Precision = "float32"
    """Of the networks."""
    accumulate: int = 4
    """Parts of each batch of 4 images, one after the other."""
    images: int = 8
    """Images of each data set that are drawn."""
    data: Path = Path("runs/paper_scale_streets")
    """Where they are drawn, unless they are there already."""


def main(arguments: Arguments) -> None:
    """Draws the images, runs the iterations, prints the table."""
    count, data = arguments.images, arguments.data
    write_streets(data / "gta5", layout="gta5", style="game", count=count, size=(1052, 1914))
    for split in ("train", "val"):
        write_streets(
            data / "cityscapes",
            layout="cityscapes",
            style="real",
            count=count,
            split=split,
            size=(1024, 2048),
        )
    files = ["--config", str(arguments.recipe)]
    if arguments.release:
        files += ["--config", str(ROOT / "examples" / "configs" / "release.toml")]
    options = {
        "source.dataset": "gta5",
        "source.root": data / "gta5",
        "target.root": data / "cityscapes",
        "evaluation.root": data / "cityscapes",
        "accumulate": arguments.accumulate,
        "precision": arguments.precision,
        "output": data / "run",
        "workers": 1,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    config = parse(Config, files + words)
    with start_process(config.device) as process:
        start_logging(config.output, process)
        parts = rehearse(config, process, arguments.iterations, whole=True)
        device = process.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {config.precision}, "
        f"batches of 4 in {config.accumulate} part(s)"
    )
    print(table(parts))


if __name__ == "__main__":
    main(tyro.cli(Arguments, config=(tyro.conf.FlagConversionOff,)))
