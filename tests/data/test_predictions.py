from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpsl.data import CITYSCAPES_16, CITYSCAPES_19, Cityscapes, LabelSpace
from cpsl.data.predictions import ColorStore, LabelIdStore


@pytest.mark.parametrize("classes", [CITYSCAPES_19, CITYSCAPES_16])
def test_the_data_set_reads_label_ids_back(tmp_path: Path, classes: LabelSpace) -> None:
    label = torch.arange(len(classes), dtype=torch.uint8).reshape(1, -1)
    name = "berlin/berlin_000000_000019"
    LabelIdStore(tmp_path / "ids", classes).write(name, label)
    for part, file, kind in (
        ("leftImg8bit", f"{name}_leftImg8bit.png", None),
        ("gtFine", f"{name}_gtFine_labelIds.png", tmp_path / "ids" / f"{name}.png"),
    ):
        path = tmp_path / part / "test" / file
        path.parent.mkdir(parents=True)
        if kind is None:
            Image.new("RGB", (len(classes), 1)).save(path)
        else:
            path.write_bytes(kind.read_bytes())
    sample = Cityscapes(tmp_path, "test", classes)[0]
    assert torch.equal(sample.label, label)


def test_maps_have_the_colors_of_their_classes(tmp_path: Path) -> None:
    ColorStore(tmp_path, CITYSCAPES_19).write("a b/ü", torch.tensor([[0, 13, 255]]))
    got = np.array(Image.open(tmp_path / "a b" / "ü.png")).tolist()
    assert got == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]


def test_classes_unknown_to_the_server_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no id: unicorn"):
        LabelIdStore(tmp_path, LabelSpace(("road", "unicorn"), ((0, 0, 0), (1, 1, 1))))


@pytest.mark.parametrize("store", [LabelIdStore, ColorStore])
def test_names_outside_of_the_folder_are_refused(tmp_path: Path, store) -> None:
    with pytest.raises(ValueError, match="not a path below a folder"):
        store(tmp_path, CITYSCAPES_19).write("../a", torch.zeros(1, 1))
