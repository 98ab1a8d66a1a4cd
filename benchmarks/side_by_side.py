"""Two runs on the same cores at the same time, next to one run alone, for three ways of waiting threads.

    python benchmarks/side_by_side.py --steps 20    # 6 minutes on two cores that nothing else uses

Prints seconds per step of the online method on generated streets, with the network of the demo. Processes and
threads are those of `cpsl adapt`: as many threads as cores, and one process for data.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

WAITING: dict[str, dict[str, str]] = {
    "as the command sets it": {},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin": {"OMP_WAIT_POLICY": "ACTIVE"},
}
"""Variables of OpenMP by what waiting threads do."""


def start(folder: Path, name: str, variables: dict[str, str], steps: int) -> subprocess.Popen[bytes]:
    """Starts a run on the streets in a folder, which the first one draws."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | variables
    options = {
        "output": folder / name,
        "source-only.iterations": 2,
        "online.iterations": steps,
        "source.root": folder / "game",
        "target.root": folder / "real",
        "evaluation.root": folder / "real",
        "source.streets": 16,
        "target.streets": 16,
        "evaluation.streets": 2,
    }
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "cpsl", "demo", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def seconds_per_step(folder: Path, names: list[str], variables: dict[str, str], steps: int) -> float:
    """Runs at the same time, and returns the mean of their seconds per step."""
    processes = [start(folder, name, variables, steps) for name in names]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a run failed, see above")
    measured = list[float]()
    for name in names:
        metrics = json.loads((folder / name / "online" / "metrics.json").read_text())
        measured.append(metrics["seconds_per_iteration"])
    return sum(measured) / len(measured)


def main() -> None:
    """Prints one row for each way of waiting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="steps of each run")
    steps = parser.parse_args().steps
    print(f"{'waiting threads':26}{'alone':>8}{'beside another':>16}{'ratio':>8}")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds_per_step(folder, ["drawing"], {}, steps=1)
        for row, (title, variables) in enumerate(WAITING.items()):
            alone = seconds_per_step(folder, [f"{row}_alone"], variables, steps)
            beside = seconds_per_step(folder, [f"{row}_a", f"{row}_b"], variables, steps)
            print(f"{title:26}{alone:8.2f}{beside:16.2f}{beside / alone:8.2f}", flush=True)


if __name__ == "__main__":
    main()
