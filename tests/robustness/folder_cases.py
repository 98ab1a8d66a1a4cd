"""Images and labels as people have them: each is read right, or refused by name."""

from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from case import IMAGE, LABEL, TARGET, Act, Case, content, gives, picture, remove, rename, settings, stored
from cpsl.data import SegmentationFolder

folders = partial(Case, "folders")

OTHER_LABEL = "source/labels/b.png"
RED = (255, 0, 0)


def classes_are(*classes: int, **options: Any) -> Act:
    """Reads the first source image with its label, which must have these classes."""

    def read() -> list[int]:
        dataset = SegmentationFolder("source/images", "source/labels", ["road", "car", "sky"], **options)
        found: list[int] = dataset[0].label.unique().tolist()
        return found

    return gives(read, list(classes))


def level_is(level: int, **options: Any) -> Act:
    return gives(lambda: int(SegmentationFolder("source/images", **options).image(0)[0, 0, 0]), level)


def rotated_image(orientation: int, size: tuple[int, int] = (64, 32)) -> Act:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda: Image.new("RGB", size).save(IMAGE, exif=exif)


def halves(rows: int = 32, columns: int = 64) -> Act:
    """Writes a label of class 1 on the left and 0 on the right."""
    values = np.zeros((rows, columns))
    values[:, : columns // 2] = 1
    return stored(LABEL, values)


def first_pixel_is(value: int, **options: Any) -> Act:
    def read() -> int:
        dataset = SegmentationFolder("source/images", "source/labels", ["road", "car", "sky"], **options)
        return int(dataset[0].label[0, 0])

    return gives(read, value)


def array(path: str, value: float, dtype: Any) -> Act:
    """Writes a TIFF of one number."""
    return lambda: Image.fromarray(np.full((32, 64), value, dtype)).save(path, "TIFF")


def palette_label() -> None:
    Image.new("RGB", (64, 32), RED).convert("P").save(LABEL)


def binary() -> SegmentationFolder:
    return SegmentationFolder("source/images", "source/labels", ["road", "car"])


def jpeg_label(**options: Any) -> Act:
    return lambda: Image.new("RGB", (64, 32), RED).save(LABEL, "JPEG", **options)


IDS = {"#ff0000": 1, "#000000": 0}
LABELS_RENAMED = [rename(f"source/labels/{name}.png", f"source/labels/{name}_mask.png") for name in "ab"]
NAMED_LABELS = settings('labels = "source/labels"', 'labels = "source/labels", label_pattern = "*_mask.png"')
GRAY = np.ones((32, 64, 3))

ROTATED_180, ROTATED_90 = [rotated_image(3), halves()], [rotated_image(8), halves()]
TO_STATE = (IMAGE, "label_orientation")
LFS = b"version https://git-lfs.github.com/spec/v1"
ALONE = [remove(TARGET), remove("target/images/b.png"), content("target/images/a.heic", b"x")]
TWINS = [picture("target/images/\xe9.png"), picture("target/images/e\u0301.jpg")]
MASKS = [stored(LABEL, 255), stored(OTHER_LABEL, 0)]
TREE, REDDISH = (f"source = {{ ids = {{ {key} }}," for key in ('"#ff0000" = "tree"', "reddish = 1"))
NO_STAR = settings("source = {", 'source = { image_pattern = "a", ')
PROPOSED = ("source", "a_mask.png", 'label_pattern = "*_mask.png"')

FOLDERS = [
    folders("labels of other names", LABELS_RENAMED, PROPOSED),
    folders("labels of other names, stated", [*LABELS_RENAMED, NAMED_LABELS]),
    folders("pattern without a star", NO_STAR, "image_pattern"),
    folders("colors as labels", picture(LABEL, color=RED), act=classes_are(1, ids=IDS)),
    folders(
        "color without a class", picture(LABEL, color=(1, 2, 3)), (LABEL, "#010203"), classes_are(ids=IDS)
    ),
    folders("color of an unknown class", settings("source = {", TREE), "tree"),
    folders("name of a color", settings("source = {", REDDISH), ("ids", "reddish")),
    folders("transparent color", picture(LABEL, "RGBA", color=(*RED, 0)), "#ff000000", classes_are(ids=IDS)),
    folders("colors of a palette", palette_label, act=classes_are(1, ids=IDS)),
    folders("colors in JPEG", jpeg_label(), (LABEL, "JPEG", "tolerance"), classes_are(ids=IDS)),
    folders("colors in JPEG, stated", jpeg_label(), act=classes_are(1, ids=IDS, tolerance=9)),
    folders(
        "class indices in JPEG", picture(LABEL, "L", format="JPEG"), "tolerance", classes_are(tolerance=3)
    ),
    folders("gray numbers stored as RGB", stored(LABEL, GRAY), (LABEL, "RGB"), classes_are()),
    folders("numbers of 32 bits", array(LABEL, 2, np.int32), act=classes_are(2)),
    folders("negative number", array(LABEL, -65281, np.int32), (LABEL, "-65281"), classes_are()),
    folders("decimal numbers", array(LABEL, 1, np.float32), (LABEL, "floating"), classes_are()),
    folders("numbers from 1", stored(LABEL, 3), act=classes_are(2, first_id=1)),
    folders("masks of 0 and 255", MASKS, ("ids", "255", LABEL), binary),
    folders("masks of 0 and 255, stated", MASKS, act=classes_are(1, ids={0: 0, 255: 1})),
    folders(
        "label of another size, stated",
        stored(LABEL, np.ones((16, 32))),
        act=classes_are(1, resize_labels=True),
    ),
    folders("image rotated by 180 degrees", ROTATED_180, TO_STATE, first_pixel_is(0)),
    folders(
        "image rotated by 180 degrees, label too",
        ROTATED_180,
        act=first_pixel_is(1, label_orientation="rotated"),
    ),
    folders(
        "image rotated by 180 degrees, label not",
        ROTATED_180,
        act=first_pixel_is(0, label_orientation="stored"),
    ),
    folders("mirrored image", [rotated_image(2), halves()], TO_STATE, first_pixel_is(0)),
    folders("image rotated by 90 degrees, label not", ROTATED_90, act=first_pixel_is(0)),
    folders(
        "image rotated by 90 degrees, label too", [rotated_image(8), halves(64, 32)], act=first_pixel_is(1)
    ),
    folders("decimal TIFF", array(IMAGE, 1, np.float32), (IMAGE, "value_range"), level_is(0)),
    folders("decimal TIFF, stated", array(IMAGE, 1, np.float32), act=level_is(255, value_range=(0, 1))),
    folders("AVIF", content(IMAGE, b"\0\0\0\x20ftypavif" + bytes(99)), (IMAGE, "AVIF", "convert")),
    folders("HEIC alone", ALONE, ("target", ".heic", "convert")),
    folders("pointer of Git LFS", content(IMAGE, LFS), (IMAGE, "git lfs pull")),
    folders(
        "label maps among the images",
        settings('"target/images"', '"source"'),
        ("target", "labels/a.png", "image_pattern"),
    ),
    folders("two forms of one name", TWINS, ("target", "Unicode", "\\xe9")),
]
