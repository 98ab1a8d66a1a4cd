"""What CPSL brings to a mean teacher, in four frameworks: mIoU on the target, over seeds.

    python examples/integrations/compare.py
    python examples/integrations/compare.py --only segformer --seeds 1

Both loops start from the same network, trained on the source, and see the same batches.
"""

import argparse
import copy
import importlib
import logging
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from streets import Streets, train_on_source

INTEGRATIONS = ("plain_smp", "segformer", "timm_backbone", "lightning_module")


def compare(name: str, streets: Streets, seed: int, start: int, iterations: int) -> list[float]:
    """Returns the mIoU, in percent, of the source-only network, the mean teacher, and the latter with CPSL.

    Args:
        name: Module of an integration.
        streets: Data of both domains.
        seed: Of weights and batches.
        start: Iterations on the source.
        iterations: Iterations of self-training.
    """
    integration = importlib.import_module(name)
    torch.manual_seed(seed)
    network = integration.Network()
    train_on_source(network, streets, start, seed)
    results = [streets.miou(network)]
    for cpsl in (False, True):
        torch.manual_seed(seed)
        student = copy.deepcopy(network)
        teacher = integration.adapt(student, streets.batches(iterations, seed), cpsl=cpsl)
        results.append(streets.miou(teacher))
    return results


def main() -> None:
    """Prints a line a seed, and a table of means and spreads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=INTEGRATIONS, default=INTEGRATIONS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=400, help="iterations on the source")
    parser.add_argument("--iterations", type=int, default=150, help="iterations of self-training")
    parser.add_argument("--streets", type=Path, default=Path("runs/integrations"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it has much to say
    warnings.filterwarnings("ignore", module="lightning")

    streets = Streets(arguments.streets)
    print("| Integration | Seed | Source only | Mean teacher | + CPSL |\n|---|---|---|---|---|")
    for name in arguments.only:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(compare(name, streets, seed, arguments.start, arguments.iterations))
            print(_row(name, str(seed), [f"{value:.1f}" for value in rows[-1]]), flush=True)
        if len(rows) > 1:
            columns = [_spread(column) for column in zip(*rows, strict=True)]
            print(_row(f"**{name}**", "mean", columns), flush=True)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _row(*cells: str | list[str]) -> str:
    flat = [part for cell in cells for part in ([cell] if isinstance(cell, str) else cell)]
    return f"| {' | '.join(flat)} |"


if __name__ == "__main__":
    main()
