"""Odd files that decode, match or load without an error: each is read right, refused, or said."""

import io
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from case import IMAGE, LABEL, TARGET, Act, Case, content, picture, remove, rename, settings, stored
from check_cases import TWO, labels, says
from cpsl.data import SegmentationFolder
from folder_cases import classes_are
from project import run

odd = partial(Case, "odd files")

NOISE = np.random.default_rng(0).integers(0, 255, (32, 64, 4)).astype(np.uint8)
VALUES = np.resize(np.arange(3, dtype=np.uint8), (32, 64))
OTHER_LABEL, OTHER_TARGET = "source/labels/b.png", "target/images/b.png"


def encoded(file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE[..., :3]).save(file, file_format, **options)
    return file.getvalue()


def cut(path: str, **options: object) -> Act:
    """Writes a JPEG that lacks the last third of its data, with an end marker."""
    data = encoded("JPEG", **options)
    return content(path, data[: 2 * len(data) // 3] + b"\xff\xd9")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int) -> bytes:
    """Returns a PNG of 32 rows that holds fewer, with right checksums."""
    header = struct.pack(">IIBBBBB", 64, 32, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress((b"\0" + bytes([1] * 64)) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def tiff(strips: int) -> bytes:
    """Returns a TIFF of 32 rows in four strips, with some of them."""
    starts, sizes = [8 + 512 * i for i in range(4)][:strips], [512] * strips
    tags = {256: 64, 257: 32, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: 0}
    lists = 8 + 2048 + 2 + 12 * len(tags) + 4
    values = {273: lists, 279: lists + 4 * strips}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, strips if tag in values else 1, values.get(tag, number))
        for tag, number in tags.items()
    )
    numbers = struct.pack(f"<{2 * strips}I", *starts, *sizes)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + 2048)
        + bytes([1] * 2048)
        + b"\x09\0"
        + entries
        + bytes(4)
        + numbers
    )


def infrared(path: str) -> Act:
    return lambda: Image.fromarray(NOISE, "RGBA").save(path)


def colored(path: str) -> Act:
    return lambda: Image.fromarray(NOISE[..., :3]).save(path)


def several(path: str) -> Act:
    frames = [Image.fromarray(VALUES), Image.fromarray(2 - VALUES)]
    return lambda: frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def copied(path: str, to: str) -> Act:
    def act() -> None:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)

    return act


def nothing_is_said() -> None:
    printed = run("check")
    assert "Warning" not in printed, printed


def names_are(*names: str) -> Act:
    def act() -> None:
        found = SegmentationFolder("target/images").names
        assert found == list(names), found

    return act


ZEROS = encoded("WEBP", lossless=True)
ZEROS = ZEROS[: len(ZEROS) // 2] + bytes(len(ZEROS) // 2)
JPEG = "target/images/c.jpg"
PREDICT = "predict --weights run/model.pt --input target/images --output x"
BOTH_RENAMED = [rename(f"source/labels/{name}.png", f"source/labels/{name.upper()}.png") for name in "ab"]
SELF = settings('target = { images = "target/images"', 'target = { images = "source/images"')
TRAINED = settings(
    'images = "evaluation/images", labels = "evaluation', 'images = "source/images", labels = "source'
)
MASK = Image.fromarray(VALUES).convert("RGBA")
MASK.putalpha(Image.fromarray(80 * VALUES))
COLORS = {"#000000": 0, "#010101": 1, "#020202": 2}
CAMERAS = [remove(OTHER_TARGET), *(stored(f"target/images/{n}_nir.png", NOISE[..., n]) for n in range(2))]
CAMERAS += [remove(TARGET), *(colored(f"target/images/{n}_rgb.png") for n in range(2))]

ODD = [
    odd("JPEG cut short, end marker put back", cut(JPEG), (JPEG, "cut off")),
    odd("the same, in the check", cut(JPEG), (JPEG, "cut off"), "check"),
    odd("the same, in a prediction", cut(JPEG), (JPEG, "cut off"), PREDICT, finished=True),
    odd(
        "progressive JPEG cut short, end marker put back",
        cut(JPEG, progressive=True),
        (JPEG, "cut off"),
        "check",
    ),
    odd("JPEG with restarts cut short", cut(JPEG, restart_marker_blocks=4), (JPEG, "cut off")),
    odd(
        "label in a cut JPEG", cut(LABEL), (LABEL, "cut off"), classes_are(ids={"#000000": 0}, tolerance=255)
    ),
    odd("label PNG with too few rows", content(LABEL, png(20)), (LABEL, "rows"), classes_are()),
    odd("label PNG with all its rows", content(LABEL, png(32)), act=classes_are(1)),
    odd(
        "label TIFF without its last strips", content(LABEL, tiff(2)), (LABEL, "2 of 4 strips"), classes_are()
    ),
    odd("label TIFF with all its strips", content(LABEL, tiff(4)), act=classes_are(1)),
    odd("label WebP that ends in zeros", content(LABEL, ZEROS), (LABEL, "zeros"), classes_are(ids=COLORS)),
    odd("label of two frames", several(LABEL), (LABEL, "2"), classes_are()),
    odd("label with numbers and transparency", lambda: MASK.save(LABEL), (LABEL, "RGBA"), classes_are()),
    odd("label with colors and transparency", lambda: MASK.save(LABEL), LABEL, classes_are(ids=COLORS)),
    odd("infrared in the alpha channel", infrared(TARGET), act=says("1 of 2 images have a channel beside")),
    odd("opaque alpha channel", picture(TARGET, "RGBA", color=(9, 8, 7, 255)), act=nothing_is_said),
    odd("numbers from 1, few of them used", labels("source", 1, 2), act=says("begin with 1", "first_id = 1")),
    odd("numbers from 1, with 0 beside them", labels("source", 0, 1), act=says("first_id = 1", "sky")),
    odd("masks of 255 alone", [TWO, *labels("source", 255)], ("ids", "255"), "check"),
    odd(
        "numbers below 0",
        lambda: Image.fromarray(VALUES.astype(np.int32) - 1).save(LABEL, "TIFF"),
        (LABEL, "-1", "ignore_unknown = true"),
        "check",
    ),
    odd("images of two cameras", CAMERAS, act=says("2 of 4 images are gray", 'image_pattern = "*_rgb')),
    odd("target that is the source", SELF, act=says("target: 2 of 2 images are also images of source")),
    odd("evaluation on the source", TRAINED, act=says("evaluation: 2 of 2 images are also images of source")),
    odd(
        "thumbnails of a network drive",
        copied(TARGET, "target/images/@eaDir/a.png/S.png"),
        act=names_are("a", "b"),
    ),
    odd("labels in upper case", BOTH_RENAMED, ("'a.png'", "'A.png'", "case")),
    odd("label with an invisible letter", rename(LABEL, "source/labels/a\u200b.png"), ("'a.png'", "\\u200b")),
    odd(
        "label without leading zeros",
        [rename(IMAGE, "source/images/007.png"), rename(LABEL, "source/labels/7.png")],
        ("'007.png'", "'7.png'", "zeros"),
    ),
    odd(
        "classes that look the same",
        settings('"road", "car"', '"caf\u00e9", "cafe\u0301"'),
        ("classes", "caf\u00e9"),
    ),
    odd("class without a name", settings('"road", "car"', '"", "car"'), "classes"),
]
