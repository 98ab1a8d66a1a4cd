"""Speed of the components and of a full step, next to the authors' code and the limits of this machine.

    make bench          # python benchmarks/bench.py, a quarter of an hour on two cores

"authors" are milliseconds of the authors' code on a machine with 2 cores, "target" those that this project
aims at, "bound" the roofline lower bound of this machine: bytes moved / copy bandwidth, or operations / the
rate of its best matrix product or convolution; for a training sample, decoding alone.
"""

import subprocess
import sys

import growth
import pieces
import scale
import step
from measure import Row, timing


def import_row() -> Row:
    """Measures `import cpsl` in new processes, relative to `import torch` in the same process."""
    clock = "from time import perf_counter as t; a = t(); import torch; b = t(); import cpsl; c = t(); "
    command = [sys.executable, "-c", clock + "print(b - a, c - a)"]
    printed = [subprocess.check_output(command) for _ in range(5)]
    torch_alone, both = zip(*(map(float, times.split()) for times in printed), strict=True)
    target, row = timing([*torch_alone]).median * 1.25, timing([*both])
    note = f"{1.25 * row.median / target:.2f} torch (1.25)"
    return Row("import cpsl", row, "", 1e3 * target, None, note)


def main() -> None:
    """Prints the table, the parts of the step, the growth of the cost, and lists of many files."""
    pieces.main()
    print(import_row(), end="\n\n", flush=True)
    step.main()
    print()
    growth.main()
    print()
    scale.main()


if __name__ == "__main__":
    main()
