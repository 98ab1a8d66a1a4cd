"""Data and weights that changed since a run, and files that are not the weights that they are named."""

import os
from functools import partial
from pathlib import Path

import torch

from case import Act, Case, content, picture, remove, stored
from project import RefusedError, run

of = partial(Case, "changed data", finished=True)
weights = partial(Case, "weights", act="adapt --source-only.start x.pth")
PREDICT = "predict --weights run/model.pt --input target/images --output x"
RECORD = "run/data.json"


def copied() -> None:
    """Gives all data new times, as a copy has."""
    for folder in ("source", "target", "evaluation"):
        for path in Path(folder).rglob("*.png"):
            os.utime(path)


def gives_new_figures() -> None:
    before = Path("run/metrics.json").read_bytes()
    run("adapt")
    assert Path("run/metrics.json").read_bytes() != before


def refused_until_the_record_is_deleted() -> None:
    try:
        run("adapt")
    except RefusedError:
        Path(RECORD).unlink()
    else:
        raise AssertionError("it is accepted")
    run("adapt")


def predicts(change: Act) -> Act:
    """Predicts, changes the input, and predicts again: the results must be those of a new folder."""

    def act() -> None:
        run(PREDICT)
        change()
        run(PREDICT)
        run(PREDICT.replace("--output x", "--output y"))
        for path in Path("y/labels").rglob("*.png"):
            assert path.read_bytes() == Path("x", *path.parts[1:]).read_bytes(), path

    return act


def wrapped(*prefixes: str) -> Act:
    """Writes the weights of the encoder of a finished run, below prefixes."""

    def act() -> None:
        state = torch.load("run/source_only/model.pt", weights_only=True)["model"]
        encoder = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        torch.save({prefix + key: v for prefix in prefixes for key, v in encoder.items()}, "x.pth")

    return act


started = partial(Case, "weights", finished=True, act="adapt --source-only.start x.pth --output run2")

CHANGED = [
    of(
        "image of the source is added",
        [picture("source/images/c.png"), stored("source/labels/c.png", 0)],
        ("source/images/c.png", "source/labels/c.png", "--output", RECORD),
    ),
    of(
        "image of the target is added",
        picture("target/images/c.png"),
        ("target/images/c.png", RECORD, "--init-from.source-only"),
    ),
    of("image of the target is removed", remove("target/images/a.png"), ("target/images/a.png", RECORD)),
    of(
        "image is overwritten", picture("source/images/a.png", size=(64, 32)), ("source/images/a.png", RECORD)
    ),
    of("label is overwritten", stored("source/labels/a.png", 1), ("source/labels/a.png", RECORD)),
    of(
        "data are accepted as they are now",
        stored("source/labels/a.png", 1),
        act=refused_until_the_record_is_deleted,
    ),
    of("data are copied", copied),
    of("evaluation label is overwritten", stored("evaluation/labels/a.png", 1), act=gives_new_figures),
    of(
        "evaluation image is overwritten",
        picture("evaluation/images/a.png", color=(9, 9, 9), size=(64, 32)),
        act=gives_new_figures,
    ),
    of("damaged record of the data", content(RECORD, b"{"), RECORD),
    of("no record of the data", remove(RECORD)),
    of("input of predict is overwritten", (), act=predicts(picture("target/images/a.png", size=(64, 32)))),
    of("input of predict is added", (), act=predicts(picture("target/images/c.png", size=(64, 32)))),
    of("inputs that share a result", picture("target/images/a.bmp"), ("a.bmp", "a.png"), PREDICT),
    of(
        "frames that share a result",
        [
            lambda: Path("target/images/v").mkdir(),
            picture("target/images/v/000000.png"),
            content("target/images/v.mp4", b""),
        ],
        ("v.mp4", "000000.png"),
        PREDICT,
    ),
    of("damaged prediction.json", content("x/prediction.json", b"{"), "x/prediction.json", PREDICT),
]

WEIGHTS = [
    weights("empty file", content("x.pth", b""), ("x.pth", "empty")),
    weights("HTML page", content("x.pth", b"<!DOCTYPE html><html>"), ("x.pth", "HTML")),
    weights(
        "LFS pointer", content("x.pth", b"version https://git-lfs.github.com/spec/v1\n"), ("x.pth", "LFS")
    ),
    started("DistributedDataParallel", wrapped("module.")),
    started("torch.compile inside of a trainer", wrapped("model._orig_mod.backbone.")),
    started("MoCo", wrapped("module.encoder_k.", "module.encoder_q.")),
    started("two equal networks", wrapped("a.", "b.")),
    started(
        "other names",
        lambda: torch.save({"trunk.stem.weight": torch.ones(3)}, "x.pth"),
        ("x.pth", "trunk.stem.weight", "backbone.conv1.weight"),
    ),
]
