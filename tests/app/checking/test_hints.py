import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpsl.app.checking.hints import describe_files, propose
from cpsl.app.domain import Domain
from cpsl.app.settings import override
from cpsl.data import GTA5, LabelSpace, SegmentationFolder, Subset, write_streets

CLASSES = LabelSpace(("soil", "plant"), ((0, 0, 0), (9, 9, 9)))


def write(folder: Path, image: str, label: str, values: np.ndarray, count: int = 3) -> Domain:
    """Writes images and labels with names such as `image.format(7)`; returns settings without patterns."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", values.shape[1::-1]).save(folder / "images" / image.format(index))
        Image.fromarray(values).save(folder / "labels" / label.format(index))
    return Domain(images=folder / "images", labels=folder / "labels")


@pytest.mark.parametrize(
    ("image", "label"),
    [("{}.png", "{}.png"), ("{}_image.png", "{}_mask.png"), ("rgb{}.jpg", "seg-{}_gt.png")],
)
@pytest.mark.parametrize("stored", [(3, 9), (0, 255), ((0, 0, 0), (250, 120, 0)), (0, 1)])
def test_the_proposed_lines_make_labels_readable(
    tmp_path: Path, image: str, label: str, stored: tuple[int | tuple[int, int, int], ...]
) -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[2:4] = 1
    domain = write(tmp_path, image, label, np.array(stored, np.uint8)[expected])
    text = propose("source", domain, CLASSES)
    lines = tomllib.loads("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    for key, value in lines.get("ids", {}).items():
        if value == "?":  # known to a person: the value of the plants is the second one
            second = stored[1] if isinstance(stored[1], int) else "#{:02x}{:02x}{:02x}".format(*stored[1])
            lines["ids"][key] = "plant" if key == str(second) else "soil"
    read = override(domain, lines, "proposal")
    dataset = SegmentationFolder(
        read.images, read.labels, CLASSES, ids=read.ids or None,
        image_pattern=read.image_pattern, label_pattern=read.label_pattern,
    )  # fmt: skip
    assert len(dataset) == 3
    assert all((sample.label.numpy() == expected).all() for sample in dataset)
    nothing_is_missing = image == label and stored == (0, 1)
    assert (text == "") == nothing_is_missing


def test_nothing_is_proposed_without_labels_or_folders(tmp_path: Path) -> None:
    assert propose("target", Domain(images=tmp_path), CLASSES) == ""
    assert propose("source", Domain(images=tmp_path / "no", labels=tmp_path / "nothing"), CLASSES) == ""
    assert propose("source", Domain(dataset="gta5", root=tmp_path), CLASSES) == ""


def test_patterns_that_are_set_or_match_all_are_not_proposed(tmp_path: Path) -> None:
    values = np.zeros((6, 8), np.uint8)
    domain = write(tmp_path, "{}_image.png", "{}_mask.png", values)
    fits = {"image_pattern": "*_image.png", "label_pattern": "*_mask.png"}
    assert propose("source", replace(domain, **fits), CLASSES) == ""
    text = propose("source", replace(domain, image_pattern=fits["image_pattern"]), CLASSES)
    assert "image_pattern" not in text
    assert 'label_pattern = "*_mask.png"' in text
    (tmp_path / "images" / "extra.png").touch()  # not matched, and no reason to propose anything else
    assert propose("source", replace(domain, **fits), CLASSES) == ""


@pytest.mark.parametrize(
    ("image", "label"), [("{}.jpg", "{}.png"), ("{}.png", "{}_mask.png"), ("{}_rgb.png", "{}_gt.png")]
)
def test_patterns_are_proposed_for_one_folder_of_images_and_labels(
    tmp_path: Path, image: str, label: str
) -> None:
    for index in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / image.format(index))
        Image.fromarray(np.full((6, 8), index % 2, np.uint8)).save(tmp_path / label.format(index))
    domain = Domain(images=tmp_path, labels=tmp_path)
    text = propose("source", domain, CLASSES)
    lines = tomllib.loads("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    dataset = SegmentationFolder(tmp_path, tmp_path, CLASSES, **lines)
    assert [int(sample.label[0, 0]) for sample in dataset] == [0, 1, 0]
    with pytest.raises(ValueError, match=r"both in .*image_pattern|differ only .* pattern") as error:
        SegmentationFolder(tmp_path, tmp_path, CLASSES)
    if "both in" in str(error.value):
        assert all(f'{name} = "{text}"' in str(error.value) for name, text in lines.items())


@pytest.mark.parametrize("labeled", [False, True])
def test_skipped_files_and_rotated_images_are_counted(tmp_path: Path, labeled: bool) -> None:
    write(tmp_path, "{}.png", "{}.png", np.zeros((4, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 8)).save(tmp_path / "images" / "1.png", exif=exif)
    (tmp_path / "images" / "notes.txt").touch()
    dataset = SegmentationFolder(
        tmp_path / "images", tmp_path / "labels" if labeled else None, ["a"] if labeled else ()
    )
    for whole in (dataset, Subset(dataset, [0, 1, 2])):
        skipped, rotated = describe_files("target", whole)
        assert "1 *.txt" in skipped
        assert "1 of 3" in rotated
        assert ("label_orientation" in rotated) == labeled


def test_nothing_is_said_of_usual_data(tmp_path: Path) -> None:
    write_streets(tmp_path, layout="gta5", style="game", count=2, size=(64, 128))
    assert describe_files("source", GTA5(tmp_path)) == []


def test_pairs_alone_are_proposed_where_some_labels_are_missing(tmp_path: Path) -> None:
    domain = write(tmp_path, "{}.png", "{}.png", np.array([[1, 2]] * 8, np.uint8).repeat(8, axis=1), count=4)
    (tmp_path / "labels" / "0.png").unlink()
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "labels" / "of_nothing.png")
    with pytest.raises(FileNotFoundError, match="skip_unpaired = true uses the 3 pairs alone"):
        SegmentationFolder(domain.images, domain.labels, CLASSES)
    text = propose("source", domain, CLASSES)
    lines = tomllib.loads("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    assert lines == {"skip_unpaired": True, "first_id": 1}  # not the values of a label without an image
    dataset = SegmentationFolder(domain.images, domain.labels, CLASSES, **lines)
    assert dataset.names == ["1", "2", "3"]
    assert sorted(dataset.skipped.values()) == ["it has no image", "it has no label"]
    assert propose("source", replace(domain, skip_unpaired=True, first_id=1), CLASSES) == ""


def test_other_kinds_of_labels_are_named(tmp_path: Path) -> None:
    domain = write(tmp_path, "{}_image.png", "{}_color.png", np.array([[1, 2]] * 8, np.uint8))
    for path in list((tmp_path / "labels").iterdir()):
        path.with_name(path.name.replace("color", "ids")).write_bytes(path.read_bytes())
    text = propose("source", domain, CLASSES)
    assert '    label_pattern = "*_ids.png"' in text
    assert 'other labels as well: label_pattern = "*_color.png"' in text


@pytest.mark.parametrize("image_folder", ["", "images"])
def test_no_image_is_proposed_as_its_own_label(tmp_path: Path, image_folder: str) -> None:
    values = np.zeros((6, 8), np.uint8)
    values[2:4] = 255
    write(tmp_path, "{}_training.png", "{}_training.gif", values)
    (tmp_path / "labels").rename(tmp_path / "mask")
    (tmp_path / "1st_manual").mkdir()
    for path in (tmp_path / "mask").iterdir():
        path.with_name(path.name.replace("training", "training_mask")).write_bytes(path.read_bytes())
        path.rename(tmp_path / "1st_manual" / path.name.replace("training", "manual1"))
    text = propose("source", Domain(images=tmp_path / image_folder, labels=tmp_path), CLASSES)
    assert "_manual1" in text
    assert "_mask" in text.partition("other labels as well")[2]
    lines = tomllib.loads("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    dataset = SegmentationFolder(
        tmp_path / image_folder, tmp_path, CLASSES, ids=lines["ids"],
        image_pattern=lines["image_pattern"], label_pattern=lines["label_pattern"],
    )  # fmt: skip
    assert all(label.parent.name == "1st_manual" for _, label in map(dataset.files, range(3)) if label)


def test_images_within_the_folder_of_labels_are_not_proposed_as_labels(tmp_path: Path) -> None:
    write(tmp_path, "{}.png", "{}.png", np.array([[0, 1]] * 8, np.uint8))
    (tmp_path / "labels").rename(tmp_path / "coded")
    text = propose("source", Domain(images=tmp_path / "images", labels=tmp_path), CLASSES)
    assert "images/" not in text
    lines = tomllib.loads("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    dataset = SegmentationFolder(tmp_path / "images", tmp_path, CLASSES, **lines)
    assert [int(label.sum()) for _, label, _ in dataset if label is not None] == [8] * 3


def test_other_images_of_the_same_labels_are_named(tmp_path: Path) -> None:
    domain = write(tmp_path, "f{}.png", "f{}.png", np.array([[0, 1]] * 8, np.uint8))
    for channel, color in (("nir", "gray"), ("rgb", "green")):
        (tmp_path / "images" / channel).mkdir()
        for path in list((tmp_path / "images").glob("*.png")):
            Image.new("RGB", (2, 8), color).save(path.parent / channel / path.name)
    for path in list((tmp_path / "images").glob("*.png")):
        path.unlink()
    text = propose("source", domain, CLASSES)
    assert '    image_pattern = "rgb/*.png"' in text
    assert 'other images as well: image_pattern = "nir/*.png"' in text


@pytest.mark.parametrize("labels_follow", ["rotated", "stored", None])
def test_the_orientation_of_labels_is_proposed_from_those_that_tell(
    tmp_path: Path, labels_follow: str | None
) -> None:
    exif = Image.Exif()
    for index, orientation in enumerate([3, 6, 8] if labels_follow else [3]):
        exif[0x0112] = orientation
        Image.new("RGB", (8, 6)).save(tmp_path / f"{index}.jpg", exif=exif)
        size = (6, 8) if orientation > 4 and labels_follow == "rotated" else (8, 6)
        label = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]) % 2
        Image.fromarray(label).save(tmp_path / f"{index}_mask.png")
    domain = Domain(images=tmp_path, labels=tmp_path, image_pattern="*.jpg", label_pattern="*_mask.png")
    dataset = SegmentationFolder(
        tmp_path, tmp_path, CLASSES, image_pattern="*.jpg", label_pattern="*_mask.png"
    )
    assert f'label_orientation = "{labels_follow or "?"}"' in propose("source", domain, CLASSES, dataset)
