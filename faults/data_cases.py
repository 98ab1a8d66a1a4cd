"""Images and labels that are not as they should be, and some that only look so."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from case import (
    IMAGE,
    LABEL,
    Break,
    Case,
    Program,
    adapt,
    check,
    content,
    gives,
    gives_message,
    in_place_of,
    link,
    nothing,
    picture,
    read,
    remove,
    rename,
    settings,
    stored,
    together,
    truncate,
)
from cpsl.data import Synthia


def data_cases() -> list[Case]:
    """Returns the cases."""

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
            together(
                remove(IMAGE), picture("source/images/a.jpg"), truncate("source/images/a.jpg", 0.9)
            ),
            adapt(),
            "a.jpg cannot be read",
            "[Tt]runcated",
        ),
        of("file of zero bytes", content("target/images/a.png", b""), adapt(), "a.png", "is empty"),
        of(
            "text with the name of an image",
            content(IMAGE, b"hello"),
            adapt(),
            "a.png",
            "another kind",
        ),
        of(
            "PostScript with the name of an image",
            content(IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
            adapt(),
            "a.png",
            "another kind",
        ),
        of(
            "image of four channels",
            picture(IMAGE, "RGBA", color=(9, 8, 7, 0)),
            gives(first_pixel, [9, 8, 7]),
        ),
        of("grey image", picture(IMAGE, "L", color=9), gives(first_pixel, [9, 9, 9])),
        of(
            "grey image with transparency",
            picture(IMAGE, "LA", color=(9, 1)),
            gives(first_pixel, [9, 9, 9]),
        ),
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
        of(
            "no image folder",
            rename("target", "elsewhere"),
            adapt(),
            "target: there is no folder target/images",
        ),
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
        of(
            "letters of all the world in a name",
            rename("target/images/a.png", "target/images/ä漢🚗.png"),
            adapt(),
        ),
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
        of(
            "name that is no UTF-8", surrogate, adapt(), r"source: 'source/images/\\udcff", "rename"
        ),
        of(
            "name too long to add to",
            rename("target/images/a.png", far.replace("source", "target")),
            adapt(),
            "230 bytes",
        ),
        of(
            "linked folder that holds its link",
            link("target/images/again", ".."),
            adapt(),
            "target/images/again.* is a link to .*target, which holds it|holds it",
        ),
        of(
            "link to nothing",
            in_place_of("target/images/a.png", lambda p: p.symlink_to("no")),
            adapt(),
            "there is no file target/images/a.png",
        ),
        of(
            "link to itself",
            in_place_of("target/images/a.png", lambda p: p.symlink_to("a.png")),
            adapt(),
            "target/images/a.png",
        ),
        of("suffix in capitals", rename("target/images/a.png", "target/images/A.PNG"), adapt()),
        of(
            "two images of one name",
            picture("target/images/a.jpg"),
            adapt(),
            "target: .*a.* differ in their suffix only",
            "move one",
        ),
        of(
            "folder with the name of an image",
            in_place_of("target/images/a.png", Path.mkdir),
            adapt(),
        ),
        of(
            "pipe with the name of an image", in_place_of("target/images/a.png", os.mkfifo), adapt()
        ),
        of(
            "images smaller than the crop",
            together(
                picture("target/images/a.png", size=(9, 7)),
                picture("target/images/b.png", size=(3, 20)),
            ),
            adapt(),
        ),
        of("image of one pixel", picture("target/images/a.png", size=(1, 1)), adapt()),
        of("image of one colour", picture("target/images/a.png"), adapt()),
        of("very wide image", picture("target/images/a.png", size=(4000, 2)), adapt()),
        of(
            "SYNTHIA with labels of 8 bits",
            together(
                content("s/RGB/1.png", b""),
                content("s/GT/LABELS/1.png", b""),
                picture("s/RGB/1.png"),
                picture("s/GT/LABELS/1.png"),
            ),
            gives_message(lambda: Synthia("s")[0]),
            "s/GT/LABELS/1.png",
            "16 bits",
            "got 8 bits",
        ),
        of(
            "Cityscapes without images of the split",
            nothing,
            adapt(
                "--target.dataset",
                "cityscapes",
                "--target.root",
                "target",
                "--target.split",
                "tran",
            ),
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
    ]


def label_cases() -> list[Case]:
    """Returns the cases."""

    def of(name: str, breaks: Break, invoke: Program, *says: str) -> Case:
        return Case("labels", name, breaks, invoke, says)

    def label(**ids: Any) -> Any:
        return read(labels="source/labels", **ids).label.unique().tolist()

    plain = np.zeros((32, 64), int)
    return [
        of(
            "unknown id",
            stored(LABEL, plain + 7),
            adapt(),
            "source/labels/a.png has 1 unknown id",
            r"7 \(2048 pixels\)",
            "known ids are 0, 1, 2, 255",
        ),
        of(
            "unknown id, in the check",
            stored(LABEL, plain + 7),
            check(),
            "source: a: source/labels/a.png has 1 unknown id",
            "1 problem",
        ),
        of(
            "unknown id of 16 bits",
            stored(LABEL, plain + 26001, np.uint16),
            adapt(),
            r"26001 \(2048",
        ),
        of(
            "size of another image",
            stored(LABEL, plain[:16]),
            adapt(),
            "source/images/a.png is 64x32, but its label source/labels/a.png is 64x16",
        ),
        of(
            "label is missing",
            remove(LABEL),
            adapt(),
            "source: 1 of 2 images have no label",
            "such as a",
        ),
        of(
            "label without an image",
            remove(IMAGE),
            adapt(),
            "source: 1 of 2 labels .* have no image",
            "such as a",
        ),
        of(
            "all labels are missing",
            settings('labels = "source/labels"', ""),
            adapt(),
            "source image needs a label",
            "image [ab]",
        ),
        of(
            "all labels are missing, in the check",
            settings('labels = "source/labels"', ""),
            check(),
            "source: none of the images has a label",
        ),
        of(
            "label in colours",
            picture(LABEL),
            adapt(),
            "source/labels/a.png",
            "one number a pixel",
            "RGB",
        ),
        of(
            "label that was a JPEG",
            picture(LABEL, "L", format="JPEG"),
            adapt(),
            "source/labels/a.png cannot be read",
            "another kind",
        ),
        of("truncated label", truncate(LABEL), adapt(), "source/labels/a.png cannot be read"),
        of(
            "palette label",
            together(stored(LABEL, plain + 1), lambda: Image.open(LABEL).convert("P").save(LABEL)),
            gives(lambda: sorted(set(label()) - {1}), []),
        ),
        of("label of 16 bits", stored(LABEL, plain + 2, np.uint16), gives(label, [2])),
        of("label of one bit", picture(LABEL, "1", color=1), gives(label, [1])),
        of(
            "ids that say what numbers mean",
            stored(LABEL, plain + 7),
            gives(lambda: label(ids={7: "sky"}), [2]),
        ),
        of(
            "every pixel is ignored",
            together(stored(LABEL, plain + 255), stored("source/labels/b.png", plain + 255)),
            adapt(),
        ),
        of(
            "every pixel is ignored, in the check",
            together(stored(LABEL, plain + 255), stored("source/labels/b.png", plain + 255)),
            check(),
            "source: all pixels of all labels are ignored",
        ),
        of(
            "a class that never occurs",
            together(stored(LABEL, plain), stored("source/labels/b.png", plain)),
            adapt(),
        ),
        of(
            "ids that point to no class",
            settings("[target]", "ids = {0 = 9}\n[target]"),
            adapt(),
            "source: ids point to 9, but the classes are 0 road, 1 car, 2 sky",
        ),
        of(
            "id that no file can hold",
            settings("[target]", "ids = {70000 = 0}\n[target]"),
            adapt(),
            "source: .*0...65535, not the id 70000",
        ),
    ]
