import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.data.labels import CITYSCAPES_19
from cpsl.data.streets import Style, draw_street, write_streets

STYLES: tuple[Style, ...] = ("game", "real")
# Cityscapes' label ids in train-id order, from the Cityscapes scripts.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    return {style: [draw_street(seed, style) for seed in range(60)] for style in STYLES}


@given(
    seed=st.integers(-(2**63), 2**63),
    style=st.sampled_from(STYLES),
    height=st.integers(32, 96),
    width=st.integers(32, 160),
)
@settings(max_examples=25, deadline=None)
def test_images_and_labels_have_the_documented_shapes_and_ranges(
    seed: int, style: Style, height: int, width: int
) -> None:
    image, label = draw_street(seed, style, (height, width))
    assert image.shape == (3, height, width)
    assert label.shape == (height, width)
    assert image.dtype == label.dtype == torch.uint8
    assert image.is_contiguous()
    assert label.is_contiguous()
    assert ((label < 19) | (label == 255)).all()
    assert image.float().std() > 10


@given(seed=st.integers(0, 2**63), style=st.sampled_from(STYLES))
@settings(max_examples=10, deadline=None)
def test_a_seed_determines_the_scene(seed: int, style: Style) -> None:
    first, second = (draw_street(seed, style, (48, 96)) for _ in range(2))
    other = draw_street(seed + 1, style, (48, 96))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


@given(seed=st.integers(0, 2**63), style=st.sampled_from(STYLES))
@settings(max_examples=10, deadline=None)
def test_the_scene_does_not_depend_on_the_size(seed: int, style: Style) -> None:
    _, small = draw_street(seed, style, (64, 128))
    _, large = draw_street(seed, style, (256, 512))
    # Thin objects are at least one pixel wide, so outlines may differ by a pixel.
    assert (large[2::4, 2::4] == small).float().mean() > 0.9


def test_all_classes_occur_with_a_long_tail(
    scenes: dict[str, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    for style in STYLES:
        labels = torch.stack([label for _, label in scenes[style]])
        count = torch.bincount(labels.flatten().long(), minlength=256)[:19]
        share = dict(zip(CITYSCAPES_19.names, (count / count.sum()).tolist(), strict=True))
        head = ("road", "building", "vegetation", "sky", "sidewalk", "car")
        tail = ("traffic light", "traffic sign", "rider", "train", "motorcycle", "bicycle")
        assert min(share.values()) > 0
        assert sum(share[name] for name in head) > 0.85
        assert min(share[name] for name in head) > 0.012
        assert max(share[name] for name in tail) < 0.012
        assert share["road"] > share["building"] > share["vegetation"] > share["sidewalk"]


def test_the_styles_differ_in_brightness_color_and_noise(
    scenes: dict[str, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    def measure(style: Style) -> tuple[float, float, float]:
        images = torch.stack([image for image, _ in scenes[style]]).float()
        colorfulness = (images.amax(1) - images.amin(1)).mean()
        # The lower third is mostly road, where neighboring pixels differ by noise and texture.
        grain = images[:, :, 85:112].diff(dim=-1).abs().median()
        return images.mean().item(), colorfulness.item(), grain.item()

    game, real = measure("game"), measure("real")
    assert game[0] > real[0] + 5
    assert game[1] > 1.3 * real[1]
    assert real[2] > 1.5 * game[2]


def test_only_the_real_style_shows_a_bonnet(
    scenes: dict[str, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    middle = {style: [label[-1, 128].item() for _, label in scenes[style]] for style in STYLES}
    assert set(middle["real"]) == {255}
    assert 255 not in middle["game"]


def test_road_is_below_and_sky_above_the_horizon(
    scenes: dict[str, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    road, sky = (CITYSCAPES_19.names.index(name) for name in ("road", "sky"))
    for style in STYLES:
        for _, label in scenes[style]:
            assert not (label[:40] == road).any()  # all horizons are below 0.4 image heights
            assert not (label[80:] == sky).any()


@pytest.mark.parametrize("style", STYLES)
def test_gta5_layout_has_palette_labels_of_cityscapes_ids(tmp_path: Path, style: Style) -> None:
    write_streets(tmp_path, layout="gta5", style=style, count=3, size=(32, 64), seed=5)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [f"0000{i}.png" for i in (1, 2, 3)]
    assert _names(tmp_path / "images") == _names(tmp_path / "labels")
    for name in _names(tmp_path / "images"):
        with Image.open(tmp_path / "images" / name) as image:
            assert (image.mode, image.size) == ("RGB", (64, 32))
        with Image.open(tmp_path / "labels" / name) as label:
            assert label.mode == "P"
            colors = np.asarray(label.convert("RGB"))
            ids = np.asarray(label)
        assert set(np.unique(ids)) <= {0, *LABEL_IDS}
        road = CITYSCAPES_19.palette[0]
        assert (colors[ids == 7] == road).all()


def test_cityscapes_layout_has_disjoint_splits(tmp_path: Path) -> None:
    digests: dict[str, set[str]] = {}
    for split in ("train", "val"):
        write_streets(tmp_path, layout="cityscapes", style="real", split=split, count=4, size=(32, 64))
        images = sorted((tmp_path / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        labels = sorted((tmp_path / "gtFine" / split).glob("*/*_gtFine_labelIds.png"))
        assert [p.name.removesuffix("_leftImg8bit.png") for p in images] == [
            p.name.removesuffix("_gtFine_labelIds.png") for p in labels
        ]
        for path in labels:
            with Image.open(path) as label:
                assert label.mode == "L"
                assert set(np.unique(np.asarray(label))) <= {0, *LABEL_IDS}
        digests[split] = {hashlib.sha256(path.read_bytes()).hexdigest() for path in images + labels}
        assert len(digests[split]) == 8
    assert not digests["train"] & digests["val"]


def test_files_contain_the_rendered_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(seed: int, style: Style, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(draw_street(seed, style, size))
        return drawn[-1]

    monkeypatch.setattr("cpsl.data.streets.write.draw_street", record)
    write_streets(tmp_path, layout="gta5", style="game", count=2, size=(40, 64))
    to_id = torch.zeros(256, dtype=torch.uint8)
    to_id[:19] = torch.tensor(LABEL_IDS, dtype=torch.uint8)
    for name, (image, label) in zip(_names(tmp_path / "images"), drawn, strict=True):
        with Image.open(tmp_path / "images" / name) as stored:
            assert np.array_equal(np.asarray(stored), image.permute(1, 2, 0).numpy())
        with Image.open(tmp_path / "labels" / name) as stored:
            assert np.array_equal(np.asarray(stored), to_id[label.long()].numpy())


def test_a_repeated_call_completes_an_interrupted_one(tmp_path: Path) -> None:
    def write() -> None:
        write_streets(tmp_path, layout="gta5", style="game", count=3, size=(32, 64))

    write()
    lost, kept = tmp_path / "labels" / "00002.png", tmp_path / "images" / "00001.png"
    content, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    write()
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == time
    assert not list(tmp_path.rglob("*.partial"))


@given(layout=st.sampled_from(["gta5", "cityscapes"]), count=st.integers(1, 9), data=st.data())
@settings(max_examples=5, deadline=None)
def test_processes_write_the_files_of_one_process(
    tmp_path_factory: pytest.TempPathFactory,
    layout: Literal["gta5", "cityscapes"],
    count: int,
    data: st.DataObject,
) -> None:
    def write(folder: Path, workers: int) -> dict[Path, bytes]:
        write_streets(folder, layout=layout, style="real", count=count, size=(32, 64), workers=workers)
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}

    alone = write(tmp_path_factory.mktemp("alone"), 0)
    assert len(alone) == 2 * count + 1  # and a record of the settings
    folder = tmp_path_factory.mktemp("together")
    assert write(folder, 2) == alone
    pictures = sorted(path for path in alone if path.suffix == ".png")
    (folder / data.draw(st.sampled_from(pictures))).unlink()
    assert write(folder, 2) == alone


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write_streets(tmp_path, layout="gta5", style="game", count=1, size=(32, 64))
    with pytest.raises(ValueError, match=r"real"):
        write_streets(tmp_path, layout="gta5", style="real", count=1, size=(32, 64))


def test_a_folder_with_other_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit" / "train" / "aachen").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"streets-train\.json"):
        write_streets(tmp_path, layout="cityscapes", style="real", count=1)


def test_invalid_arguments_write_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="style"):
        draw_street(0, "film")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 32"):
        write_streets(tmp_path, layout="gta5", style="game", count=1, size=(16, 64))
    with pytest.raises(ValueError, match="layout"):
        write_streets(tmp_path, layout="kitti", style="game", count=1)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
