"""Images and labels that are not as they should be, and some that only seem so."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from case import (
    IMAGE,
    LABEL,
    TARGET,
    Case,
    content,
    gives,
    picture,
    read,
    remove,
    rename,
    replace,
    settings,
    stored,
    truncate,
)
from cpsl.data import Synthia

data, labels = partial(Case, "data"), partial(Case, "labels")


def rotated() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save("source/images/c.jpg", exif=exif)


def frames() -> None:
    first, second = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (64, 32), "blue")
    first.save(IMAGE, "GIF", save_all=True, append_images=[second])


def pixel_is(*color: int) -> Any:
    """Reads the first pixel of the first source image, which must have this color."""
    return gives(lambda: read().image[:, 0, 0].tolist(), list(color))


def classes_are(*classes: int, **ids: Any) -> Any:
    """Reads the label of the first source image, which must have these classes."""
    return gives(lambda: read(labels="source/labels", **ids).label.unique().tolist(), list(classes))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
OTHER = "target/images/b.png"
LONG = f"target/images/{'x' * 230}.png"
JPEG = "source/images/a.jpg"
CITYSCAPES = "adapt --target.dataset cityscapes --target.root target --target.split tran"
STREETS = "adapt --source.dataset gta5 --source.root source --source.streets 2"

DATA = [
    data("truncated PNG", truncate(IMAGE), IMAGE),
    data("truncated PNG, in the check", truncate(OTHER), OTHER, act="check"),
    data("truncated JPEG", [remove(IMAGE), picture(JPEG), truncate(JPEG, 0.9)], JPEG),
    data("empty file", content(TARGET, b""), TARGET),
    data("text named like an image", content(IMAGE, b"hello"), IMAGE),
    data("PostScript named like an image", content(IMAGE, POSTSCRIPT), IMAGE),
    data("RGBA image", picture(IMAGE, "RGBA", color=(9, 8, 7, 0)), act=pixel_is(9, 8, 7)),
    data("gray image", picture(IMAGE, "L", color=9), act=pixel_is(9, 9, 9)),
    data("gray image with alpha", picture(IMAGE, "LA", color=(9, 1)), act=pixel_is(9, 9, 9)),
    data("image of one bit", picture(IMAGE, "1", color=1), act=pixel_is(255, 255, 255)),
    data("palette image", picture(IMAGE, "P"), act=pixel_is(0, 0, 0)),
    data("image of 16 bits", stored(IMAGE, 0x1234, np.uint16), act=pixel_is(18, 18, 18)),
    data(
        "CMYK image", picture("source/images/0.jpg", "CMYK", color=(0, 0, 0, 0)), act=pixel_is(255, 255, 255)
    ),
    data("image rotated by EXIF", rotated, act=gives(lambda: tuple(read(index=2).image.shape), (3, 64, 32))),
    data("animated GIF named like a PNG", frames, act=pixel_is(255, 0, 0)),
    data(
        "image of far too many pixels", picture(IMAGE, "1", (20_000, 20_000)), (IMAGE, "400000000"), act=read
    ),
    data("no image folder", rename("target", "elsewhere"), "target/images"),
    data("empty image folder", [remove(TARGET), remove(OTHER)], "target/images"),
    data(
        "file in place of the image folder",
        settings('"target/images"', '"settings.toml"'),
        ("target", "settings.toml"),
    ),
    data("spaces in a name", rename(TARGET, "target/images/a b c.png")),
    data("non-ASCII name", rename(TARGET, "target/images/ä漢🚗.png")),
    data("line break in a name", rename(TARGET, "target/images/a\nb.png"), r"images/a\nb.png"),
    data("backslash in a name", rename(TARGET, "target/images/a\\b.png"), "a\\\\b.png"),
    data(
        "name that is not UTF-8",
        lambda: os.rename(IMAGE, b"source/images/\xff\xfe.png"),
        r"source/images/\udcff",
    ),
    data("name too long to append to", rename(TARGET, LONG), "230"),
    data(
        "link to a folder above", lambda: Path("target/images/again").symlink_to(".."), "target/images/again"
    ),
    data("link to nothing", replace(TARGET, lambda path: path.symlink_to("no")), TARGET),
    data("link to itself", replace(TARGET, lambda path: path.symlink_to("a.png")), TARGET),
    data("suffix in capitals", rename(TARGET, "target/images/A.PNG")),
    data("two images of one name", picture("target/images/a.jpg"), ("target", "a.jpg")),
    data("folder named like an image", replace(TARGET, Path.mkdir)),
    data("pipe named like an image", replace(TARGET, os.mkfifo)),
    data("images smaller than the crop", [picture(TARGET, size=(9, 7)), picture(OTHER, size=(3, 20))]),
    data("image of one pixel", picture(TARGET, size=(1, 1))),
    data("image of one color", picture(TARGET)),
    data("very wide image", picture(TARGET, size=(4000, 2))),
    data(
        "SYNTHIA with labels of 8 bits",
        [
            *(content(f"s/{folder}/1.png", b"") for folder in ("RGB", "GT/LABELS")),
            *(picture(f"s/{folder}/1.png") for folder in ("RGB", "GT/LABELS")),
        ],
        ("s/GT/LABELS/1.png", "16", "8"),
        act=lambda: Synthia("s")[0],
    ),
    data("Cityscapes without the split", (), "leftImg8bit/tran", act=CITYSCAPES),
    data(
        "GTA5 without labels",
        content("g/images/1.png", b""),
        ("source", "g/labels"),
        act="adapt --source.dataset gta5 --source.root g",
    ),
    data("generated streets beside other images", (), "source/images", act=STREETS),
]

IGNORED = [stored(LABEL, 255), stored("source/labels/b.png", 255)]
UNLABELED = settings(', labels = "source/labels"', "")

LABELS = [
    labels("unknown id", stored(LABEL, 7), (LABEL, "7", "0, 1, 2, 255")),
    labels("unknown id, in the check", stored(LABEL, 7), (LABEL, "7"), act="check"),
    labels("unknown id of 16 bits", stored(LABEL, 26001, np.uint16), (LABEL, "26001")),
    labels("label of another size", stored(LABEL, np.zeros((16, 64))), (IMAGE, "64x32", LABEL, "64x16")),
    labels("one label is missing", remove(LABEL), "source/labels"),
    labels("label without an image", remove(IMAGE), "source/images"),
    labels("no labels", UNLABELED, ("source", "label")),
    labels("no labels, in the check", UNLABELED, ("source", "label"), act="check"),
    labels("label in colors", picture(LABEL), (LABEL, "RGB")),
    labels("label stored as JPEG", picture(LABEL, "L", format="JPEG"), LABEL),
    labels("truncated label", truncate(LABEL), LABEL),
    labels(
        "palette label",
        [stored(LABEL, 1), lambda: Image.open(LABEL).convert("P").save(LABEL)],
        act=classes_are(1),
    ),
    labels("label of 16 bits", stored(LABEL, 2, np.uint16), act=classes_are(2)),
    labels("label of one bit", picture(LABEL, "1", color=1), act=classes_are(1)),
    labels("ids give numbers a class", stored(LABEL, 7), act=classes_are(2, ids={7: "sky"})),
    labels("every pixel is ignored", IGNORED),
    labels("every pixel is ignored, in the check", IGNORED, ("source", "label"), act="check"),
    labels("class that never occurs", [stored(LABEL, 0), stored("source/labels/b.png", 0)]),
    labels("ids of no class", settings("source = {", "source = { ids = { 0 = 9 },"), ("ids", "9")),
    labels(
        "id that no file can hold",
        settings("source = {", "source = { ids = { 70000 = 0 },"),
        ("source", "70000"),
    ),
]
