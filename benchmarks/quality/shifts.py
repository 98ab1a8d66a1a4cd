"""The shifts: a source, a target and a held-out evaluation set each, written as files with their settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

from cpsl.data.streets import write_streets

from .fields import Style, write_fields
from .texture import Bytes
from .weather import camera, fog, night

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
"""Classes of the photographs, in the order of their label values; 255 is ignored."""

SIZE = (240, 320)
"""Height and width of photographs and fields."""

SMALL = {"full_size": [240, 320], "crop": [192, 256], "width": 320, "scale": [0.8, 1.6]}
"""Views of images of `SIZE`."""

QUICK = 16
"""With `quick`, a shift has one of this many images."""

Settings = dict[str, object]
Pair = tuple[str, Bytes, Bytes | None]
"""Name, image (H, W, 3) and label (H, W) if there is one."""


@dataclass(frozen=True)
class Shift:
    """A shift of domains.

    Attributes:
        title: What differs between the domains.
        rare: The classes whose mean IoU is reported: those with less than 2 % of the source's labeled pixels,
            1 % for streets; the minority class of fields.
        write: Writes the data into a folder and returns the settings, given whether to write few images only.
    """

    title: str
    rare: tuple[str, ...]
    write: Callable[[Path, bool], Settings]

    def prepare(self, folder: Path, quick: bool = False) -> Path:
        """Writes data and `settings.toml` into a folder, unless they exist; returns the path of the file."""
        path = folder / "settings.toml"
        if not path.exists():
            text = tomli_w.dumps({"base": "cpu", **self.write(folder, quick)})
            partial_file = path.with_suffix(".partial")
            partial_file.write_text(text)
            partial_file.replace(path)  # last, so that an interrupted call is repeated
        return path


def folder_settings(folder: Path, classes: tuple[str, ...]) -> Settings:
    """Returns the settings of a shift whose domains are folders of images and labels."""
    return {
        "classes": [*classes],
        "source": {"images": str(folder / "source/images"), "labels": str(folder / "source/labels")},
        "target": {"images": str(folder / "target/images")},
        "evaluation": {
            "images": str(folder / "evaluation/images"),
            "labels": str(folder / "evaluation/labels"),
        },
        "views": SMALL,
    }


def write_pairs(folder: Path, pairs: Iterator[Pair]) -> None:
    """Writes images and labels as `images/NAME.png` and `labels/NAME.png`."""
    for name, image, label in pairs:
        for kind, array in (("images", image), ("labels", label)):
            if array is not None:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / kind / f"{name}.png")


def _streets(folder: Path, quick: bool) -> Settings:
    size = (192, 384)
    source, target, held_out = (count // QUICK if quick else count for count in (320, 200, 64))
    write = partial(write_streets, size=size)
    write(folder / "game", layout="gta5", style="game", count=source)
    write(folder / "real", layout="cityscapes", style="real", count=target)
    write(folder / "real", layout="cityscapes", style="real", count=held_out, split="val")
    real = {"dataset": "cityscapes", "root": str(folder / "real")}
    return {
        "source": {"dataset": "gta5", "root": str(folder / "game")},
        "target": real,
        "evaluation": {**real, "split": "val"},
        "views": {"full_size": [*size], "crop": [128, 256], "width": 400, "scale": [0.75, 1.5]},
    }


def _fields(folder: Path, quick: bool, classes: tuple[str, ...]) -> Settings:
    counts = {"source": 60, "target": 39, "evaluation": 30}
    for seed, (domain, count) in enumerate(counts.items()):
        style: Style = "robot" if domain == "source" else "phone"
        write_fields(folder / domain, style, max(count // QUICK, 4) if quick else count, SIZE, seed)
        if len(classes) == 2:  # soil and plants
            for path in (folder / domain / "labels").glob("*.png"):
                Image.fromarray(np.minimum(np.asarray(Image.open(path)), 1)).save(path)
    return folder_settings(folder, classes)


STREETS = Shift(
    "generated street scenes: clean and saturated to dull, noisy and crowded",
    (
        *("fence", "pole", "traffic light", "traffic sign", "person", "rider"),
        *("truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    _streets,
)
FIELDS_2 = Shift(
    "generated fields, soil and plant: a robot's multispectral camera to a phone",
    ("plant",),
    partial(_fields, classes=("soil", "plant")),
)
FIELDS_3 = Shift(
    "the same fields; soil, crop and weed", ("weed",), partial(_fields, classes=("soil", "crop", "weed"))
)


def shifts(photographs: Path | None = None) -> dict[str, Shift]:
    """Returns all shifts by name; those of photographs only if their folder is given.

    Args:
        photographs: Folder with `day/{images,labels}`, `dusk/images` and `dusk_val/{images,labels}`, whose
            labels hold the indices of `CAMVID`. The names of the day's images begin with their sequence.

    Raises:
        FileNotFoundError: A folder of photographs is missing.
    """
    generated = {"streets": STREETS, "fields2": FIELDS_2, "fields3": FIELDS_3}
    if photographs is None:
        return generated
    for name in ("day/images", "day/labels", "dusk/images", "dusk_val/images", "dusk_val/labels"):
        if not (photographs / name).is_dir():
            raise FileNotFoundError(f"{photographs / name} is missing: --photographs names its parent folder")
    rare = ("pole", "sign", "fence", "pedestrian", "bicyclist")
    made = partial(_made_shift, photographs)
    return generated | {
        "night": Shift(
            "photographs to other streets by night, made from day", rare, partial(made, "Seq05VD", night)
        ),
        "fog": Shift(
            "photographs to other streets in fog, made from clear air", rare, partial(made, "0016E5", fog)
        ),
        "camera": Shift(
            "photographs to other streets and another camera, made", rare, partial(made, "0006R0", camera)
        ),
        "dusk": Shift("photographs by day to photographs at dusk", rare, partial(_dusk, photographs)),
    }


Made = Callable[..., tuple[Bytes, Any]]


def _made_shift(photographs: Path, sequence: str, shift: Made, folder: Path, quick: bool) -> Settings:
    """Writes a shift whose target is one sequence of the day, changed by `shift`.

    Of eight frames of the sequence, three are images of the target; the others are held out.
    """
    day = _pairs(photographs / "day")
    taken = [path for path in day if path.name.startswith(sequence)]
    others = [path for path in day if not path.name.startswith(sequence)]
    if not (taken and others):
        raise ValueError(f"{photographs / 'day/images'} needs images of {sequence} and of other sequences")
    target = [path for i, path in enumerate(taken) if i % 8 in (0, 2, 4)]
    held_out = [path for path in taken if path not in target]
    settings = {} if shift is camera else {"sky": CAMVID.index("sky")}

    def change(pairs: Iterator[Pair]) -> Iterator[Pair]:
        for name, image, label in pairs:
            random = np.random.default_rng([*name.encode()])
            yield name, shift(image, label, random, **settings)[0], label

    few = QUICK if quick else 1
    write_pairs(folder / "source", _read(others[::few]))
    write_pairs(folder / "target", change(_read(target[::few])))
    write_pairs(folder / "evaluation", change(_read(held_out[::few])))
    return folder_settings(folder, CAMVID)


def _dusk(photographs: Path, folder: Path, quick: bool) -> Settings:
    few = QUICK if quick else 1
    write_pairs(folder / "source", _read(_pairs(photographs / "day")[::few]))
    write_pairs(folder / "target", _read(_pairs(photographs / "dusk")[::few]))
    write_pairs(folder / "evaluation", _read(_pairs(photographs / "dusk_val")[:: 4 if quick else 1]))
    return folder_settings(folder, CAMVID)


def _pairs(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def _read(images: list[Path]) -> Iterator[Pair]:
    """Yields photographs of `SIZE` with their labels, if there are any."""
    size = SIZE[::-1]
    for path in images:
        label, stored = None, path.parents[1] / "labels" / f"{path.stem}.png"
        if stored.exists():
            label = np.asarray(Image.open(stored).resize(size, Image.Resampling.NEAREST))
        image = Image.open(path).convert("RGB").resize(size, Image.Resampling.BOX)
        yield path.stem, np.asarray(image), label
