"""Bad input of every kind, and what the programs and the library say to it.

    python faults/inputs.py             # prints how many cases were answered well, by area
    python faults/inputs.py --area data

A case breaks something in a tiny healthy project and runs a program in this process, or calls the library. It
is answered well if it ends in one message that names what is wrong, without a traceback, with an exit code
other than zero, and nothing is left half written; or, where the input is legal, in the result that the case
defines.
"""

import contextlib
import io
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from bad_calls import CALLS  # noqa: E402
from cpsl.data import SegmentationFolder, Synthia  # noqa: E402
from healthy import copy_project, inside, run_program  # noqa: E402
from hostile import hostile_pickles  # noqa: E402

Area = Literal[
    "data",
    "labels",
    "stored labels",
    "settings",
    "checkpoints",
    "run folder",
    "environment",
    "library",
]
Break = Callable[[], object]
Program = Callable[[], object]


class Case(NamedTuple):
    """One thing that is wrong, or looks so.

    Attributes:
        area: What it concerns.
        name: What is wrong.
        breaks: Makes it so, in the current folder.
        invoke: Runs a program, or calls the library.
        says: Patterns that the message must contain; none where the input is legal.
        finished: Whether the project has a finished run.
    """

    area: Area
    name: str
    breaks: Break
    invoke: Program
    says: tuple[str, ...] = ()
    finished: bool = False


class Result(NamedTuple):
    """How a case ended.

    Attributes:
        case: The case.
        flaws: What is wrong with the answer; none if it was answered well.
        said: What was said.
        seconds: What it took.
    """

    case: Case
    flaws: list[str]
    said: str
    seconds: float


class LeftError(Exception):
    """A program left with a message and an exit code other than zero."""


def try_case(case: Case, folder: Path) -> Result:
    """Prepares a case in an empty folder, runs it and judges the answer."""
    began = time.perf_counter()
    copy_project(folder, case.finished)
    flaws: list[str] = []
    said = ""
    with inside(folder), contextlib.redirect_stderr(io.StringIO()):
        case.breaks()
        before = half_written(folder)
        try:
            case.invoke()
        except LeftError as left:
            said = str(left)
        except (ValueError, TypeError, OSError) as error:
            said = str(error)
            if case.area != "library" and not isinstance(error, ValueError | OSError):
                flaws.append(f"raises {type(error).__name__}")
        except AssertionError as error:
            flaws.append(f"the result is another: {error}")
        except Exception as error:
            flaws.append(f"raises {type(error).__name__}: {error}\n{_last_lines(error)}")
    if case.says and not said and not flaws:
        flaws.append("nothing was said")
    if not case.says and said:
        flaws.append(f"legal input is refused: {said}")
    flaws += [f"does not say {text!r}" for text in case.says if said and not re.search(text, said)]
    if "Traceback" in said:
        flaws.append("shows a traceback")
    flaws += [f"left half written: {path}" for path in half_written(folder) if path not in before]
    return Result(case, flaws, said, time.perf_counter() - began)


def half_written(folder: Path) -> list[str]:
    """Lists what a run left in its folder that is not whole."""
    wrong = [str(path.relative_to(folder)) for path in folder.rglob("*.partial")]
    wrong += [str(path.relative_to(folder)) for path in folder.rglob(".rehearsal-*")]
    for path in folder.glob("run*/**/metrics.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            wrong.append(str(path.relative_to(folder)))
    for path in folder.glob("run*/report.html"):
        if path.is_file() and not path.read_text("utf-8").rstrip().endswith("</html>"):
            wrong.append(str(path.relative_to(folder)))
    for path in folder.glob("run*/**/*.pt"):
        if not zipfile.is_zipfile(path):
            wrong.append(str(path.relative_to(folder)))
    return wrong


def _last_lines(error: Exception) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-2:])


# What a case breaks.


def nothing() -> None:
    """Leaves everything as it is."""


def together(*breaks: Break) -> Break:
    """Breaks several things."""
    return lambda: [each() for each in breaks]


def truncate(path: str, share: float = 0.5) -> Break:
    """Keeps only the beginning of a file."""
    return lambda: os.truncate(path, int(Path(path).stat().st_size * share))


def remove(path: str) -> Break:
    """Deletes a file."""
    return lambda: Path(path).unlink()


def content(path: str, data: bytes) -> Break:
    """Replaces the content of a file."""

    def act() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return act


def picture(
    path: str, mode: str = "RGB", size: tuple[int, int] = (64, 32), **options: Any
) -> Break:
    """Writes a picture of one colour, by the name of another format if `format` says so."""
    return lambda: Image.new(mode, size, options.pop("color", 0)).save(path, **options)


def stored(path: str, values: Any, dtype: Any = np.uint8) -> Break:
    """Writes an array as a picture."""
    return lambda: Image.fromarray(np.asarray(values, dtype)).save(path)


def rename(path: str, other: str) -> Break:
    """Moves a file."""
    return lambda: Path(path).rename(other)


def link(path: str, to: str) -> Break:
    """Makes a symbolic link."""
    return lambda: Path(path).symlink_to(to)


def in_place_of(path: str, make: Callable[[Path], object]) -> Break:
    """Removes a file and makes something else in its place."""

    def act() -> None:
        Path(path).unlink(missing_ok=True)
        make(Path(path))

    return act


def settings(old: str, new: str) -> Break:
    """Replaces a line of the settings."""

    def act() -> None:
        path = Path("settings.toml")
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return act


def saved(path: str, state: Callable[[], Any]) -> Break:
    """Saves something with torch."""
    return lambda: torch.save(state(), path)


def changed(path: str, change: Callable[[dict[str, Any]], object]) -> Break:
    """Changes what a file of torch holds."""

    def act() -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return act


# How a case is run.


def program(name: str, *options: str) -> Program:
    """Runs a program of `examples` with the project's settings."""

    def act() -> None:
        ended = run_program(name, "--config", "settings.toml", *options)
        if ended.error is not None:
            raise RuntimeError(f"traceback of {type(ended.error).__name__}") from ended.error
        if ended.code:
            raise LeftError(ended.said)

    return act


def adapt(*options: str) -> Program:
    """Runs the whole pipeline."""
    return program("adapt.py", *options)


def check(*options: str) -> Program:
    """Looks for everything that is wrong."""
    return program("adapt.py", "--check", "True", *options)


def read(
    images: str = "source/images", labels: str | None = None, index: int = 0, **ids: Any
) -> Any:
    """Reads an image of a folder."""
    return SegmentationFolder(images, labels, ["road", "car", "sky"], **ids)[index]


def gives(get: Callable[[], Any], wanted: Any) -> Program:
    """Compares the result of a call with what is wanted."""

    def act() -> None:
        got = get()
        assert got == wanted, f"{got} instead of {wanted}"

    return act


def cases() -> list[Case]:
    """Returns all cases."""
    return [
        *_data(),
        *_labels(),
        *_stored_labels(),
        *_settings(),
        *_checkpoints(),
        *_run_folder(),
        *_environment(),
        *_library(),
    ]


IMAGE, LABEL = "source/images/a.png", "source/labels/a.png"
BOTH = ("a.png",)


def _data() -> list[Case]:
    def of(name: str, breaks: Break, invoke: Program, *says: str) -> Case:
        return Case("data", name, breaks, invoke, says)

    def orientation() -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (64, 32)).save("source/images/c.jpg", exif=exif)

    def deep() -> None:
        values = np.full((32, 64), 0x1234, np.uint16)
        Image.fromarray(values).save(IMAGE)

    def frames() -> None:
        first, second = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (64, 32), "blue")
        first.save(IMAGE, "GIF", save_all=True, append_images=[second])

    def first_pixel(index: int = 0) -> Any:
        return read(index=index).image[:, 0, 0].tolist()

    def surrogate() -> None:
        os.rename(IMAGE, os.fsencode("source/images/") + b"\xff\xfe.png")

    far = "source/images/" + "x" * 230 + ".png"
    return [
        of("truncated PNG", truncate(IMAGE), adapt(), "error: source/images/a.png cannot be read"),
        of(
            "truncated PNG, in the check",
            truncate("target/images/b.png"),
            check(),
            "target: b: target/images/b.png cannot be read",
            "1 problem",
        ),
        of(
            "truncated JPEG",
            together(remove(IMAGE), picture("source/images/a.jpg"), truncate("source/images/a.jpg", 0.9)),
            adapt(),
            "a.jpg cannot be read",
            "[Tt]runcated",
        ),
        of("file of zero bytes", content("target/images/a.png", b""), adapt(), "a.png", "is empty"),
        of("text with the name of an image", content(IMAGE, b"hello"), adapt(), "a.png", "another kind"),
        of(
            "PostScript with the name of an image",
            content(IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
            adapt(),
            "a.png",
            "another kind",
        ),
        of("image of four channels", picture(IMAGE, "RGBA", color=(9, 8, 7, 0)), gives(first_pixel, [9, 8, 7])),
        of("grey image", picture(IMAGE, "L", color=9), gives(first_pixel, [9, 9, 9])),
        of("grey image with transparency", picture(IMAGE, "LA", color=(9, 1)), gives(first_pixel, [9, 9, 9])),
        of("image of one bit", picture(IMAGE, "1", color=1), gives(first_pixel, [255, 255, 255])),
        of("palette image", picture(IMAGE, "P"), gives(first_pixel, [0, 0, 0])),
        of("image of 16 bits", deep, gives(first_pixel, [0x12] * 3)),
        of(
            "CMYK image",
            picture("source/images/0.jpg", "CMYK", color=(0, 0, 0, 0)),
            gives(first_pixel, [255, 255, 255]),
        ),
        of(
            "image that EXIF turns",
            orientation,
            gives(lambda: tuple(read(index=2).image.shape), (3, 64, 32)),
        ),
        of("animated GIF with the name of a PNG", frames, gives(first_pixel, [255, 0, 0])),
        of(
            "image of far too many pixels",
            picture(IMAGE, "1", (20_000, 20_000)),
            gives_message(lambda: read()),
            "a.png cannot be read",
            "400000000 pixels",
        ),
        of("no image folder", rename("target", "elsewhere"), adapt(), "target: there is no folder target/images"),
        of(
            "empty image folder",
            together(remove("target/images/a.png"), remove("target/images/b.png")),
            adapt(),
            "target: there are no images .* in target/images",
        ),
        of(
            "file in the place of the image folder",
            settings('images = "target/images"', 'images = "settings.toml"'),
            adapt(),
            "target: there is no folder settings.toml",
        ),
        of("spaces in a name", rename("target/images/a.png", "target/images/a b c.png"), adapt()),
        of("letters of all the world in a name", rename("target/images/a.png", "target/images/ä漢🚗.png"), adapt()),
        of(
            "line break in a name",
            rename("target/images/a.png", "target/images/a\nb.png"),
            adapt(),
            r"target: 'target/images/a\\nb.png'",
            "rename",
        ),
        of(
            "backslash in a name",
            rename("target/images/a.png", "target/images/a\\b.png"),
            adapt(),
            r"a\\\\b.png",
            "rename",
        ),
        of("name that is no UTF-8", surrogate, adapt(), r"source: 'source/images/\\udcff", "rename"),
        of("name too long to add to", rename("target/images/a.png", far.replace("source", "target")), adapt(), "230 bytes"),
        of(
            "linked folder that holds its link",
            link("target/images/again", ".."),
            adapt(),
            "target/images/again.* is a link to .*target, which holds it|holds it",
        ),
        of("link to nothing", in_place_of("target/images/a.png", lambda p: p.symlink_to("no")), adapt(), "there is no file target/images/a.png"),
        of("link to itself", in_place_of("target/images/a.png", lambda p: p.symlink_to("a.png")), adapt(), "target/images/a.png"),
        of("suffix in capitals", rename("target/images/a.png", "target/images/A.PNG"), adapt()),
        of(
            "two images of one name",
            picture("target/images/a.jpg"),
            adapt(),
            "target: .*a.* differ in their suffix only",
            "move one",
        ),
        of("folder with the name of an image", in_place_of("target/images/a.png", Path.mkdir), adapt()),
        of("pipe with the name of an image", in_place_of("target/images/a.png", os.mkfifo), adapt()),
        of(
            "images smaller than the crop",
            together(picture("target/images/a.png", size=(9, 7)), picture("target/images/b.png", size=(3, 20))),
            adapt(),
        ),
        of("image of one pixel", picture("target/images/a.png", size=(1, 1)), adapt()),
        of("image of one colour", picture("target/images/a.png"), adapt()),
        of("very wide image", picture("target/images/a.png", size=(4000, 2)), adapt()),
        of(
            "SYNTHIA with labels of 8 bits",
            together(
                content("s/RGB/1.png", b""), content("s/GT/LABELS/1.png", b""),
                picture("s/RGB/1.png"), picture("s/GT/LABELS/1.png"),
            ),
            gives_message(lambda: Synthia("s")[0]),
            "s/GT/LABELS/1.png",
            "16 bits",
            "got 8 bits",
        ),
        of(
            "Cityscapes without images of the split",
            nothing,
            adapt("--target.dataset", "cityscapes", "--target.root", "target", "--target.split", "tran"),
            "leftImg8bit/tran",
        ),
        of(
            "GTA5 without labels",
            content("g/images/1.png", b""),
            adapt("--source.dataset", "gta5", "--source.root", "g"),
            "source: there is no folder g/labels",
        ),
        of(
            "streets where other images lie",
            nothing,
            adapt("--source.dataset", "gta5", "--source.root", "source", "--source.streets", "2"),
            "source/images exists",
            "no generated streets",
        ),
    ]  # fmt: skip


def gives_message(call: Callable[[], object]) -> Program:
    """Calls the library, which shall raise."""

    def act() -> None:
        call()

    return act


def _labels() -> list[Case]:
    def of(name: str, breaks: Break, invoke: Program, *says: str) -> Case:
        return Case("labels", name, breaks, invoke, says)

    def label(**ids: Any) -> Any:
        return read(labels="source/labels", **ids).label.unique().tolist()

    plain = np.zeros((32, 64), int)
    return [
        of("unknown id", stored(LABEL, plain + 7), adapt(), "source/labels/a.png has 1 unknown id", r"7 \(2048 pixels\)", "known ids are 0, 1, 2, 255"),
        of("unknown id, in the check", stored(LABEL, plain + 7), check(), "source: a: source/labels/a.png has 1 unknown id", "1 problem"),
        of("unknown id of 16 bits", stored(LABEL, plain + 26001, np.uint16), adapt(), r"26001 \(2048"),
        of("size of another image", stored(LABEL, plain[:16]), adapt(), "source/images/a.png is 64x32, but its label source/labels/a.png is 64x16"),
        of("label is missing", remove(LABEL), adapt(), "source: 1 of 2 images have no label", "such as a"),
        of("label without an image", remove(IMAGE), adapt(), "source: 1 of 2 labels .* have no image", "such as a"),
        of("all labels are missing", settings('labels = "source/labels"', ""), adapt(), "source image needs a label", "image [ab]"),
        of("all labels are missing, in the check", settings('labels = "source/labels"', ""), check(), "source: none of the images has a label"),
        of("label in colours", picture(LABEL), adapt(), "source/labels/a.png", "one number a pixel", "RGB"),
        of("label that was a JPEG", picture(LABEL, "L", format="JPEG"), adapt(), "source/labels/a.png cannot be read", "another kind"),
        of("truncated label", truncate(LABEL), adapt(), "source/labels/a.png cannot be read"),
        of("palette label", together(stored(LABEL, plain + 1), lambda: Image.open(LABEL).convert("P").save(LABEL)), gives(lambda: sorted(set(label()) - {1}), [])),
        of("label of 16 bits", stored(LABEL, plain + 2, np.uint16), gives(label, [2])),
        of("label of one bit", picture(LABEL, "1", color=1), gives(label, [1])),
        of("ids that say what numbers mean", stored(LABEL, plain + 7), gives(lambda: label(ids={7: "sky"}), [2])),
        of("every pixel is ignored", together(stored(LABEL, plain + 255), stored("source/labels/b.png", plain + 255)), adapt()),
        of("every pixel is ignored, in the check", together(stored(LABEL, plain + 255), stored("source/labels/b.png", plain + 255)), check(), "source: all pixels of all labels are ignored"),
        of("a class that never occurs", together(stored(LABEL, plain), stored("source/labels/b.png", plain)), adapt()),
        of("ids that point to no class", settings("[target]", "ids = {0 = 9}\n[target]"), adapt(), "source: ids point to 9, but the classes are 0 road, 1 car, 2 sky"),
        of("id that no file can hold", settings("[target]", "ids = {70000 = 0}\n[target]"), adapt(), "source: .*0...65535, not the id 70000"),
    ]  # fmt: skip


def _stored_labels() -> list[Case]:
    def of(name: str, breaks: Break, *says: str) -> Case:
        return Case("stored labels", name, breaks, adapt(), says, finished=True)

    def again(*stages: str) -> Break:
        """Forgets the results of stages and what they were made from, so that they run again."""
        files = ("metrics.json", "checkpoint.pt", "checkpoint.pt.previous")
        paths = [Path("run", stage, file) for stage in stages for file in files]
        return lambda: [path.unlink(missing_ok=True) for path in paths]

    def soft(values: Any, classes: int) -> Break:
        def act() -> None:
            from PIL import PngImagePlugin

            note = PngImagePlugin.PngInfo()
            note.add_text("cpsl classes", str(classes))
            Image.fromarray(np.asarray(values, np.uint8)).save(SOFT, pnginfo=note)

        return act

    self_label, hard = again("self_label"), again("distill_1")
    label = "run/distill_1/labels/a.png"
    right = np.repeat([[255], [0], [0]], 16, axis=0).repeat(32, axis=1)
    return [
        of("soft label that would be NaN", together(self_label, soft(np.zeros((24, 16)), 3)), "soft/a.png holds no probabilities", "delete it"),
        of("soft label of other classes", together(self_label, soft(right, 2)), "soft/a.png has 2 classes instead of 3", "delete it"),
        of("soft label of another size", together(self_label, soft(right, 3))),
        of("truncated soft label", together(self_label, truncate(SOFT)), "soft/a.png is damaged", "delete it"),
        of("foreign PNG in the place of a soft label", together(self_label, picture(SOFT, "L")), "soft/a.png is no map of soft labels", "delete it"),
        of("soft label is missing", together(self_label, remove(SOFT))),
        of("truncated label of distillation", together(hard, truncate(label)), "labels/a.png is damaged", "delete it"),
        of("label of distillation of no class", together(hard, stored(label, np.full((32, 64), 9))), "labels/a.png has the label 9, but there are 3 classes", "delete it"),
        of("foreign PNG in the place of a label of distillation", together(hard, picture(label)), "labels/a.png is no label map", "delete it"),
        of("label of distillation is missing", together(hard, remove(label))),
        of("truncated prediction", truncate("run/warmup/predictions/a.png"), "warmup/predictions/a.png is damaged", "Without run/warmup/metrics.json"),
        of("prediction is missing", remove("run/warmup/predictions/a.png"), "warmup/predictions/a.png", "Without run/warmup/metrics.json"),
        of("start.pt with NaN", together(self_label, changed(START, lambda s: s["prototypes"].fill_(float("nan")))), "start.pt: its entry prototypes", "finite", "delete"),
        of("start.pt of another model", together(self_label, changed(START, lambda s: s.update(prototypes=torch.zeros(3, 9)))), "start.pt: its entry prototypes", r"\(3, 8\)", "delete"),
        of("start.pt without an entry", together(self_label, changed(START, lambda s: s.pop("class_distribution"))), "start.pt: its entry class_distribution", "delete"),
        of("truncated start.pt", together(self_label, truncate(START)), "start.pt cannot be read", "Delete"),
    ]  # fmt: skip


SOFT, START = "run/pseudo_labels/soft/a.png", "run/pseudo_labels/start.pt"


def _settings() -> list[Case]:
    def of(name: str, breaks: Break, *says: str) -> Case:
        return Case("settings", name, breaks, adapt(), says)

    def option(name: str, *words: str, says: tuple[str, ...]) -> Case:
        title = f"{name.removeprefix('--')} {' '.join(words)}".strip()
        return Case("settings", title, nothing, adapt(name, *words), says)

    return [
        of("misspelled key", settings("bank_size", "bank_sise"), "--self-label.bank-size", "settings.toml"),
        of("misspelled table", settings("[self_label]", "[self_lable]"), "--self-label", "settings.toml"),
        of("unknown key", settings("[views]", "[views]\ncolour = 3"), "views.colour", "settings.toml"),
        of("word in the place of a number", settings("bank_size = 64", 'bank_size = "many"'), "bank-size", "many", "settings.toml"),
        of("fraction in the place of a whole number", settings("bank_size = 64", "bank_size = 6.5"), "bank-size", "6.5"),
        of("word in the place of true or false", settings("freeze_batch_norm = false", "freeze_batch_norm = 7"), "freeze-batch-norm", "7"),
        of("three numbers in the place of two", settings("[16, 32]", "[16, 32, 3]"), "3|crop"),
        of("no TOML", settings("[views]", "[views"), "settings.toml is not a TOML file", r"line \d+"),
        of("key given twice", settings("bank_size = 64", "bank_size = 64\nbank_size = 65"), "settings.toml is not a TOML file"),
        of("no UTF-8", content("settings.toml", b"\xff\xfe\x00"), "settings.toml is not a TOML file"),
        of("no file of settings", remove("settings.toml"), "settings.toml cannot be read"),
        of("folder in the place of settings", in_place_of("settings.toml", Path.mkdir), "settings.toml cannot be read"),
        of("no output", settings('output = "run"', ""), "--output", "settings.toml"),
        of("no target", settings('images = "target/images"', ""), "target: .*needs `images`"),
        option("--warmup.iterations", "-5", says=("warmup.iterations must be 1 or more, got -5", "settings.toml")),
        option("--self-label.iterations", "0", says=("self_label.iterations must be 1 or more, got 0",)),
        option("--distill.batch-size", "0", says=("distill.batch_size must be 1 or more",)),
        option("--views.crop", "0", "32", says=("views.crop must be 16 or more, got 0",)),
        option("--views.full-size", "-32", "64", says=("views.full_size must be 16 or more, got -32",)),
        option("--views.scale", "0", "1", says=("views.scale must be above 0, got 0",)),
        option("--views.width", "0", says=("views.width must be 1 or more",)),
        option("--self-label.temperature", "nan", says=("self_label.temperature must be above 0, got nan",)),
        option("--self-label.epsilon", "0", says=("self_label.epsilon must be above 0",)),
        option("--warmup.learning-rate", "inf", says=("warmup.learning_rate must be above 0, got inf",)),
        option("--self-label.teacher-momentum", "1.5", says=("self_label.teacher_momentum must be 0 to 1, got 1.5",)),
        option("--checkpoint-every", "0", says=("checkpoint_every must be 1 or more",)),
        option("--workers", "-1", says=("workers must be 0 or more",)),
        option("--accumulate", "2", says=("warmup.batch_size 1 must be a multiple of processes",)),
        option("--palette", "1", "2", "3", says=("palette: 3 classes need as many colours, got 1",)),
        option("--palette", *"1 2 3 4 5 6 7 8 999".split(), says=("palette must be 0 to 255, got 999",)),
        option("--classes", "road", "road", "sky", says=("class names must differ", "road")),
        option("--classes", *[str(i) for i in range(300)], says=("1 to 255 classes, got 300",)),
        option("--classes", says=("classes",)),
        option("--classes", "road", says=("unknown id", "source/labels/")),
        option("--model.backbone", "resnet_huge", says=("resnet_huge", "resnet101")),
        option("--source.dataset", "gta6", says=("gta6", "gta5")),
        option("--source.dataset", "gta5", says=("source: .*needs `root`",)),
        option("--output", "target/images/run", says=("output target/images/run lies in target.images", "another --output")),
        option("--hand-on", "best", says=("evaluate_every above 0",)),
        option("--warmup.start", "no.pth", says=("warmup.start: there is no file no.pth, nor is it one of imagenet",)),
        option("--warmup.start", ".", says=("warmup.start: there is no file [.]",)),
        option("--given.warmup", "no.pkl", says=("given.warmup: there is no file no.pkl",)),
        option("--given.warmup", "source", says=("given.warmup: there is no file source",)),
        option("--model.imagenet-file", "no.pth", says=("model.imagenet_file: there is no file no.pth",)),
        option("--no-such-option", "1", says=("no-such-option",)),
        of("crop larger than the image as a whole", settings("crop = [16, 32]", "crop = [48, 80]")),
        of("images at odd sizes", settings("[32, 64]", "[33, 67]")),
        of("the smallest sizes there are", settings("full_size = [32, 64]\ncrop = [16, 32]", "full_size = [16, 16]\ncrop = [16, 16]")),
        of("a colour for each of Cityscapes' classes", settings('classes = ["road", "car", "sky"]', f"palette = {[[i, i, i] for i in range(19)]}")),
    ]  # fmt: skip


def _checkpoints() -> list[Case]:
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
            name, data = hostile_pickles(Path("owned").resolve())[number]
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
        of("model of another architecture", copied(lambda s: s.update(backbone="resnet18")), "x.pt holds another network than it says"),
        of("model of a backbone that is not there", copied(lambda s: s.update(backbone="vgg")), "x.pt holds another network than it says", "vgg"),
        of("model of other classes", copied(lambda s: s.update(classes=["road", "car"])), "x.pt tells the classes road, car apart", "road, car, sky"),
        of("model with NaN", copied(lambda s: s["model"]["head.classify.weight"].fill_(nan)), "x.pt holds numbers that are not finite", "head.classify.weight"),
        of("prototypes in the place of a model", saved("x.pt", lambda: {"prototypes": torch.zeros(3, 8)}), "x.pt is no model.pt of a run", "prototypes"),
        of("list in the place of a model", saved("x.pt", lambda: [1]), "x.pt holds a list"),
        of("TorchScript", script, "x.pt cannot be read"),
        of("zip of something else", archive, "x.pt cannot be read"),
        of("pickle that runs code", evil(0, "x.pt"), "x.pt cannot be read"),
        of("pickle that runs code, as a release", evil(0, "x.pkl"), "x.pkl is damaged, or would run code", file="x.pkl"),
        of("release without most entries", release(half), "x.pkl is not the release's ResNet-101", "missing", file="x.pkl"),
        of("release of other classes", release(lambda: {**half(), "layer5.head.1.weight": torch.zeros(19, 256, 1, 1)}), "x.pkl was trained for 19 classes, not 3", file="x.pkl"),
        of("release with words for weights", release(lambda: {**half(), "layer5.head.1.weight": "w"}), "x.pkl holds no tensor at 'layer5.head.1.weight'", file="x.pkl"),
        of("release of no network", saved("x.pkl", lambda: {"iter": 3}), "x.pkl holds no segmentation network", "iter", file="x.pkl"),
        of("release that is random bytes", content("x.pkl", os.urandom(999)), "x.pkl is damaged", file="x.pkl"),
        start("backbone weights of another network", saved("x.pt", lambda: {"fc.weight": torch.zeros(1)}), "x.pt does not fit this backbone", "such as"),
        start("backbone weights that run code", evil(0, "x.pt"), "x.pt is no file of weights, or would run code"),
        start("backbone weights with NaN", saved("x.pt", lambda: {"conv1.weight": torch.full((1,), nan)}), "x.pt holds numbers that are not finite"),
        start("backbone weights by numbers", saved("x.pt", lambda: {1: torch.zeros(1)}), "x.pt does not fit this backbone"),
        Case("checkpoints", "weights to evaluate are missing", nothing, program("evaluate.py", "--weights", "no.pt"), ("there is no file no.pt",)),
        Case("checkpoints", "weights to evaluate run code", evil(0, "x.pt"), program("evaluate.py", "--weights", "x.pt"), ("x.pt cannot be read",)),
        Case("checkpoints", "scales that make no image", nothing, program("evaluate.py", "--weights", "run/distill_2/model.pt", "--scales", "0"), ("scales must be positive", ), finished=True),
        Case("checkpoints", "model that is no ResNet-101 for the release", nothing, lambda: _plain("to_release.py", "--weights", "run/distill_2/model.pt", "--output", "x.pkl"), ("the release's network is a ResNet-101",), finished=True),
        Case("checkpoints", "no clustering.pt for the release", nothing, lambda: _plain("to_release.py", "--weights", "run/distill_2/model.pt", "--output", "x.pkl", "--clustering", START), ("start.pt is no clustering.pt",), finished=True),
    ]  # fmt: skip


def _plain(name: str, *options: str) -> None:
    ended = run_program(name, *options)
    if ended.error is not None:
        raise RuntimeError(f"traceback of {type(ended.error).__name__}") from ended.error
    if ended.code:
        raise LeftError(ended.said)


def _run_folder() -> list[Case]:
    def of(name: str, breaks: Break, *says: str, options: tuple[str, ...] = ()) -> Case:
        return Case("run folder", name, breaks, adapt(*options), says, finished=True)

    return [
        of("metrics.json cut short", truncate("run/warmup/metrics.json"), "run/warmup/metrics.json is damaged: delete it"),
        of("metrics.json of zero bytes", content("run/warmup/metrics.json", b""), "run/warmup/metrics.json is damaged: delete it"),
        of("metrics.json of something else", content("run/warmup/metrics.json", b"[1]"), "run/warmup/metrics.json is damaged: delete it"),
        of("config.toml cut short", content("run/config.toml", b"output = "), "run/config.toml is not a TOML file"),
        of("other settings than those of the run", nothing, "run holds a run with other settings", "seed: 0 then, 1 now", "another folder", options=("--seed", "1")),
        of("curves cut short", truncate("run/warmup/scalars.jsonl")),
        of("curves of something else", content("run/warmup/scalars.jsonl", b'7\nnull\n{"a": 1}\n\xff\n{"iteration": NaN}\n')),
        of("clustering.pt cut short", truncate("run/self_label/clustering.pt"), "run/self_label/clustering.pt cannot be read"),
        of("clustering.pt of something else", saved("run/self_label/clustering.pt", lambda: {"prototypes": 3}), "clustering.pt is not what self-labeling writes"),
        of("teacher.pt is missing", remove("run/self_label/teacher.pt"), "there is no file run/self_label/teacher.pt"),
        of("model.pt of a finished stage is missing", together(remove("run/distill_1/model.pt"), remove("run/distill_2/metrics.json")), "there is no file run/distill_1/model.pt"),
        of("report.html is a folder", in_place_of("run/report.html", Path.mkdir), "run/report.html|irectory"),
    ]  # fmt: skip


def _environment() -> list[Case]:
    from unittest import mock

    def of(name: str, breaks: Break, invoke: Program, *says: str) -> Case:
        return Case("environment", name, breaks, invoke, says)

    def full_disk(after: int) -> Program:
        """Runs the pipeline on a disk that is full after so many files."""

        def act() -> None:
            left = [after]
            replace = Path.replace

            def refuse(path: Path, target: Any) -> Path:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(28, "No space left on device", str(target))
                return replace(path, target)

            with mock.patch.object(Path, "replace", refuse):
                adapt()()

        return act

    def killed_worker() -> None:
        # In a worker that loads images: it ends without a word, as one that the system kills.
        me = os.getpid()
        real = SegmentationFolder.image

        def die(dataset: SegmentationFolder, index: int) -> torch.Tensor:
            if os.getpid() != me:
                os.kill(os.getpid(), 9)
            return real(dataset, index)

        with mock.patch.object(SegmentationFolder, "image", die):
            adapt("--workers", "1")()

    def small_files() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            adapt()()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def no_memory() -> None:
        with mock.patch.object(SegmentationFolder, "image", mock.Mock(side_effect=MemoryError)):
            adapt()()

    missing = f"cuda:{torch.cuda.device_count() + 3}"
    return [
        of("output is a file", nothing, adapt("--output", "settings.toml"), "settings.toml"),
        of("output lies in a file", nothing, adapt("--output", "settings.toml/run"), "settings.toml"),
        of("output lies in a file, in the check", nothing, check("--output", "settings.toml/run"), "settings.toml"),
        of("output below a folder that takes no files", nothing, adapt("--output", "/proc/run"), "/proc/run"),
        of("a GPU that is not there", nothing, adapt("--device", missing), f"{missing} is asked for", "cpu"),
        of("a device of no name", nothing, adapt("--device", "gpu"), 'device must be "auto"', "'gpu'"),
        of("full disk at the start", nothing, full_disk(0), "No space left on device", "run/config.toml"),
        of("full disk while training", nothing, full_disk(2), "No space left on device", "run/"),
        of("disk that takes no large files", nothing, small_files, "while run/source_only/checkpoint.pt was written", "disk"),
        of("full disk between the stages", nothing, full_disk(9), "No space left on device", "run/"),
        of("a process that loads images is killed", nothing, killed_worker, "DataLoader worker", "--workers"),
        of("memory is short", nothing, no_memory, "memory|Memory"),
        of("log.txt is a folder", lambda: Path("run/log.txt").mkdir(parents=True), adapt(), "log.txt"),
        of("a stage's folder is a file", content("run/source_only", b""), adapt(), "run/source_only"),
        of("a stage before its time", nothing, program("self_label.py"), "there is no file run/warmup/model.pt", "has to run first"),
    ]  # fmt: skip


def _library() -> list[Case]:
    return [Case("library", name, nothing, gives_message(call), says) for name, call, says in CALLS]


class Arguments(NamedTuple):
    """Tries bad input."""

    area: str = ""
    """Only the cases of this area."""
    name: str = ""
    """Only the cases whose name contains this."""


def main(arguments: Arguments) -> None:
    """Tries the cases and prints what came of them; ends with an error if any was not answered well."""
    tried, well = Counter[str](), Counter[str]()
    for case in cases():
        if arguments.area not in ("", case.area) or arguments.name not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = try_case(case, Path(folder))
        tried[case.area] += 1
        well[case.area] += not result.flaws
        if result.flaws:
            print(
                f"{case.area}: {case.name}: {'; '.join(result.flaws)}\n  said: {result.said.strip()}\n"
            )
    print(f"{'area':16}{'tried':>8}{'well':>8}{'failed':>8}")
    for area, count in tried.items():
        print(f"{area:16}{count:8}{well[area]:8}{count - well[area]:8}")
    total, good = tried.total(), well.total()
    print(f"{'together':16}{total:8}{good:8}{total - good:8}")
    if good < total:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
