"""What a run finds in its own folder, or is given: stored labels, checkpoints, metrics, curves."""

import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from case import Act, Case, changed, content, picture, remove, replace, saved, stored, truncate
from hostile import hostile_pickles
from project import run

SOFT, HARD = "run/pseudo_labels/soft/a.png", "run/distill_1/labels/a.png"
START, CLUSTERING = "run/pseudo_labels/start.pt", "run/self_label/clustering.pt"
PREDICTION, METRICS = "run/warmup/predictions/a.png", "run/warmup/metrics.json"
CURVES, MODEL = "run/warmup/scalars.jsonl", "run/distill_2/model.pt"
NAN = float("nan")


def again(stage: str) -> Act:
    """Deletes the results and checkpoints of a stage, so that it is trained again."""
    names = ("metrics.json", "checkpoint.pt", "checkpoint.pt.previous")
    return lambda: [Path("run", stage, name).unlink() for name in names]


def soft_label(values: Any, classes: int) -> Act:
    """Writes a soft label with a given number of classes."""
    note = PngImagePlugin.PngInfo()
    note.add_text("cpsl classes", str(classes))
    return lambda: Image.fromarray(np.asarray(values, np.uint8)).save(SOFT, pnginfo=note)


def of(name: str, prepare: Act, names: str | tuple[str, ...] = (), stage: str = "") -> Case:
    steps = [again(stage), prepare] if stage else [prepare]
    return Case("stored labels", name, steps, names, finished=True)


soft, hard = partial(of, stage="self_label"), partial(of, stage="distill_1")
CERTAIN = np.repeat([[255], [0], [0]], 16, axis=0).repeat(32, axis=1)

STORED_LABELS = [
    soft("soft label without probabilities", soft_label(np.zeros((24, 16)), 3), SOFT),
    soft("soft label of other classes", soft_label(CERTAIN, 2), (SOFT, "2", "3")),
    soft("soft label of another size", soft_label(CERTAIN, 3)),
    soft("truncated soft label", truncate(SOFT), SOFT),
    soft("another PNG for a soft label", picture(SOFT, "L"), SOFT),
    soft("soft label is missing", remove(SOFT)),
    hard("truncated hard label", truncate(HARD), HARD),
    hard("hard label of no class", stored(HARD, 9), (HARD, "9", "3")),
    hard("another PNG for a hard label", picture(HARD), HARD),
    hard("hard label is missing", remove(HARD)),
    of("truncated prediction", truncate(PREDICTION), (PREDICTION, METRICS)),
    of("prediction is missing", remove(PREDICTION), (PREDICTION, METRICS)),
    soft(
        "start.pt with NaN",
        changed(START, lambda start: start["prototypes"].fill_(NAN)),
        (START, "prototypes"),
    ),
    soft(
        "start.pt of another model",
        changed(START, lambda start: start.update(prototypes=torch.zeros(3, 9))),
        (START, "prototypes", "(3, 8)"),
    ),
    soft(
        "start.pt without an entry",
        changed(START, lambda start: start.pop("class_distribution")),
        (START, "class_distribution"),
    ),
    soft("truncated start.pt", truncate(START), START),
]

checkpoints = partial(Case, "checkpoints", finished=True)
model = partial(checkpoints, act="adapt --init-from.self-label x.pt --output run2")
release = partial(checkpoints, act="adapt --init-from.self-label x.pkl --output run2")
backbone = partial(checkpoints, act="adapt --warmup.start x.pt --output run2")
EXPORT = f"export --weights {MODEL} --output"


def changed_model(change: Callable[[dict[str, Any]], object]) -> Act:
    """Writes a changed copy of a model."""
    return changed("run/self_label/model.pt", change, to="x.pt")


def script() -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save("x.pt")


def archive() -> None:
    with zipfile.ZipFile("x.pt", "w") as file:
        file.writestr("hello.txt", "hello")


def hostile(path: str) -> Act:
    """Writes a file that would run code."""
    data = hostile_pickles(Path("owned").resolve())["os.system, protocol 0"]
    return content(path, data)


def few_weights(classifier: Any) -> Act:
    """Writes a checkpoint in the authors' format that lacks most entries."""
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer5.head.1.weight": classifier}
    return saved("x.pkl", {"ResNet101": {"model_state": state}})


CHECKPOINTS = [
    model("random bytes", content("x.pt", os.urandom(999)), "x.pt"),
    model("empty file", content("x.pt", b""), "x.pt"),
    model("truncated model", [changed_model(dict), truncate("x.pt")], "x.pt"),
    model(
        "model of another architecture",
        changed_model(lambda file: file.update(network="deeplabv2:resnet18")),
        "x.pt",
    ),
    model(
        "model of an unknown backbone",
        changed_model(lambda file: file.update(network="deeplabv2:vgg")),
        ("x.pt", "vgg"),
    ),
    model(
        "model of other classes",
        changed_model(lambda file: file.update(classes=["road", "car"])),
        ("x.pt", "road, car, sky"),
    ),
    model(
        "model with NaN",
        changed_model(lambda file: file["model"]["head.classify.weight"].fill_(NAN)),
        ("x.pt", "head.classify.weight"),
    ),
    model("prototypes", saved("x.pt", {"prototypes": torch.zeros(3)}), ("x.pt", "prototypes")),
    model("list", saved("x.pt", [1]), ("x.pt", "list")),
    model("TorchScript", script, "x.pt"),
    model("another zip file", archive, "x.pt"),
    model("model that runs code", hostile("x.pt"), "x.pt"),
    release("release that runs code", hostile("x.pkl"), "x.pkl"),
    release("release without most entries", few_weights(torch.zeros(3, 256, 1, 1)), ("x.pkl", "bn1.weight")),
    release("release of other classes", few_weights(torch.zeros(19, 256, 1, 1)), ("x.pkl", "19", "3")),
    release("release with words", few_weights("w"), ("x.pkl", "layer5.head.1.weight")),
    release("release of no network", saved("x.pkl", {"iter": 3}), ("x.pkl", "iter")),
    release("release of random bytes", content("x.pkl", os.urandom(999)), "x.pkl"),
    backbone("weights of another network", saved("x.pt", {"fc.weight": torch.zeros(1)}), "x.pt"),
    backbone("weights that run code", hostile("x.pt"), "x.pt"),
    backbone(
        "weights with NaN", saved("x.pt", {"conv1.weight": torch.full((1,), NAN)}), ("x.pt", "conv1.weight")
    ),
    backbone("weights without names", saved("x.pt", {1: torch.zeros(1)}), "x.pt"),
    checkpoints("evaluate: no weights", (), "no.pt", "evaluate --weights no.pt"),
    checkpoints("evaluate: code", hostile("x.pt"), "x.pt", "evaluate --weights x.pt"),
    checkpoints("evaluate: scale 0", (), "scales", f"evaluate --weights {MODEL} --scales 0"),
    checkpoints("predict: no weights", (), "no.pt", "predict --weights no.pt --input target --output x"),
    checkpoints("export: unknown format", (), ("x.zip", ".onnx"), f"{EXPORT} x.zip"),
    checkpoints("export: small network as a release", (), "ResNet-101", f"{EXPORT} x.pkl"),
    checkpoints("export: no clustering", (), START, f"{EXPORT} x.pkl --clustering {START}"),
]

run_folder = partial(Case, "run folder", finished=True)
PREDICT = f"predict --weights {MODEL} --input"


def make_model_again() -> None:
    run("adapt")
    assert Path("run/distill_1/model.pt").exists()


RUN_FOLDER = [
    run_folder("truncated metrics.json", truncate(METRICS), METRICS),
    run_folder("empty metrics.json", content(METRICS, b""), METRICS),
    run_folder("another metrics.json", content(METRICS, b"[1]"), METRICS),
    run_folder("truncated config.toml", content("run/config.toml", b"output = "), "config.toml"),
    run_folder("settings of another run", (), ("run", "seed", "0", "1"), "adapt --seed 1"),
    run_folder("truncated curves", truncate(CURVES)),
    run_folder("other curves", content(CURVES, b'7\nnull\n{"a": 1}\n\xff\n{"iteration": NaN}\n')),
    run_folder("truncated clustering.pt", truncate(CLUSTERING), CLUSTERING),
    run_folder("another clustering.pt", saved(CLUSTERING, {"prototypes": 3}), CLUSTERING),
    run_folder("missing teacher.pt", remove("run/self_label/teacher.pt"), "self_label/teacher.pt"),
    run_folder("missing model.pt", remove("run/distill_1/model.pt"), act=make_model_again),
    run_folder("report.html is a folder", replace("run/report.html", Path.mkdir), "report.html"),
    run_folder("no images to predict", (), "no.png", f"{PREDICT} no.png --output x"),
    run_folder("predictions in the input", (), "target/x", f"{PREDICT} target --output target/x"),
    run_folder("no run to report", (), "no/config.toml", "report no"),
]
