"""A run of seconds, and the command in this process."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from cpsl.__main__ import main
from cpsl.app.config import METHODS

STAGES = METHODS["paper"]
"""Stages of the run."""

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "cpsl"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SETTINGS = """
method = "paper"
workers = 0
checkpoint_every = 2
device = "cpu"
[views]
full_size = [64, 128]
crop = [48, 96]
width = 130
scale = [0.8, 1.2]
[model]
network = "deeplabv2:resnet_tiny"
feature_dim = 8
[source_only]
start = "random"
iterations = 3
batch_size = 2
freeze_batch_norm = false
[warmup]
start = "source_only"
iterations = 3
batch_size = 2
freeze_batch_norm = false
discriminator_width = 4
[self_label]
iterations = 4
batch_size = 2
bank_size = 256
samples_per_image = 32
[distill]
iterations = 3
batch_size = 2
student = "previous"
[online]
iterations = 4
batch_size = 2
warmup_iterations = 1
freeze_batch_norm = false
confidence_threshold = 0.06
masked_patch = 16
bank_size = 256
samples_per_image = 32
"""


def streets(folder: Path, source: int = 4, target: int = 4, evaluation: int = 4) -> str:
    """Returns the settings of generated domains in a folder, given their numbers of images."""
    text = ""
    for name, layout, split, count in (
        ("source", "gta5", "train", source),
        ("target", "cityscapes", "train", target),
        ("evaluation", "cityscapes", "val", evaluation),
    ):
        root = (folder / "streets" / layout).as_posix()
        text += f'[{name}]\ndataset = "{layout}"\nroot = "{root}"\nsplit = "{split}"\n'
        text += f"streets = {count}\nstreets_size = [64, 128]\n"
    return text


def write_settings(folder: Path, domains: str, settings: str = SETTINGS) -> Path:
    """Writes the file of settings of a tiny run."""
    path = folder / "settings.toml"
    general, rest = settings.split("[views]")
    path.write_text(f"{general}{domains}[views]{rest}", encoding="utf-8")
    return path


class Ended(NamedTuple):
    """How a command ended: its exit code and what it printed."""

    code: int
    text: str


def cpsl(*arguments: object) -> Ended:
    """Runs the command in this process."""
    printed = io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code or 0
    if isinstance(code, str):  # Python prints the message and exits with code 1
        printed.write(code)
        code = 1
    assert isinstance(code, int)
    return Ended(code, printed.getvalue())


def printed_commands(text: str) -> list[list[str]]:
    """Returns the options of the commands of this program in the last lines of another one."""
    return [shlex.split(line)[1:] for line in re.findall(r"^    (cpsl .*)$", text, re.M)]


def run(*command: object, timeout: float = 120) -> Ended:
    """Runs a command in a process of its own."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=timeout,
        check=False,
    )
    return Ended(done.returncode, done.stdout + done.stderr)
