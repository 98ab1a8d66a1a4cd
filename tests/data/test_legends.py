"""A legend lies among images and labels, and is neither."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl.data import LabelSpace, SegmentationFolder, class_colors, propose_settings
from cpsl.data.files import find_files
from cpsl.data.legends import LEGEND, ROWS, draw_legend, is_legend, write_legend
from cpsl.data.predictions import ColorStore

CLASSES = LabelSpace(("road", "sky"), class_colors(("road", "sky")))
LABEL = torch.tensor([[0, 1]], dtype=torch.uint8)


TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)


@given(st.lists(TEXTS, min_size=1, max_size=50, unique=True))
def test_each_color_is_shown_once_with_its_text(texts: list[str]) -> None:
    names = tuple(f"{index}{text}." for index, text in enumerate(texts))
    palette = tuple((index, 200 - index, 100) for index in range(len(names)))  # none of them is gray
    shown = np.array(draw_legend(LabelSpace(names, palette)))
    swatches = [(shown == color).all(axis=2) for color in palette]
    assert len({swatch.sum() for swatch in swatches}) == 1
    assert len({swatch.any(axis=0).argmax() for swatch in swatches}) == -(-len(names) // ROWS)
    for swatch in swatches:
        rows, right = swatch.any(axis=1), swatch.any(axis=0).nonzero()[0][-1]
        assert (shown[rows, right + 2 : right + 40] < 100).any()
    assert (shown[:, -1] == 255).all()  # no name is cut off


def test_the_picture_is_as_wide_as_its_names() -> None:
    short, long = (draw_legend(LabelSpace((name, "sky"), CLASSES.palette)) for name in ("road", "roadside"))
    assert short.height == long.height
    assert short.width < long.width


def test_labels_in_colors_are_read_beside_their_legend(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2, 1)).save(tmp_path / "images" / "a.png")
    ColorStore(tmp_path / "colors", CLASSES).write("a", LABEL)
    assert write_legend(tmp_path / "colors", CLASSES) == tmp_path / "colors" / LEGEND
    ids = {f"#{red:02x}{green:02x}{blue:02x}": k for k, (red, green, blue) in enumerate(CLASSES.palette)}
    dataset = SegmentationFolder(tmp_path / "images", tmp_path / "colors", CLASSES, ids=ids)
    assert torch.equal(dataset[0].label, LABEL)
    assert not dataset.skipped
    assert "pattern" not in str(propose_settings(tmp_path / "images", tmp_path / "colors", CLASSES))


def test_an_image_of_this_name_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (2, 1)).save(tmp_path / LEGEND)
    assert list(find_files(tmp_path, (".png",), "images")) == ["legend"]


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_other_files_of_this_name_are_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LEGEND
    path.write_bytes(content)
    assert write_legend(tmp_path, CLASSES) is None
    assert path.read_bytes() == content


def test_the_colors_of_an_image_of_this_name_are_kept(tmp_path: Path) -> None:
    ColorStore(tmp_path, CLASSES).write("legend", LABEL)
    before = (tmp_path / LEGEND).read_bytes()
    assert write_legend(tmp_path, CLASSES) is None
    assert (tmp_path / LEGEND).read_bytes() == before


def test_a_legend_is_replaced(tmp_path: Path) -> None:
    write_legend(tmp_path, LabelSpace(("car",), class_colors(["car"])))
    before = (tmp_path / LEGEND).read_bytes()
    assert write_legend(tmp_path, CLASSES) == tmp_path / LEGEND
    assert (tmp_path / LEGEND).read_bytes() != before
    assert is_legend(tmp_path / LEGEND)
