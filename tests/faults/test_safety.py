"""No file runs code, no name leaves its folder, names are no HTML, and nothing asks the network."""

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from config import Config, parse
from cpsl.data import ColorStore, HardLabelStore, LabelSpace, SoftLabelStore
from cpsl.data.reading import find_files
from cpsl.engine import Process, load
from cpsl.engine.files import load_checkpoint
from cpsl.models import load_backbone_weights, load_release_checkpoint, read_release_checkpoint
from cpsl.models.resnet import resnet_tiny
from healthy import EXAMPLES, copy_project, inside, run_program
from hostile import hostile_pickles
from networks import load_model
from pseudo_labels import read_start
from report import Picture, Report, write_report
from report_data import load_clustering

ROOT = EXAMPLES.parent


@cache
def settings(folder: Path) -> Config:
    images = ["--source.images", "a", "--target.images", "b", "--classes", "road", "car"]
    return parse(Config, ["--output", str(folder), *images])


LOADERS = {
    "model.pt": ("x.pt", lambda run: load_model(run / "x.pt", ("road", "car"))),
    "a release as a model": ("x.pkl", lambda run: load_model(run / "x.pkl", ("road", "car"))),
    "read_release_checkpoint": ("x.pkl", lambda run: read_release_checkpoint(run / "x.pkl")),
    "load_release_checkpoint": ("x.pkl", lambda run: load_release_checkpoint(run / "x.pkl")),
    "backbone weights": ("x.pth", lambda run: load_backbone_weights(resnet_tiny(), run / "x.pth")),
    "any file of a run": ("x.pt", lambda run: load(run / "x.pt")),
    "checkpoint.pt": ("checkpoint.pt", lambda run: load_checkpoint(run / "checkpoint.pt")),
    "start.pt": (
        "pseudo_labels/start.pt",
        lambda run: read_start(settings(run), torch.Size([2, 8])),
    ),
    "clustering.pt": (
        "self_label/clustering.pt",
        lambda run: load_clustering(settings(run), Process(torch.device("cpu"))),
    ),
}


def message(call: Callable[[], object]) -> str:
    """Returns why a file is not loaded; nothing if it seems not to be there."""
    try:
        loaded = call()
    except ValueError as error:
        return str(error)
    return "" if loaded is None else "it was loaded"


@pytest.mark.parametrize("name", LOADERS)
def test_no_file_runs_code(name: str, tmp_path: Path) -> None:
    place, read = LOADERS[name]
    mark, path = tmp_path / "owned", tmp_path / place
    path.parent.mkdir(exist_ok=True)
    for kind, content in hostile_pickles(mark):
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # load_checkpoint warns and takes the one before
            said = message(lambda: read(tmp_path))
        assert path.name in said or place == "checkpoint.pt", kind
        assert not mark.exists(), kind


def test_these_files_are_hostile(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    for kind, content in hostile_pickles(mark):
        if "torch, " in kind:
            torch.load(io.BytesIO(content), weights_only=False)
        else:
            pickle.loads(content)
        assert mark.exists(), kind
        mark.rmdir()


def test_no_program_runs_code_of_a_run_folder(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    copy_project(tmp_path, finished=True)
    content = hostile_pickles(mark)[0][1]
    for path in tmp_path.glob("run/**/*.pt*"):
        path.write_bytes(content)
    for path in tmp_path.glob("run/*/metrics.json"):
        path.unlink()
        with inside(tmp_path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_program("adapt.py", "--config", "settings.toml")
        assert not mark.exists()


EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Collects tags, their attributes and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("labelled", [True, False])
def test_the_report_shows_names_as_they_are(tmp_path: Path, labelled: bool) -> None:
    label = torch.zeros(4, 4, dtype=torch.uint8)
    metrics = {
        "miou": 50.0 if labelled else None,
        "iou": {EVIL: 50.0 if labelled else None},
        "class_frequency": [1.0],
        "confidence": 0.5,
        "changed": None,
        "seconds": 1.0,
    }
    shown = {
        "name": EVIL,
        "image": torch.zeros(3, 4, 4, dtype=torch.uint8),
        "ground_truth": label if labelled else None,
        "predictions": {EVIL: label},
        "pseudo_labels": {EVIL: label},
    }
    others = {field.name: None for field in fields(Picture) if field.name not in shown}
    picture = Picture(**shown, **others)
    report = Report(
        title=EVIL,
        classes=(EVIL,),
        palette=((1, 2, 3),),
        metrics={EVIL: metrics},
        class_distributions={EVIL: [1.0]},
        curves={EVIL: {EVIL: [(1, 1.0)]}},
        pictures=[picture],
        config=EVIL,
    )
    write_report(report, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Tags()
    page.feed(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object")]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in {"src", "href"} & attributes.keys():
            assert (attributes[name] or "").startswith(("data:", "#"))
    assert page.text.count(EVIL) > 5


NAMES = ["../a", "a/../../b", "/etc/a", "", ".", "..", "a\\..\\b", "..\\a", "C:\\a", "a\0b"]
STORES = {
    "soft": (SoftLabelStore, torch.full((1, 2, 2), 1.0)),
    "hard": (HardLabelStore, torch.zeros(2, 2, dtype=torch.uint8)),
    "colors": (
        lambda folder: ColorStore(folder, LabelSpace(("a",), ((0, 0, 0),))),
        torch.zeros(2, 2, dtype=torch.uint8),
    ),
}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_outside_a_store(tmp_path: Path, kind: str, name: str) -> None:
    make, label = STORES[kind]
    store = make(tmp_path / "deep" / "store")
    with pytest.raises(ValueError, match="is no path below a folder"):
        store.write(name, label)
    if hasattr(store, "read"):
        with pytest.raises(ValueError, match="is no path below a folder"):
            store.read(name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_link_in_a_store_is_replaced_and_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.png").symlink_to(secret)
    HardLabelStore(tmp_path / "store").write("a", torch.zeros(2, 2, dtype=torch.uint8))
    assert secret.read_text() == "mine"
    assert not (tmp_path / "store" / "a.png").is_symlink()


def test_names_of_files_are_such_as_stores_take(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "a b").mkdir(parents=True)
    for name in ("ä.png", "a b/..c.png", "~.png", "%2e%2e.png", "C:.png"):
        Image.new("L", (2, 2)).save(images / name)
    found = find_files(images, (".png",), "images")
    store = HardLabelStore(tmp_path / "store")
    for name in found:
        store.write(name, torch.zeros(2, 2, dtype=torch.uint8))
    assert list(find_files(tmp_path / "store", (".png",), "labels")) == list(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "store"]


OFFLINE = """
import socket

def refuse(*arguments, **options):
    raise AssertionError(f"the network is asked: {arguments}")

class Refusing(socket.socket):
    connect = connect_ex = sendto = bind = refuse

socket.socket, socket.create_connection = Refusing, refuse
socket.getaddrinfo = socket.gethostbyname = refuse
"""

EVERYTHING = """
import importlib, pkgutil, runpy, sys
import cpsl

for module in pkgutil.walk_packages(cpsl.__path__, "cpsl."):
    importlib.import_module(module.name)
examples, *options = sys.argv[1:]
sys.argv = ["adapt.py", "--config", "settings.toml", *options]
sys.path.insert(0, examples)
runpy.run_path(f"{examples}/adapt.py", run_name="__main__")
"""

DOWNLOAD = """
from cpsl.models import load_backbone_weights, resnet18
load_backbone_weights(resnet18(), "imagenet", "resnet18")
"""


def offline(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_HOME": str(folder / "torch")}
    return subprocess.run(
        [sys.executable, "-c", OFFLINE + script, *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_asks_the_network(tmp_path: Path) -> None:
    copy_project(tmp_path, finished=False)
    for options in ((), ("--check", "True", "--output", "check")):
        done = offline(tmp_path, EVERYTHING, str(EXAMPLES), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "run" / "metrics.json").read_text())) == 5


def test_the_network_is_asked_for_weights_that_are_wanted(tmp_path: Path) -> None:
    done = offline(tmp_path, DOWNLOAD)
    assert done.returncode != 0
    assert "the network is asked" in done.stderr
