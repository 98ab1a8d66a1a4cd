"""Images that are source and target, or source and evaluation, are named; others are not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.app.checking.overlap import warn_of_overlap
from cpsl.app.domain import Domain
from cpsl.data import SegmentationFolder

IMAGES = st.sets(st.integers(0, 7), min_size=1)


def folder(root: Path, name: str, seeds: set[int]) -> SegmentationFolder:
    """Writes images of one size in bytes, of other names in each folder."""
    (root / name).mkdir(parents=True)
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{name}{seed}.bmp")
    return SegmentationFolder(root / name)


@given(IMAGES, IMAGES, IMAGES, st.booleans())
@settings(max_examples=25, deadline=None)
def test_shared_images_are_counted_by_content(
    tmp_path_factory: pytest.TempPathFactory,
    source: set[int],
    target: set[int],
    evaluation: set[int],
    from_target: bool,
) -> None:
    root = tmp_path_factory.mktemp("overlap")
    seeds = {"source": source, "target": target, "evaluation": evaluation}
    datasets = {name: folder(root, name, found) for name, found in seeds.items()}
    domains = {name: Domain(from_target=from_target and name == "source") for name in seeds}
    texts = [" ".join(text.split()) for text in warn_of_overlap(datasets, domains)]
    expected = [
        f"Warning: {name}: {len(shared)} of {len(seeds[name])} images"
        for name in ("target", "evaluation")
        if (shared := source & seeds[name]) and not (name == "target" and from_target)
    ]
    assert [text[: len(start)] for text, start in zip(texts, expected, strict=True)] == expected
