"""CamVid as published is sorted into the folders that the photographs' shifts read."""

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from quality import camvid

PARTS = {
    "train": ["0001TP_006690", "0006R0_f00930", "0016E5_00390"],
    "val": ["0016E5_08113", "0016E5_07959"],
    "test": ["0001TP_008580", "0001TP_008610", "0001TP_010140", "0001TP_010260", "Seq05VD_f00000"],
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for part, names in PARTS.items():
        for folder in (part, f"{part}annot"):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / "CamVid" / part / f"{name}.png")
            label = np.arange(12, dtype=np.uint8).reshape(3, 4)
            Image.fromarray(label).save(tmp_path / "CamVid" / f"{part}annot" / f"{name}.png")
    return tmp_path / "CamVid"


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def test_examples() -> None:
    assert doctest.testmod(camvid) == (0, 2)


def test_frames_are_sorted_by_their_drive(published: Path, tmp_path: Path) -> None:
    assert camvid.sort(published, tmp_path / "photographs") == 10
    out = tmp_path / "photographs"
    assert names(out) == ["day", "dusk", "dusk_val"]
    by_day = ["0006R0_f00930", "0016E5_00390", "0016E5_07959", "Seq05VD_f00000"]
    assert names(out / "day/images") == names(out / "day/labels") == by_day
    assert names(out / "dusk") == ["images"]
    assert len(names(out / "dusk/images")) == 5
    of_evaluation = ["0001TP_008580", "0001TP_010140"]
    assert names(out / "dusk_val/images") == names(out / "dusk_val/labels") == of_evaluation
    label = np.array(Image.open(out / "day/labels/0006R0_f00930.png"))
    assert label.flatten().tolist() == [*range(11), 255]
    image = out / "dusk_val/images/0001TP_010140.png"
    assert image.read_bytes() == (published / "test/0001TP_010140.png").read_bytes()


def test_other_folders_and_labels_are_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        camvid.sort(tmp_path / "nowhere", tmp_path / "out")
    Image.new("L", (4, 3), 12).save(published / "valannot/0016E5_07959.png")
    with pytest.raises(ValueError, match=r"valannot/0016E5_07959\.png.*12"):
        camvid.sort(published, tmp_path / "out")
