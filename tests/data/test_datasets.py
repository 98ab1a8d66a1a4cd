"""GTA5, SYNTHIA, Cityscapes and folders: layouts, labels and damaged files."""

import pickle
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from cpsl.data.check import check_dataset
from cpsl.data.cityscapes import Cityscapes
from cpsl.data.folder import SegmentationFolder
from cpsl.data.gta5 import GTA5
from cpsl.data.labels import CITYSCAPES_13, CITYSCAPES_16, CITYSCAPES_19, IGNORE_INDEX, LabelSpace
from cpsl.data.sample import SegmentationDataset
from cpsl.data.synthia import Synthia

PEDESTRIAN, ROAD, LANE_MARKING, TRUCK = 10, 3, 22, 18  # of SYNTHIA


def write_image(path: Path, height: int = 4, width: int = 6, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, 100, 200)).save(path)


def write_label(path: Path, ids: object, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(ids, dtype=np.uint8))
    if palette:
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def write_png16(path: Path, values: npt.NDArray[np.uint16]) -> None:
    """Writes (H, W, 3) as an unfiltered 16-bit RGB PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in chunks
        )
    )


def write_gta5(root: Path, count: int = 3) -> None:
    for i in range(1, count + 1):
        write_image(root / "images" / f"{i:05d}.png", level=i)
        write_label(root / "labels" / f"{i:05d}.png", [[7, 33, 0] * 2] * 4, palette=True)


def write_synthia(root: Path) -> None:
    write_image(root / "RGB" / "0000001.png", 2, 2)
    values = np.zeros((2, 2, 3), np.uint16)
    values[..., 0] = [[PEDESTRIAN, ROAD], [LANE_MARKING, TRUCK]]
    values[..., 1] = 40_000  # instances
    write_png16(root / "GT" / "LABELS" / "0000001.png", values)


def write_cityscapes(root: Path, labels: dict[str, str], split: str = "train") -> None:
    """Writes one image a key, with `labelIds`, `labelTrainIds` or no label."""
    for name, kind in labels.items():
        write_image(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", 1, 2)
        label = root / "gtFine" / split / f"{name}_gtFine_{kind}.png"
        if kind:
            write_label(label, [[26, 4]] if kind == "labelIds" else [[13, 255]])


def test_gta5_reads_palette_labels_without_a_split_file(tmp_path: Path) -> None:
    write_gta5(tmp_path)
    # Other tools store such files.
    write_label(tmp_path / "labels" / "00001_labelTrainIds.png", [[0]])
    dataset = GTA5(tmp_path)
    assert isinstance(dataset, SegmentationDataset)
    assert len(dataset) == len(dataset.names) == 3
    assert dataset.names == ["00001", "00002", "00003"]
    image, label, name = dataset[1]
    assert (image.dtype, image.shape, name) == (torch.uint8, (3, 4, 6), "00002")
    assert image[:, 0, 0].tolist() == [2, 100, 200]
    assert label is not None
    assert label.dtype == torch.uint8
    assert label.tolist() == [[0, 18, 255] * 2] * 4
    assert torch.equal(dataset.image(1), image)
    assert [sample.name for sample in dataset] == dataset.names


def test_a_data_set_can_be_pickled_for_workers(tmp_path: Path) -> None:
    write_gta5(tmp_path)
    copy = pickle.loads(pickle.dumps(GTA5(tmp_path)))
    assert copy[2].name == "00003"


def test_gta5_skips_labels_of_another_size_with_a_warning(tmp_path: Path) -> None:
    write_gta5(tmp_path)
    write_label(tmp_path / "labels" / "00002.png", [[7]])
    with pytest.warns(UserWarning, match="1 of 3 .*00002"):
        dataset = GTA5(tmp_path)
    assert dataset.names == ["00001", "00003"]
    assert dataset.mismatched == ["00002"]
    assert dataset[1].name == "00003"


def test_different_sizes_are_named_when_read(tmp_path: Path) -> None:
    write_gta5(tmp_path, count=1)
    (tmp_path / "images" / "00001.png").unlink()
    write_image(tmp_path / "images" / "00001.jpg", 5, 6)
    with pytest.raises(ValueError, match=r"00001\.jpg is 6x5, but its label .*00001\.png is 6x4"):
        GTA5(tmp_path)[0]


def test_an_empty_file_is_named_when_read(tmp_path: Path) -> None:
    write_gta5(tmp_path)
    (tmp_path / "images" / "00001.png").write_bytes(b"")
    (tmp_path / "labels" / "00003.png").write_bytes(b"")
    dataset = GTA5(tmp_path)
    assert len(dataset) == 3
    with pytest.raises(ValueError, match=r"images/00001\.png cannot be read"):
        dataset[0]
    with pytest.raises(ValueError, match=r"labels/00003\.png cannot be read"):
        dataset[2]


def test_an_incomplete_download_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*images of GTA5 images"):
        GTA5(tmp_path)
    write_gta5(tmp_path)
    (tmp_path / "labels" / "00002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no label.*00002"):
        GTA5(tmp_path)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (CITYSCAPES_19, [[11, 0], [255, 14]]),
        (CITYSCAPES_16, [[10, 0], [255, 255]]),
        (CITYSCAPES_13, [[7, 0], [255, 255]]),
        (CITYSCAPES_19.subset(("person",)), [[0, 255], [255, 255]]),
    ],
)
def test_synthia_labels_have_16_bits(tmp_path: Path, classes: LabelSpace, expected: list[list[int]]) -> None:
    write_synthia(tmp_path)
    dataset = Synthia(tmp_path, classes)
    assert isinstance(dataset, SegmentationDataset)
    image, label, name = dataset[0]
    assert image.shape == (3, 2, 2)
    assert label is not None
    assert label.tolist() == expected
    assert name == "0000001"


def test_synthia_labels_of_8_bits_or_unknown_ids_are_named(tmp_path: Path) -> None:
    write_synthia(tmp_path)
    path = tmp_path / "GT" / "LABELS" / "0000001.png"
    write_png16(path, np.full((2, 2, 3), 300, np.uint16))
    with pytest.raises(ValueError, match=r"0000001\.png has 1 unknown id.*300 \(4 pixels\)"):
        Synthia(tmp_path)[0]
    write_label(path, [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match=r"0000001\.png.*16 bits.*8"):
        Synthia(tmp_path)[0]


def test_cityscapes_reads_either_kind_of_label(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"bonn/b_2": "labelTrainIds", "aachen/a_1": "labelIds"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = Cityscapes(tmp_path)
    assert isinstance(dataset, SegmentationDataset)
    assert dataset.names == ["aachen/a_1", "bonn/b_2"]
    assert dataset.labeled == 2
    for sample in (dataset[0], dataset[1]):
        assert sample.label is not None
        assert sample.label.tolist() == [[13, 255]]


def test_cityscapes_needs_no_labels(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"aachen/a_1": "", "aachen/a_2": ""})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = Cityscapes(tmp_path, "train")
    assert dataset.labeled == 0
    assert dataset[0].label is None
    assert dataset[0].image.shape == (3, 1, 2)
    assert check_dataset(dataset).problems == []
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit.val of Cityscapes images"):
        Cityscapes(tmp_path, "val")


def test_a_partly_labeled_split_is_reported(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"aachen/a_1": "labelIds", "aachen/a_2": ""})
    with pytest.warns(UserWarning, match=r"1 of 2 images of the split train.*aachen/a_2"):
        dataset = Cityscapes(tmp_path)
    assert [sample.label is None for sample in (dataset[0], dataset[1])] == [False, True]
    assert check_dataset(dataset).problems == ["aachen/a_2: no label, though other images have one"]


def test_a_folder_reads_images_and_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "monday" / "a.v1.JPG")
    write_image(tmp_path / "photos" / "b.png")
    write_label(tmp_path / "masks" / "monday" / "a.v1.png", [[0, 1, 255] * 2] * 4)
    write_label(tmp_path / "masks" / "b.png", np.zeros((4, 6)), palette=True)
    dataset = SegmentationFolder(tmp_path / "photos", tmp_path / "masks", ["ground", "thing"])
    assert isinstance(dataset, SegmentationDataset)
    assert dataset.names == ["b", "monday/a.v1"]
    assert dataset.label_space.names == ("ground", "thing")
    label = dataset[1].label
    assert label is not None
    assert label.tolist() == [[0, 1, 255] * 2] * 4

    unlabeled = SegmentationFolder(tmp_path / "photos", classes=CITYSCAPES_19)
    assert unlabeled.label_space == CITYSCAPES_19
    assert unlabeled[0].label is None


def test_a_folder_without_labels_needs_no_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    dataset = SegmentationFolder(tmp_path / "images")
    assert dataset[0].label is None
    assert check_dataset(dataset).problems == []
    with pytest.raises(ValueError, match=r"classes .*labels"):
        SegmentationFolder(tmp_path / "images", tmp_path / "labels")


def test_stored_ids_are_mapped_to_indices_or_names(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png", 1, 4)
    path = tmp_path / "labels" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.array([[0, 1000, 2000, 7]], np.uint16)).save(path)
    for ids in (
        {0: 1, 1000: 0, 2000: IGNORE_INDEX, 7: 1},
        {0: "thing", 1000: "ground", 2000: 255, 7: "thing"},
    ):
        dataset = SegmentationFolder(tmp_path / "images", tmp_path / "labels", ["ground", "thing"], ids=ids)
        label = dataset[0].label
        assert label is not None
        assert label.tolist() == [[1, 0, 255, 1]]
    with pytest.raises(ValueError, match=r"a\.png has 2 unknown id.*1000 \(1 pixels\), 2000.*`ids`"):
        SegmentationFolder(tmp_path / "images", tmp_path / "labels", ["ground", "thing"], ids={0: 0, 7: 0})[0]
    for wrong in ({0: 2}, {0: "sky"}):
        with pytest.raises(ValueError, match=r"point to (2|sky).*0 ground, 1 thing"):
            SegmentationFolder(tmp_path / "images", None, ["ground", "thing"], ids=wrong)


def test_images_and_labels_without_a_counterpart_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "b.png")
    write_label(tmp_path / "labels" / "a.png", np.zeros((4, 6)))
    folders = tmp_path / "images", tmp_path / "labels"
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no label.*b"):
        SegmentationFolder(*folders, ["ground"])
    for name in ("b", "c"):
        write_label(tmp_path / "labels" / f"{name}.png", np.zeros((4, 6)))
    with pytest.raises(FileNotFoundError, match=r"1 of 3 labels .* have no image.*c"):
        SegmentationFolder(*folders, ["ground"])


def test_the_palette_is_given_or_generated(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    colors = [(1, 2, 3), (4, 5, 6)]
    chosen = SegmentationFolder(tmp_path, classes=["a", "b"])
    given = SegmentationFolder(tmp_path, classes=["a", "b"], palette=colors)
    assert len(set(chosen.label_space.palette)) == 2
    assert given.label_space.palette == tuple(colors)
    with pytest.raises(ValueError, match="2 classes need as many colors, got 1"):
        SegmentationFolder(tmp_path, classes=["a", "b"], palette=colors[:1])


def test_check_finds_all_problems_and_counts_the_rest(tmp_path: Path) -> None:
    write_gta5(tmp_path, count=6)
    (tmp_path / "images" / "00001.png").write_bytes(b"")
    label = tmp_path / "labels" / "00002.png"
    label.write_bytes(label.read_bytes()[:60])
    write_label(tmp_path / "labels" / "00003.png", [[77] * 6] * 4)
    dataset = GTA5(tmp_path)
    label = tmp_path / "labels" / "00004.png"
    write_label(label, [[7]])  # changed since it was listed
    seen = []

    def progress(indices: Iterable[int]) -> Iterator[int]:
        for index in indices:
            seen.append(index)
            yield index

    result = check_dataset(dataset, progress, threads=2)
    assert seen == list(range(6))
    assert (result.images, result.labeled) == (6, 6)
    assert result.sizes == {(4, 6): 5}
    expected = torch.zeros(19, dtype=torch.int64)
    expected[[0, 18]] = 2 * 8
    assert torch.equal(result.counts, expected)
    assert [finding.kind for finding in result.findings] == ["image", "label", "values", "size"]
    for problem, words in zip(
        result.problems,
        ("images/00001.png cannot be read", "labels/00002.png cannot be read", "77 (24 pixels)", "1x1"),
        strict=True,
    ):
        assert words in problem


def test_real_gta5(real: Path) -> None:
    dataset = GTA5(real / "gta5")
    assert len(dataset) == 48
    result = check_dataset(dataset)
    assert result.problems == []
    assert result.sizes == {(240, 320): 48}
    assert result.labeled == 48
    assert int((result.counts > 0).sum()) == 11
    assert int(result.counts.argmax()) in (0, 2)  # road or building


def test_real_synthia(real: Path) -> None:
    dataset = Synthia(real / "synthia")
    assert len(dataset) == 4
    result = check_dataset(dataset)
    assert result.problems == []
    counts = dict(zip(dataset.label_space.names, result.counts.tolist(), strict=True))
    assert counts["road"] > 0.1 * sum(counts.values())
    assert counts["building"] > 0.05 * sum(counts.values())
    for sample in (dataset[i] for i in range(4)):
        assert sample.label is not None
        lower = sample.label[sample.label.shape[0] // 2 :]
        upper = sample.label[: sample.label.shape[0] // 2]
        assert (lower == 0).sum() > (upper == 0).sum()  # the road is below
        sky = dataset.label_space.names.index("sky")
        assert (upper == sky).sum() >= (lower == sky).sum()


def test_real_cityscapes(real: Path) -> None:
    train, val = Cityscapes(real / "cityscapes"), Cityscapes(real / "cityscapes", "val")
    assert (len(train), train.labeled) == (30, 0)
    assert (len(val), val.labeled) == (14, 14)
    assert train[0].label is None
    assert val.names[0] == "dusk/dusk_000000_000019"
    result = check_dataset(val)
    assert result.problems == []
    assert result.counts[0] > 0
