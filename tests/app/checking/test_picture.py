"""Contact sheets of images and labels as they are understood."""

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.app.checking.picture import TILE, contact_sheet, write_contact_sheet
from cpsl.data import IGNORE_INDEX, LabelSpace, check_dataset
from cpsl.data.sample import Sample

PALETTE = ((250, 0, 0), (0, 250, 0), (0, 0, 250))


class Plain:
    """Black images of one size; the label of image i has class i, the last is ignored."""

    label_space = LabelSpace(("ground", "car", "a name that is far too long for its column"), PALETTE)

    def __init__(self, count: int, size: tuple[int, int], labeled: bool = True) -> None:
        self.names = [f"images/{index}" for index in range(count)]
        self.size, self.labeled = size, labeled

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> torch.Tensor:
        return torch.zeros(3, *self.size, dtype=torch.uint8)

    def __getitem__(self, index: int) -> Sample:
        value = index if index < 3 else IGNORE_INDEX
        label = torch.full(self.size, value, dtype=torch.uint8) if self.labeled else None
        return Sample(self.image(index), label, self.names[index])


def colors(sheet: torch.Tensor) -> set[tuple[int, ...]]:
    codes = (sheet.long() * torch.tensor([65536, 256, 1])[:, None, None]).sum(dim=0).unique().tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}


@settings(deadline=None, max_examples=8)
@given(
    count=st.integers(1, 9), size=st.tuples(st.integers(1, 400), st.integers(1, 400)), labeled=st.booleans()
)
def test_sheets_of_any_sizes_can_be_drawn(count: int, size: tuple[int, int], labeled: bool) -> None:
    dataset = Plain(count, size, labeled)
    sheet = contact_sheet(dataset, check_dataset(dataset))
    assert sheet.dtype == torch.uint8
    assert sheet.shape[0] == 3
    assert sheet.shape[2] >= TILE[1]
    blended = {tuple(round(0.6 * value) for value in color) for color in PALETTE[:count]}
    shown = colors(sheet)
    assert (blended <= shown) == labeled
    assert (set(PALETTE) <= shown) == labeled  # in the legend


def test_ignored_pixels_are_striped() -> None:
    dataset = Plain(4, TILE)
    result = check_dataset(dataset)
    assert result.examples == [0, 1, 2, 3]
    tiles = contact_sheet(dataset, result)[:, : 2 * (TILE[0] + 22 + 4)]
    ignored = tiles[0, -TILE[0] // 2 :, -TILE[1] :]
    assert 0.1 < (ignored == 255).float().mean() < 0.3
    assert contact_sheet(dataset, result._replace(examples=[0]))[0, 22 : 22 + TILE[0]].ne(255).any()


def test_a_sheet_is_written_as_png(tmp_path: Path) -> None:
    dataset = Plain(3, (20, 30))
    path = tmp_path / "check" / "source.png"
    write_contact_sheet(path, dataset, check_dataset(dataset))
    assert Image.open(path).mode == "RGB"
    assert list(path.parent.iterdir()) == [path]
