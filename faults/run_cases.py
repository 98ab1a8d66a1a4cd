"""What a run finds in its own folder, or is given: stored labels, checkpoints, metrics, curves."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from case import (
    START,
    Break,
    Case,
    adapt,
    changed,
    content,
    in_place_of,
    nothing,
    picture,
    program,
    remove,
    run_or_raise,
    saved,
    stored,
    together,
    truncate,
)
from hostile import hostile_pickles

SOFT = "run/pseudo_labels/soft/a.png"


def stored_label_cases() -> list[Case]:
    """Returns the cases."""

    def of(name: str, breaks: Break, *says: str) -> Case:
        return Case("stored labels", name, breaks, adapt(), says, finished=True)

    def again(*stages: str) -> Break:
        """Forgets the results of stages and what they were made from, so that they run again."""
        files = ("metrics.json", "checkpoint.pt", "checkpoint.pt.previous")

        def act() -> None:
            for stage in stages:
                for file in files:
                    Path("run", stage, file).unlink(missing_ok=True)

        return act

    def soft(values: Any, classes: int) -> Break:
        def act() -> None:
            note = PngImagePlugin.PngInfo()
            note.add_text("cpsl classes", str(classes))
            Image.fromarray(np.asarray(values, np.uint8)).save(SOFT, pnginfo=note)

        return act

    self_label, hard = again("self_label"), again("distill_1")
    label = "run/distill_1/labels/a.png"
    right = np.repeat([[255], [0], [0]], 16, axis=0).repeat(32, axis=1)
    return [
        of(
            "soft label that would be NaN",
            together(self_label, soft(np.zeros((24, 16)), 3)),
            "soft/a.png holds no probabilities",
            "delete it",
        ),
        of(
            "soft label of other classes",
            together(self_label, soft(right, 2)),
            "soft/a.png has 2 classes instead of 3",
            "delete it",
        ),
        of("soft label of another size", together(self_label, soft(right, 3))),
        of(
            "truncated soft label",
            together(self_label, truncate(SOFT)),
            "soft/a.png is damaged",
            "delete it",
        ),
        of(
            "foreign PNG in the place of a soft label",
            together(self_label, picture(SOFT, "L")),
            "soft/a.png is no map of soft labels",
            "delete it",
        ),
        of("soft label is missing", together(self_label, remove(SOFT))),
        of(
            "truncated label of distillation",
            together(hard, truncate(label)),
            "labels/a.png is damaged",
            "delete it",
        ),
        of(
            "label of distillation of no class",
            together(hard, stored(label, np.full((32, 64), 9))),
            "labels/a.png has the label 9, but there are 3 classes",
            "delete it",
        ),
        of(
            "foreign PNG in the place of a label of distillation",
            together(hard, picture(label)),
            "labels/a.png is no label map",
            "delete it",
        ),
        of("label of distillation is missing", together(hard, remove(label))),
        of(
            "truncated prediction",
            truncate("run/warmup/predictions/a.png"),
            "warmup/predictions/a.png is damaged",
            "Without run/warmup/metrics.json",
        ),
        of(
            "prediction is missing",
            remove("run/warmup/predictions/a.png"),
            "warmup/predictions/a.png",
            "Without run/warmup/metrics.json",
        ),
        of(
            "start.pt with NaN",
            together(self_label, changed(START, lambda s: s["prototypes"].fill_(float("nan")))),
            "start.pt: its entry prototypes",
            "finite",
            "delete",
        ),
        of(
            "start.pt of another model",
            together(self_label, changed(START, lambda s: s.update(prototypes=torch.zeros(3, 9)))),
            "start.pt: its entry prototypes",
            r"\(3, 8\)",
            "delete",
        ),
        of(
            "start.pt without an entry",
            together(self_label, changed(START, lambda s: s.pop("class_distribution"))),
            "start.pt: its entry class_distribution",
            "delete",
        ),
        of(
            "truncated start.pt",
            together(self_label, truncate(START)),
            "start.pt cannot be read",
            "Delete",
        ),
    ]


def checkpoint_cases() -> list[Case]:
    """Returns the cases."""

    def of(name: str, breaks: Break, *says: str, file: str = "x.pt") -> Case:
        return Case(
            "checkpoints",
            name,
            breaks,
            adapt("--given.self-label", file, "--output", "run2"),
            says,
            finished=True,
        )

    def copied(change: Callable[[dict[str, Any]], object]) -> Break:
        def act() -> None:
            state = torch.load("run/self_label/model.pt", weights_only=True)
            change(state)
            torch.save(state, "x.pt")

        return act

    def start(name: str, breaks: Break, *says: str) -> Case:
        invoke = adapt("--warmup.start", "x.pt", "--output", "run2")
        return Case("checkpoints", name, breaks, invoke, says)

    def script() -> None:
        torch.jit.script(torch.nn.Linear(2, 2)).save("x.pt")

    def archive() -> None:
        with zipfile.ZipFile("x.pt", "w") as file:
            file.writestr("hello.txt", "hello")

    def evil(number: int, path: str) -> Break:
        def act() -> None:
            _, data = hostile_pickles(Path("owned").resolve())[number]
            Path(path).write_bytes(data)

        return act

    def release(state: Callable[[], dict[str, Any]]) -> Break:
        return lambda: torch.save({"ResNet101": {"model_state": state()}}, "x.pkl")

    def half() -> dict[str, Any]:
        return {
            "conv1.weight": torch.zeros(64, 3, 7, 7),
            "layer5.head.1.weight": torch.zeros(3, 256, 1, 1),
        }

    nan = float("nan")
    return [
        of("random bytes", content("x.pt", os.urandom(999)), "x.pt cannot be read"),
        of("file of zero bytes", content("x.pt", b""), "x.pt cannot be read"),
        of("truncated model", together(copied(dict), truncate("x.pt")), "x.pt cannot be read"),
        of(
            "model of another architecture",
            copied(lambda s: s.update(backbone="resnet18")),
            "x.pt does not fit the network that it describes",
        ),
        of(
            "model of a backbone that is not there",
            copied(lambda s: s.update(backbone="vgg")),
            "x.pt does not fit the network that it describes",
            "vgg",
        ),
        of(
            "model of other classes",
            copied(lambda s: s.update(classes=["road", "car"])),
            "x.pt tells the classes road, car apart",
            "road, car, sky",
        ),
        of(
            "model with NaN",
            copied(lambda s: s["model"]["head.classify.weight"].fill_(nan)),
            "x.pt holds numbers that are not finite",
            "head.classify.weight",
        ),
        of(
            "prototypes in the place of a model",
            saved("x.pt", lambda: {"prototypes": torch.zeros(3, 8)}),
            "x.pt is no model of cpsl",
            "prototypes",
        ),
        of("list in the place of a model", saved("x.pt", lambda: [1]), "x.pt holds a list"),
        of("TorchScript", script, "x.pt cannot be read"),
        of("zip of something else", archive, "x.pt cannot be read"),
        of("pickle that runs code", evil(0, "x.pt"), "x.pt cannot be read"),
        of(
            "pickle that runs code, as a release",
            evil(0, "x.pkl"),
            "x.pkl is damaged, or would run code",
            file="x.pkl",
        ),
        of(
            "release without most entries",
            release(half),
            "x.pkl is not the release's ResNet-101",
            "missing",
            file="x.pkl",
        ),
        of(
            "release of other classes",
            release(lambda: {**half(), "layer5.head.1.weight": torch.zeros(19, 256, 1, 1)}),
            "x.pkl was trained for 19 classes, not 3",
            file="x.pkl",
        ),
        of(
            "release with words for weights",
            release(lambda: {**half(), "layer5.head.1.weight": "w"}),
            "x.pkl holds no tensor at 'layer5.head.1.weight'",
            file="x.pkl",
        ),
        of(
            "release of no network",
            saved("x.pkl", lambda: {"iter": 3}),
            "x.pkl holds no segmentation network",
            "iter",
            file="x.pkl",
        ),
        of(
            "release that is random bytes",
            content("x.pkl", os.urandom(999)),
            "x.pkl is damaged",
            file="x.pkl",
        ),
        start(
            "backbone weights of another network",
            saved("x.pt", lambda: {"fc.weight": torch.zeros(1)}),
            "x.pt does not fit this backbone",
            "such as",
        ),
        start(
            "backbone weights that run code",
            evil(0, "x.pt"),
            "x.pt is no file of weights, or would run code",
        ),
        start(
            "backbone weights with NaN",
            saved("x.pt", lambda: {"conv1.weight": torch.full((1,), nan)}),
            "x.pt holds numbers that are not finite",
        ),
        start(
            "backbone weights by numbers",
            saved("x.pt", lambda: {1: torch.zeros(1)}),
            "x.pt does not fit this backbone",
        ),
        Case(
            "checkpoints",
            "weights to evaluate are missing",
            nothing,
            program("evaluate.py", "--weights", "no.pt"),
            ("there is no file no.pt",),
        ),
        Case(
            "checkpoints",
            "weights to evaluate run code",
            evil(0, "x.pt"),
            program("evaluate.py", "--weights", "x.pt"),
            ("x.pt cannot be read",),
        ),
        Case(
            "checkpoints",
            "scales that make no image",
            nothing,
            program("evaluate.py", "--weights", "run/distill_2/model.pt", "--scales", "0"),
            ("scales must be positive",),
            finished=True,
        ),
        Case(
            "checkpoints",
            "model that is no ResNet-101 for the release",
            nothing,
            lambda: run_or_raise(
                "to_release.py", "--weights", "run/distill_2/model.pt", "--output", "x.pkl"
            ),
            ("the release's network is a ResNet-101",),
            finished=True,
        ),
        Case(
            "checkpoints",
            "no clustering.pt for the release",
            nothing,
            lambda: run_or_raise(
                "to_release.py",
                "--weights",
                "run/distill_2/model.pt",
                "--output",
                "x.pkl",
                "--clustering",
                START,
            ),
            ("start.pt is no clustering.pt",),
            finished=True,
        ),
    ]


def run_folder_cases() -> list[Case]:
    """Returns the cases."""

    def of(name: str, breaks: Break, *says: str, options: tuple[str, ...] = ()) -> Case:
        return Case("run folder", name, breaks, adapt(*options), says, finished=True)

    def model_comes_back() -> None:
        adapt()()
        assert Path("run/distill_1/model.pt").exists(), "no model"

    return [
        of(
            "metrics.json cut short",
            truncate("run/warmup/metrics.json"),
            "run/warmup/metrics.json is damaged: delete it",
        ),
        of(
            "metrics.json of zero bytes",
            content("run/warmup/metrics.json", b""),
            "run/warmup/metrics.json is damaged: delete it",
        ),
        of(
            "metrics.json of something else",
            content("run/warmup/metrics.json", b"[1]"),
            "run/warmup/metrics.json is damaged: delete it",
        ),
        of(
            "config.toml cut short",
            content("run/config.toml", b"output = "),
            "run/config.toml is not a TOML file",
        ),
        of(
            "other settings than those of the run",
            nothing,
            "run holds a run with other settings",
            "seed: 0 then, 1 now",
            "another folder",
            options=("--seed", "1"),
        ),
        of("curves cut short", truncate("run/warmup/scalars.jsonl")),
        of(
            "curves of something else",
            content("run/warmup/scalars.jsonl", b'7\nnull\n{"a": 1}\n\xff\n{"iteration": NaN}\n'),
        ),
        of(
            "clustering.pt cut short",
            truncate("run/self_label/clustering.pt"),
            "run/self_label/clustering.pt cannot be read",
        ),
        of(
            "clustering.pt of something else",
            saved("run/self_label/clustering.pt", lambda: {"prototypes": 3}),
            "clustering.pt is not what self-labeling writes",
        ),
        of(
            "teacher.pt is missing",
            remove("run/self_label/teacher.pt"),
            "there is no file run/self_label/teacher.pt",
        ),
        Case(
            "run folder",
            "model.pt of a finished stage is missing",
            remove("run/distill_1/model.pt"),
            model_comes_back,
            finished=True,
        ),
        of(
            "report.html is a folder",
            in_place_of("run/report.html", Path.mkdir),
            "run/report.html|irectory",
        ),
    ]
