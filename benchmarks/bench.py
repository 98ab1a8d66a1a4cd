"""How fast the pieces and a full step are, beside the authors' release and what the machine allows.

    make bench          # python benchmarks/bench.py, a quarter of an hour on two cores

"release" are milliseconds of the authors' release on a machine with 2 cores; "reach" what this project set
out to reach; "bound" below what this machine cannot come: bytes over the pace of a copy, multiplications over
that of a matrix product or of its best convolution, or decoding alone.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import growth
import pieces
import step
from machine import survey
from table import HEAD, line


@dataclass(frozen=True)
class Arguments:
    """Measures all of it."""

    data: Path = Path("runs/paper_scale_streets")
    """Where generated images of the data sets' sizes are drawn, unless they are there."""
    iterations: int = 4
    """Full steps of each way; the first is not counted."""


def main(arguments: Arguments) -> None:
    """Prints the table, the parts of the step, and how the cost grows with the work."""
    pieces.draw(arguments.data)
    machine = survey(torch.device("cpu"))
    print(f"{machine}\n\n{HEAD}")
    for row in pieces.rows(machine, arguments.data):
        print(line(row), flush=True)
    splits = []
    for row, split in step.rows(arguments.iterations):
        print(line(row), flush=True)
        splits.append(split)
    size = pieces.soft_label_size()
    print(f"\nsoft labels of an image on disk: {size:.2f} MB (release: 2.5 MB, aim: 0.5)")
    print("\n".join(["", step.PARTS_HEAD, *splits, ""]))
    growth.main()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
