"""Pieces of the method at the paper's sizes, beside the authors' release.

    python benchmarks/pieces.py

The release's figures were measured on a machine with 2 cores and 2 threads (1 for what loads data). The
bound is the time in which the machine at hand copies the bytes that have to be moved, or multiplies the
numbers that have to be multiplied, whichever is longer; both are measured in the same run.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from cpsl import (
    ClassBalancedPrototypeClustering,
    ConfusionMatrix,
    PseudoLabelRectifier,
    View,
    carry,
    carry_enlarged,
    prototype_similarity,
)
from cpsl.data import (
    GTA5,
    Cityscapes,
    Draw,
    SoftLabelStore,
    SourceViews,
    StrongAugmentation,
    TargetViews,
    WeakView,
    write_streets,
)
from machine import Machine, measure, survey
from table import HEAD, Row, line

K, D, IMAGES, BANK = 19, 256, 4, 65_536
GRID, QUARTER, CROP, FULL = (129, 257), (128, 224), (512, 896), (1024, 2048)


def self_labeling(both: bool) -> Callable[[], object]:
    """Returns the clustering step of four images with a full bank: draw, assign, loss, gradient, remember."""
    clustering = ClassBalancedPrototypeClustering(K, D, bank_size=BANK, logit_assignments=both)
    clustering.bank.push(torch.randn(BANK, D))
    if clustering.logit_bank is not None:
        clustering.logit_bank.push(torch.nn.functional.normalize(torch.randn(BANK, K), dim=1))
    features, labels = torch.randn(IMAGES, D, *GRID), torch.randint(K, (IMAGES, *GRID))
    logits = torch.randn(IMAGES, K, *GRID)

    def work() -> None:
        output = clustering(features, labels, logits=logits if both else None)
        output.loss.backward()
        clustering.update(output)

    return work


def weak_views() -> View:
    """Returns weak views of four images as they are drawn in training."""
    random = np.random.default_rng(0)
    return View.stack([WeakView().draw(FULL, random) for _ in range(IMAGES)])


def strong_views(weak: View) -> View:
    """Returns strong views of them."""
    moved = weak.sheared(x=0.1).rotated(11).translated(y=20)
    return moved.with_cutout(torch.tensor([200.0, 100, 370, 270]))


def rectification(by: str) -> Callable[[], object]:
    """Returns the rectification of four crops' pseudo labels by features of the whole images."""
    rectifier, whole, weak = PseudoLabelRectifier(), View.whole(FULL, IMAGES), weak_views()
    features, prototypes = torch.randn(IMAGES, D, *GRID), torch.randn(K, D)
    features = features.to(memory_format=torch.channels_last)
    soft = torch.rand(IMAGES, K, *QUARTER).softmax(dim=1)

    def work() -> object:
        if by == "similarity":
            cosines = prototype_similarity(features, prototypes)
            cosines, _ = carry(cosines, whole, weak, QUARTER, layout="corners")
        else:
            quarter = (FULL[0] // 4, FULL[1] // 4)
            carried = carry_enlarged(features, whole, weak, QUARTER, quarter)
            cosines = prototype_similarity(carried, prototypes)
        return rectifier.rectify(soft, cosines)

    return work


def carrying() -> Callable[[], object]:
    """Returns the carrying of 19 channels of four crops through a strong view."""
    weak = weak_views()
    strong, maps = strong_views(weak), torch.rand(IMAGES, K, *QUARTER)
    return lambda: carry(maps, weak, strong, QUARTER, layout="corners")


def evaluating(root: Path) -> Callable[[], object]:
    """Returns what evaluation does beside the network: decode, upsample, count."""
    dataset, confusion = Cityscapes(root / "cityscapes", "val"), ConfusionMatrix(K)
    logits, indices = torch.randn(1, K, *GRID), iter(range(10**9))
    logits = logits.to(memory_format=torch.channels_last)  # as the networks give them

    def work() -> None:
        image, label, _ = dataset[next(indices) % len(dataset)]
        assert label is not None
        scores = torch.nn.functional.interpolate(
            logits, image.shape[1:], mode="bilinear", align_corners=True
        )
        confusion.update(scores.argmax(dim=1)[0], label)

    return work


def storing(folder: Path) -> Callable[[], object]:
    """Returns the writing and reading of one image's soft labels."""
    # Smooth maps with sharp areas, as a network gives them: flat in most places.
    coarse = torch.randn(1, K, 9, 17) * 4
    logits = torch.nn.functional.interpolate(coarse, GRID, mode="bilinear", align_corners=True)
    soft, store = (2 * logits[0]).softmax(dim=0), SoftLabelStore(folder)

    def work() -> None:
        store.write("image", soft)
        store.read("image")

    return work


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Computes with some number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(machine: Machine, data: Path) -> Iterator[Row]:
    """Yields each row as soon as it is measured."""
    scores, bank = (BANK + 1024) * K * 4, BANK * D * 4
    # The bank is read; in each of three iterations the scores are read and written twice.
    transport = 3 * 4 * scores
    matrix = 2.0 * BANK * D * K
    yield Row(
        "self-labeling loss, one assignment",
        measure(self_labeling(False)),
        "",
        30,
        machine.bound(bank + transport, matrix),
    )
    yield Row(
        "self-labeling loss, both assignments",
        measure(self_labeling(True)),
        "195",
        50,
        machine.bound(bank + 2 * transport, matrix),
    )
    places, quarter = IMAGES * GRID[0] * GRID[1], IMAGES * QUARTER[0] * QUARTER[1]
    yield Row(
        "rectification by similarity",
        measure(rectification("similarity")),
        "",
        60,
        machine.bound(4.0 * (places * D + 4 * quarter * K), 2.0 * places * D * K),
    )
    yield Row(
        "rectification in the release's order",
        measure(rectification("features"), repeats=5),
        "934",
        300,
        machine.bound(4.0 * (places * D + 2 * quarter * D), 2.0 * quarter * D * (K + 8)),
    )
    yield Row(
        "carry 19 channels through a strong view",
        measure(carrying()),
        "23",
        15,
        machine.bound(4.0 * 2 * quarter * K, 2.0 * 8 * quarter * K),
    )
    weak, strong = WeakView(), StrongAugmentation()
    target, source = Cityscapes(data / "cityscapes", "train"), GTA5(data / "gta5")
    with threads(1), tempfile.TemporaryDirectory() as folder:
        seeds = iter(range(10**9))
        views = SourceViews(source, weak, style_from=target)
        decoding = measure(lambda: (source[next(seeds) % len(source)], target.image(0)), repeats=8)
        yield Row(
            "a GTA5 training sample, 1 thread",
            measure(lambda: views[Draw((s := next(seeds)) % len(source), s)], repeats=16),
            "821",
            120,
            decoding.low,
        )
        store = SoftLabelStore(folder)
        for name in target.names:
            store.write(name, torch.rand(K, *GRID).softmax(dim=0))
        of_target = TargetViews(target, weak, strong, store.read)
        decoding = measure(lambda: target.image(next(seeds) % len(target)), repeats=8)
        yield Row(
            "a Cityscapes training sample, 1 thread",
            measure(lambda: of_target[Draw((s := next(seeds)) % len(target), s)], repeats=16),
            "520",
            120,
            decoding.low,
        )
        yield Row(
            "evaluation beside the network, 1 thread",
            measure(evaluating(data)),
            "",
            333,
            None,
        )
        yield Row(
            "soft labels, write and read, 1 thread",
            measure(storing(Path(folder))),
            "",
            20,
            None,
        )


def soft_label_size() -> float:
    """Returns the megabytes that the soft labels of one image take on disk."""
    with tempfile.TemporaryDirectory() as folder:
        storing(Path(folder))()
        return (Path(folder) / "image.png").stat().st_size / 1e6


@dataclass(frozen=True)
class Arguments:
    """Measures the pieces of the method."""

    data: Path = Path("runs/paper_scale_streets")
    """Where generated images of the data sets' sizes are drawn, unless they are there."""


def draw(data: Path) -> None:
    """Draws images of the data sets' sizes, unless they are there."""
    write_streets(data / "gta5", layout="gta5", style="game", count=4, size=(1052, 1914))
    for split in ("train", "val"):
        write_streets(
            data / "cityscapes", layout="cityscapes", style="real", count=4, split=split, size=FULL
        )


def main(arguments: Arguments) -> None:
    """Measures all rows and prints the table."""
    draw(arguments.data)
    machine = survey(torch.device("cpu"))
    print(f"{machine}\n\n{HEAD}")
    for row in rows(machine, arguments.data):
        print(line(row), flush=True)
    print(
        f"soft labels of an image on disk: {soft_label_size():.2f} MB (release: 2.5 MB, aim: 0.5)"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
