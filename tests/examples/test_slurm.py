"""The job script starts processes that find each other, and queues a stopped run again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "adapt.sbatch"
# What stands for Slurm: so many tasks at once; srun leaves with the largest of their exit codes.
SRUN = """#!/bin/bash
[[ $1 == --wait=* ]] && shift
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
    tasks[task]=$!
done
largest=0
for pid in "${tasks[@]}"; do
    wait "$pid"
    code=$?
    ((code > largest)) && largest=$code
done
exit $largest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> scontrol.txt; fi
"""
PROGRAM = """
import sys
from pathlib import Path
from cpsl.engine import start_process
with start_process("cpu") as process:
    assert process.gather(process.rank) == [0, 1]
    Path(f"rank{process.rank}.txt").write_text(" ".join(sys.argv[1:]))
    code = CODE if process.rank == 1 else 0
sys.exit(code)
"""


@pytest.mark.parametrize("code", [1, 75])
def test_a_stopped_run_is_queued_again(tmp_path: Path, code: int) -> None:
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (tmp_path / "program.py").write_text(PROGRAM.replace("CODE", str(code)))
    (commands / "activate").write_text(f"export PATH={commands}:$PATH\n")
    python = f'#!/bin/bash\nshift\nexec {sys.executable} program.py "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    words = ["--config", "a file.toml"]
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        env={**os.environ, **slurm, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)] == [" ".join(words)] * 2
    requeued = tmp_path / "scontrol.txt"
    assert requeued.exists() == (code == 75)
    if code == 75:
        assert requeued.read_text().split() == ["requeue", slurm["SLURM_JOB_ID"]]
