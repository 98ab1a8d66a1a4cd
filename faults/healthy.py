"""A tiny healthy project, and the programs of `examples` run in this process: what the faults start from."""

import atexit
import contextlib
import io
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"

SETTINGS = """
output = "run"
workers = 0
checkpoint_every = 1
device = "cpu"
classes = ["road", "car", "sky"]
[source]
images = "source/images"
labels = "source/labels"
[target]
images = "target/images"
[evaluation]
images = "evaluation/images"
labels = "evaluation/labels"
[views]
full_size = [32, 64]
crop = [16, 32]
width = 64
scale = [0.8, 1.2]
[model]
backbone = "resnet_tiny"
feature_dim = 8
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
[self_label]
iterations = 2
batch_size = 1
bank_size = 64
samples_per_image = 8
[distill]
iterations = 2
batch_size = 1
confidence_threshold = 0.3
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


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
        code: Exit code: 0 if all went well.
        said: What it wrote to the terminal, and the message that it left with.
        error: What it raised instead of leaving; None if all went well or it left with a message.
    """

    code: int
    said: str
    error: BaseException | None


def run_program(name: str, *options: str) -> Ended:
    """Runs a program of `examples` as its user would, but in this process and the current folder."""
    said = io.StringIO()
    code, error = 0, None
    with (
        mock.patch.object(sys, "argv", [name, *options]),
        mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
    ):
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as left:
            if isinstance(left.code, str):
                said.write(left.code)
            code = 1 if isinstance(left.code, str) else left.code or 0
        except Exception as raised:  # the traceback that a user would see
            code, error = 1, raised
    return Ended(code, said.getvalue(), error)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Makes a folder the current one for a while."""
    with contextlib.chdir(folder):
        yield


@cache
def finished_project() -> Path:
    """Returns a project whose run nothing disturbed; made once, copy it."""
    folder = Path(tempfile.mkdtemp(prefix="cpsl-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_project(folder)
    with inside(folder):
        ended = run_program("adapt.py", "--config", "settings.toml")
    if ended.code:
        raise RuntimeError(f"the healthy project does not run: {ended.said}") from ended.error
    return folder


def copy_project(folder: Path, finished: bool) -> None:
    """Writes the healthy project into a folder, with its finished run or without."""
    if finished:
        shutil.copytree(finished_project(), folder, dirs_exist_ok=True)
    else:
        write_project(folder)
