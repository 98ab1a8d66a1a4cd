"""Stores of soft and hard pseudo labels."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cpsl.data.labels import CITYSCAPES_19
from cpsl.data.pseudo_labels import HardLabelStore, SoftLabelStore

Store = SoftLabelStore | HardLabelStore


def soft_map(classes: int, height: int = 5, width: int = 7, sharpness: float = 4) -> Tensor:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(classes, height, width, generator=generator)
    return (sharpness * logits).softmax(dim=0)


@given(classes=st.integers(1, 40), height=st.integers(1, 9), sharpness=st.floats(0, 50))
def test_probabilities_are_read_back_within_the_documented_bound(
    tmp_path_factory: pytest.TempPathFactory, classes: int, height: int, sharpness: float
) -> None:
    p = soft_map(classes, height, sharpness=sharpness)
    store = SoftLabelStore(tmp_path_factory.mktemp("soft"))
    store.write("a", p)
    read = store.read("a")
    assert read.shape == p.shape
    assert read.dtype == torch.float32
    torch.testing.assert_close(read.sum(dim=0), torch.ones(p.shape[1:]))
    # Rounding moves p by √p/255 + 4e-6, and its divisor, the sum, by √K/255 + 4e-6 K.
    off_sum = classes**0.5 / 255 + 4e-6 * classes
    bound = (p.sqrt() / 255 + 4e-6 + p * off_sum) / (1 - off_sum)
    assert ((read - p).abs() <= bound + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_floating_point_types_are_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    store = SoftLabelStore(tmp_path)
    store.write("a", soft_map(19).to(dtype))
    torch.testing.assert_close(store.read("a"), soft_map(19), atol=0.01, rtol=0)
    store.write("b", torch.tensor([1.005, 0.0], dtype=dtype).reshape(2, 1, 1))
    assert store.read("b").flatten().tolist() == [1, 0]


def test_a_paper_scale_map_is_small(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 19, 9, 17, generator=generator)
    logits = torch.nn.functional.interpolate(coarse, size=(129, 257), mode="bicubic")[0]
    noise = torch.randn(19, 129, 257, generator=generator)
    SoftLabelStore(tmp_path).write("a", (6 * logits + 0.3 * noise).softmax(dim=0))
    assert (tmp_path / "a.png").stat().st_size < 500_000


@pytest.mark.parametrize(
    "values",
    [
        [[0.5, 0.6]],
        [[0.5, 0.3]],
        [[1.2, -0.2]],
        [[float("nan"), 0.5]],
        [[float("inf"), 0.0]],
        [[0.0, 0.0]],
        [[1.0, 0.0], [0.5, 0.4]],
    ],
)
def test_values_that_are_no_probabilities_are_refused(tmp_path: Path, values: list[list[float]]) -> None:
    store = SoftLabelStore(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png.*sum to 1"):
        store.write("a", torch.tensor(values).T[:, None])
    assert "a" not in store
    assert list(tmp_path.iterdir()) == []


def test_other_shapes_and_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(K, h, w\)"):
        SoftLabelStore(tmp_path).write("a", soft_map(3)[None])
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"\(H, W\) uint8"):
            HardLabelStore(tmp_path).write("a", wrong)


@pytest.mark.parametrize("palette", [None, CITYSCAPES_19.palette, ((9, 8, 7),) * 2])
def test_hard_labels_are_read_back_exactly(
    tmp_path: Path, palette: tuple[tuple[int, int, int], ...] | None
) -> None:
    store = HardLabelStore(tmp_path, palette)
    label = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    for name, stored in (("all", label), ("few", label % 2), ("turned", label.T)):
        store.write(name, stored)
        assert torch.equal(store.read(name), stored)
    if palette is not None:
        with Image.open(tmp_path / "all.png") as picture:
            assert picture.convert("RGB").getpixel((1, 0)) == palette[1]


def _write(store: Store, name: str) -> None:
    if isinstance(store, SoftLabelStore):
        store.write(name, soft_map(19))
    else:
        store.write(name, torch.eye(64, dtype=torch.uint8).roll(7, 0))


stores = pytest.mark.parametrize("kind", [SoftLabelStore, HardLabelStore])


@stores
def test_a_store_lists_missing_names(tmp_path: Path, kind: type[Store]) -> None:
    store = kind(tmp_path / "made" / "when written")
    names = ["city/a_1", "city/a.v2", "b"]
    assert store.missing(names) == names
    _write(store, "city/a.v2")
    assert "city/a.v2" in store
    assert "city/a" not in store
    assert store.missing(names) == ["city/a_1", "b"]
    for name in names:
        _write(store, name)
    assert store.missing(names) == []
    # The folder contains no other files.
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["a.v2.png", "a_1.png", "b.png"]


PARTS = st.sampled_from(["a", "b", ".", "c.d", ".e"])


@given(
    files=st.dictionaries(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.booleans(), max_size=5),
    names=st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(lambda n: n.strip("./"))),
)
def test_missing_names_are_those_that_the_store_does_not_contain(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bool], names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = HardLabelStore(folder)
    for name, broken in files.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not path.is_symlink():
            path.symlink_to("nowhere") if broken else path.touch()
    assert store.missing(names) == [name for name in names if name not in store]


@stores
@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/../../b", "/a", "//a", "a\\b", "a\0b", "a/.."])
def test_names_outside_of_the_folder_are_refused(tmp_path: Path, kind: type[Store], name: str) -> None:
    store = kind(tmp_path / "store")
    missing = partial(store.missing, [name])
    for use in (lambda: _write(store, name), lambda: store.read(name), lambda: name in store, missing):
        with pytest.raises(ValueError, match="not a path below a folder"):
            use()
    assert list(tmp_path.iterdir()) == []


@stores
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, kind: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kind(tmp_path)
    _write(store, "a")
    before = (tmp_path / "a.png").read_bytes()

    def full(self: Image.Image, path: Path, *args: object, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        _write(store, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@stores
def test_a_damaged_file_is_named(tmp_path: Path, kind: type[Store]) -> None:
    store = kind(tmp_path)
    _write(store, "a")
    path = tmp_path / "a.png"
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    random = np.random.default_rng(0)
    flipped = []
    for place in random.integers(start, len(whole) - 12, 40):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        flipped.append(bytes(changed))
    for content in (b"", b"foreign", whole[:start], whole[: len(whole) // 2], *flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png is damaged; delete it"):
            store.read("a")
    with pytest.raises(FileNotFoundError, match=r"no pseudo labels at .*b\.png"):
        store.read("b")


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    soft, hard = SoftLabelStore(tmp_path), HardLabelStore(tmp_path)
    _write(hard, "a")
    with pytest.raises(ValueError, match=r"a\.png is not a map"):
        soft.read("a")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is not a label map"):
        hard.read("a")
    with pytest.raises(ValueError, match=r"a\.png is not a map"):
        soft.read("a")


def test_ignored_pixels_can_have_the_authors_value(tmp_path: Path) -> None:
    store = HardLabelStore(tmp_path, ignore_index=250)
    label = torch.tensor([[0, 18, 255]], dtype=torch.uint8)
    store.write("a", label)
    assert np.array(Image.open(tmp_path / "a.png")).tolist() == [[0, 18, 250]]
    assert torch.equal(store.read("a"), label)
    with pytest.raises(ValueError, match=r"b\.png.*250"):
        store.write("b", torch.tensor([[250]], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"ignore_index.*256"):
        HardLabelStore(tmp_path, ignore_index=256)
