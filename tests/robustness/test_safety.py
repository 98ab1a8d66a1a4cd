"""No file runs code, no link is followed when a file is written, and the network is not used."""

import io
import json
import os
import pickle
import subprocess
import sys
from contextlib import chdir, suppress
from functools import cache
from pathlib import Path

import pytest
import torch

import cpsl
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.networks import load_model
from cpsl.app.pseudo_labels import read_start
from cpsl.app.report import load_clustering
from cpsl.authors import load_release_checkpoint, read_release_checkpoint
from cpsl.data import HardLabelStore
from cpsl.models import load_backbone_weights
from cpsl.models.resnet import resnet_tiny
from cpsl.training import Process, load
from cpsl.training.checkpoints import load_checkpoint
from hostile import hostile_pickles
from project import RefusedError, copy_project, run


@cache
def config(folder: Path) -> Config:
    images = ["--source.images", "a", "--target.images", "b", "--classes", "road", "car"]
    return parse(["--output", str(folder), *images])


pytestmark = pytest.mark.filterwarnings("ignore")
CPU = Process(torch.device("cpu"))
SHAPE = torch.Size([2, 8])
# File below a folder, and what reads it.
LOADERS = {
    "x.pt": lambda folder: load_model(config(folder), folder / "x.pt"),
    "x.pkl": lambda folder: load_model(config(folder), folder / "x.pkl"),
    "release.pkl": lambda folder: read_release_checkpoint(folder / "release.pkl"),
    "network.pkl": lambda folder: load_release_checkpoint(folder / "network.pkl"),
    "weights.pth": lambda folder: load_backbone_weights(resnet_tiny(), folder / "weights.pth"),
    "any.pt": lambda folder: load(folder / "any.pt"),
    "pseudo_labels/start.pt": lambda folder: read_start(config(folder), SHAPE),
    "self_label/clustering.pt": lambda folder: load_clustering(config(folder), CPU),
}


@pytest.mark.parametrize("name", LOADERS)
def test_no_file_runs_code(name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "owned", tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for kind, content in hostile_pickles(mark).items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            LOADERS[name](tmp_path)
        assert not mark.exists(), kind


def test_no_checkpoint_runs_code(tmp_path: Path) -> None:
    mark, path = tmp_path / "owned", tmp_path / "checkpoint.pt"
    for kind, content in hostile_pickles(mark).items():
        path.write_bytes(content)
        assert load_checkpoint(path) is None, kind
        assert not mark.exists(), kind


def test_these_files_are_hostile(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    for kind, content in hostile_pickles(mark).items():
        if "torch, " in kind:
            torch.load(io.BytesIO(content), weights_only=False)
        else:
            pickle.loads(content)
        assert mark.exists(), kind
        mark.rmdir()


def test_no_command_runs_code_of_a_run_folder(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    copy_project(tmp_path, finished=True)
    content = hostile_pickles(mark)["os.system, protocol 0"]
    for path in tmp_path.glob("run/**/*.pt*"):
        path.write_bytes(content)
    for path in tmp_path.glob("run/*/metrics.json"):
        path.unlink()
        with chdir(tmp_path), suppress(RefusedError):
            run("adapt")
        assert not mark.exists()


def test_a_store_replaces_a_link(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret", tmp_path / "store" / "a.png"
    secret.write_text("mine")
    path.parent.mkdir()
    path.symlink_to(secret)
    HardLabelStore(path.parent).write("a", torch.zeros(2, 2, dtype=torch.uint8))
    assert secret.read_text() == "mine"
    assert not path.is_symlink()


OFFLINE = """
import socket

def refuse(*arguments, **options):
    raise AssertionError(f"the network is used: {arguments}")

class Refusing(socket.socket):
    connect = connect_ex = sendto = bind = refuse

socket.socket, socket.create_connection = Refusing, refuse
socket.getaddrinfo = socket.gethostbyname = refuse
"""

EVERYTHING = """
import importlib, pkgutil
import cpsl.__main__

for module in pkgutil.walk_packages(cpsl.__path__, "cpsl."):
    importlib.import_module(module.name)
cpsl.__main__.main(["adapt", "--config", "settings.toml"])
cpsl.__main__.main(["check", "--config", "settings.toml", "--output", "check"])
"""

DOWNLOAD = """
from cpsl.models import load_backbone_weights
from cpsl.models.resnet import resnet18
load_backbone_weights(resnet18(), "imagenet", "resnet18")
"""


def offline(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(Path(cpsl.__file__).parents[1]), "TORCH_HOME": str(folder / "torch")}
    return subprocess.run(
        [sys.executable, "-c", OFFLINE + script],
        cwd=folder,
        env={**os.environ, **paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_command_uses_the_network(tmp_path: Path) -> None:
    copy_project(tmp_path, finished=False)
    ended = offline(tmp_path, EVERYTHING)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(json.loads((tmp_path / "run" / "metrics.json").read_text())) == 5


def test_missing_imagenet_weights_are_downloaded(tmp_path: Path) -> None:
    ended = offline(tmp_path, DOWNLOAD)
    assert ended.returncode != 0
    assert "the network is used" in ended.stderr
