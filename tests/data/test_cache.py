"""Copies of large images are made once, noticed when they are outdated, and equal what they replace."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpsl.data.cache import CachedDataset
from cpsl.data.folder import SegmentationFolder
from cpsl.data.orientation import resize_label
from cpsl.data.sample import Subset
from cpsl.data.training import whole_image
from cpsl.data.views import render
from cpsl.geometry import View

SIZE = (16, 24)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, (height, width) in {"large": (64, 96), "small": (16, 90)}.items():
        for folder, pixels in (
            ("i", random.integers(0, 256, (height, width, 3))),
            ("l", random.integers(0, 2, (height, width))),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def open_folder(root: Path, **settings: object) -> SegmentationFolder:
    return SegmentationFolder(root / "i", root / "l", ["a", "b"], **settings)  # type: ignore[arg-type]


def copies(root: Path) -> set[Path]:
    return {path for path in (root / "cache").rglob("*") if path.is_file()}


@pytest.mark.parametrize("keep", [0, 50])
def test_a_damaged_copy_is_to_be_deleted(root: Path, keep: int) -> None:
    cached = CachedDataset(open_folder(root), root / "cache", SIZE)
    whole = cached[0]
    for copy in copies(root):
        copy.write_bytes(copy.read_bytes()[:keep])
    for _ in range(2):
        with pytest.raises(ValueError, match="delete it") as refused:
            cached[0]
        (damaged,) = (copy for copy in copies(root) if str(copy) in str(refused.value))
        damaged.unlink()
        if len(copies(root)) == 1:
            break
    assert torch.equal(cached[0].image, whole.image)


def test_copies_are_the_resized_images_and_are_made_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_folder(root)
    cached = CachedDataset(dataset, root / "cache", SIZE)
    assert cached.names == dataset.names
    large, small = dataset[0], dataset[1]
    assert large.label is not None
    for _ in range(2):
        image, label, name = cached[0]
        assert torch.equal(image, whole_image(large.image, SIZE))
        assert label is not None
        assert torch.equal(label, resize_label(large.label, SIZE))
        assert torch.equal(cached.image(0), image)
        assert name == large.name
        assert all(torch.equal(a, b) for a, b in zip(cached[1][:2], small[:2], strict=True))
        assert len(copies(root)) == 2
        monkeypatch.setattr(dataset, "image", None)  # it is not read again
        monkeypatch.setattr(dataset, "_read_label", lambda path: (torch.zeros(16, 90), 1))
        small = dataset[1]
    # The whole image of a training batch is the same, with or without copies.
    whole = View.whole((64, 96)).resized(SIZE)
    assert torch.equal(render(large.image, whole), render(cached.image(0), View.whole(SIZE).resized(SIZE)))


def test_changed_files_and_settings_make_other_copies(root: Path) -> None:
    def images() -> list[torch.Tensor]:
        cached = CachedDataset(Subset(open_folder(root), [0]), root / "cache", SIZE)
        return [cached.image(0), cached[0].image]

    first = images()
    path = root / "i" / "large.png"
    status = path.stat()
    Image.new("RGB", (96, 64), "red").save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not any(torch.equal(a, b) for a, b in zip(first, images(), strict=True))
    assert all((image[0] == 255).all() for image in images())

    swapped = CachedDataset(open_folder(root, ids={0: 1, 1: 0}), root / "cache", SIZE)
    label, other = swapped[0].label, CachedDataset(open_folder(root), root / "cache", SIZE)[0].label
    assert label is not None
    assert other is not None
    assert torch.equal(label, 1 - other)
    assert torch.equal(label, swapped.label(0))
    label = CachedDataset(open_folder(root), root / "elsewhere", SIZE).label(0)
    assert label is not None
    assert torch.equal(label, other)
    assert not list((root / "cache").rglob(".*"))
