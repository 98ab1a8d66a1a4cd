"""A tiny project, and the command `cpsl` run on it in this process: what every fault starts from."""

import atexit
import contextlib
import io
import json
import shutil
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cpsl.__main__ import main
from cpsl._internal.interrupts import STOPPED_EXIT_CODES

STAGES = ("source_only", "warmup", "self_label", "distill_1", "distill_2")

SETTINGS = """
method = "paper"
output = "run"
workers = 0
checkpoint_every = 1
device = "cpu"
classes = ["road", "car", "sky"]
source = { images = "source/images", labels = "source/labels" }
target = { images = "target/images" }
evaluation = { images = "evaluation/images", labels = "evaluation/labels" }
model.network = "deeplabv2:resnet_tiny"
model.arguments = { feature_dim = 8, mean = [0, 0, 0], std = [1, 1, 1] }  # as the authors' networks
distill = { iterations = 2, batch_size = 1, confidence_threshold = 0.3 }
self_label = { iterations = 2, batch_size = 1, bank_size = 64, samples_per_image = 8 }
online.iterations = 2
online.batch_size = 1
online.freeze_batch_norm = false
online.masked_patch = 8
online.bank_size = 64
online.samples_per_image = 8
[views]
full_size = [32, 64]
crop = [16, 32]
width = 64
scale = [0.8, 1.2]
[source_only]
start = "random"
iterations = 2
batch_size = 1
freeze_batch_norm = false
[warmup]
start = "source_only"
iterations = 2
batch_size = 1
freeze_batch_norm = false
discriminator_width = 2
"""


def write_project(folder: Path) -> None:
    """Writes three domains of two images each, and the settings of a run of seconds, with relative paths."""
    random = np.random.default_rng(0)
    for domain in ("source", "target", "evaluation"):
        for part in ("images", "labels"):
            (folder / domain / part).mkdir(parents=True)
        for name in ("a", "b"):
            label = np.repeat(random.integers(0, 3, (32, 8), np.uint8), 8, axis=1)
            noise = random.integers(0, 40, (32, 64, 3), np.uint8)
            image = Image.fromarray(80 * label[:, :, None] + noise)
            image.save(folder / domain / "images" / f"{name}.png")
            Image.fromarray(label).save(folder / domain / "labels" / f"{name}.png")
    (folder / "settings.toml").write_text(SETTINGS, encoding="utf-8")


class RefusedError(Exception):
    """A command ended with a message and an exit code other than zero."""


def run(line: str) -> str:
    """Runs the command `cpsl` in this process and the current folder, with the project's settings.

    Args:
        line: Command and options, without spaces inside.

    Returns:
        What it wrote to the terminal.

    Raises:
        RefusedError: It ended with a message. A user would see any other error as a traceback.
    """
    name, *options = line.split()
    if name in ("adapt", "check", "evaluate"):
        options = ["--config", "settings.toml", *options]
    output = io.StringIO()
    torch.set_num_threads(1)  # more would only wait for each other
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
        try:
            main([name, *options])
        except SystemExit as ended:
            if ended.code in STOPPED_EXIT_CODES:
                raise  # the user stops the tests
            if ended.code:
                message = ended.code if isinstance(ended.code, str) else ""
                raise RefusedError(output.getvalue() + message) from None
    return output.getvalue()


@cache
def finished_project() -> Path:
    """Returns a project with an undisturbed run; it is made once and must not be changed."""
    folder = Path(tempfile.mkdtemp(prefix="cpsl-robustness-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_project(folder)
    with contextlib.chdir(folder):
        run("adapt")
    return folder


def copy_project(folder: Path, finished: bool) -> None:
    """Writes the project into a folder, with its finished run or without."""
    if finished:
        shutil.copytree(finished_project(), folder, dirs_exist_ok=True)
    else:
        write_project(folder)


def incomplete_files(folder: Path) -> set[str]:
    """Returns the files of runs that an interrupted write, or a dry run, has left."""
    found = [path for path in folder.glob("run*/**/.*") if path.name != ".lock"]
    for path in filter(Path.is_file, folder.glob("run*/**/*")):
        if (
            (path.name == "metrics.json" and read_json(path) is None)
            or (path.suffix == ".pt" and not zipfile.is_zipfile(path))
            or (path.suffix == ".html" and not path.read_bytes().rstrip().endswith(b"</html>"))
        ):
            found.append(path)
    return {str(path.relative_to(folder)) for path in found}


def read_json(path: Path) -> Any:
    """Reads a JSON file; None if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None
