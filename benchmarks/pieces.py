"""Pieces of the method at the paper's sizes, next to the authors' code.

    python benchmarks/pieces.py

The authors' code was measured on a machine with 2 cores and 2 threads (1 for data). The bound is the roofline
lower bound of this machine, measured in the same run; for a training sample it is the time of decoding.
"""

import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cpsl import (
    ClassBalancedPrototypeClustering,
    ConfusionMatrix,
    PseudoLabelRectifier,
    View,
    prototype_similarity,
    warp,
)
from cpsl.authors import AuthorsClustering
from cpsl.authors.geometry import warp_upsampled
from cpsl.data import (
    GTA5,
    Cityscapes,
    SoftLabelStore,
    SourceViews,
    StrongAugmentation,
    TargetViews,
    WeakView,
    write_streets,
)
from cpsl.data.training import SeededIndex
from measure import HEAD, Machine, Row, measure, survey

K, D, IMAGES, BANK = 19, 256, 4, 65_536
GRID, QUARTER, FULL = (129, 257), (128, 224), (1024, 2048)

Work = Callable[[], object]

DATA = Path("runs/paper_scale_streets")
"""Folder of generated images of the data sets' sizes; they are written if missing."""


def clustering_step(
    bank: int = BANK,
    classes: int = K,
    pixels: int = 256,
    grid: tuple[int, int] = GRID,
    logit_assignments: bool = False,
) -> Work:
    """Returns a clustering step of four images with a full bank: sample, assign, loss, gradient, update.

    `pixels` are sampled per image, `grid` is the size of the features, `logit_assignments` adds the authors'
    second assignment.
    """
    options: dict[str, Any] = {"bank_size": bank, "samples_per_image": pixels}
    clustering = ClassBalancedPrototypeClustering(classes, D, **options)
    inputs = {"features": torch.randn(IMAGES, D, *grid)}
    inputs["labels"] = torch.randint(classes, (IMAGES, *grid))
    if logit_assignments:
        clustering = AuthorsClustering(classes, D, logit_assignments=True, **options)
        assert clustering.logit_bank is not None
        clustering.logit_bank.push(F.normalize(torch.randn(bank, classes), dim=1))
        inputs["logits"] = torch.randn(IMAGES, classes, *grid)
    clustering.bank.push(F.normalize(torch.randn(bank, D), dim=1))

    def work() -> None:
        output = clustering(**inputs)
        output.loss.backward()
        clustering.update(output)

    return work


def rectification(
    by: str, classes: int = K, grid: tuple[int, int] = GRID, view: tuple[int, int] = QUARTER
) -> Work:
    """Returns the rectification of the pseudo labels of four crops by features of the whole images.

    The "similarity" is warped, or the "features" as in the authors' code. `grid` is the size of the features,
    `view` that of the result, a quarter of the crop.
    """
    full, rectifier = (8 * grid[0] - 8, 8 * grid[1] - 8), PseudoLabelRectifier()
    whole = View.whole(full, IMAGES)
    weak = whole.cropped(8, 8, (4 * view[0], 4 * view[1]))
    features, prototypes = torch.randn(IMAGES, D, *grid), torch.randn(classes, D)
    features = features.to(memory_format=torch.channels_last)  # as networks return them
    soft = torch.rand(IMAGES, classes, *view).softmax(dim=1)

    def work() -> object:
        if by == "similarity":
            similarity = prototype_similarity(features, prototypes)
            similarity = warp(similarity, whole, weak, view, align_corners=True).values
        else:
            warped = warp_upsampled(features, whole, weak, view, (full[0] // 4, full[1] // 4))
            similarity = prototype_similarity(warped, prototypes)
        return rectifier.rectify(soft, similarity)

    return work


def warping() -> Work:
    """Returns the warp of 19 channels of four crops into strong views."""
    random, maps = np.random.default_rng(0), torch.rand(IMAGES, K, *QUARTER)
    weak = View.stack([WeakView().sample(FULL, random) for _ in range(IMAGES)])
    strong = weak.sheared(x=0.1).rotated(11).translated(y=20)
    strong = strong.with_cutout(torch.tensor([200.0, 100, 370, 270]))
    return lambda: warp(maps, weak, strong, QUARTER, align_corners=True)


def evaluation() -> Work:
    """Returns evaluation without the network: decode, upsample, count."""
    dataset, confusion, indices = Cityscapes(DATA / "cityscapes", "val"), ConfusionMatrix(K), count()
    logits = torch.randn(1, K, *GRID).to(memory_format=torch.channels_last)

    def work() -> None:
        image, label, _ = dataset[next(indices) % len(dataset)]
        assert label is not None
        scores = F.interpolate(logits, image.shape[1:], mode="bilinear", align_corners=True)
        confusion.update(scores.argmax(dim=1)[0], label)

    return work


def soft_labels(store: SoftLabelStore) -> Work:
    """Returns writing and reading of the soft labels of one image."""
    coarse = 4 * torch.randn(1, K, 9, 17)  # flat areas with sharp borders, as of a network
    logits = F.interpolate(coarse, GRID, mode="bilinear", align_corners=True)
    soft = (2 * logits[0]).softmax(dim=0)

    def work() -> None:
        store.write("image", soft)
        store.read("image")

    return work


def method_rows(machine: Machine) -> Iterator[Row]:
    """Measures clustering, rectification and warping."""
    scores, bank = (BANK + 1024) * K * 4, BANK * D * 4
    # The bank is read; each of three iterations reads and writes the scores twice.
    transport, product = 3 * 4 * scores, 2.0 * BANK * D * K
    bound = machine.bound(bank + transport, product)
    yield Row("self-labeling loss, one assignment", measure(clustering_step()), "", 30, bound)
    timing = measure(clustering_step(logit_assignments=True))
    bound = machine.bound(bank + 2 * transport, product)
    yield Row("self-labeling loss, both assignments", timing, "195", 50, bound)
    positions, quarter = IMAGES * GRID[0] * GRID[1], IMAGES * QUARTER[0] * QUARTER[1]
    timing = measure(rectification("similarity"))
    bound = machine.bound(4.0 * (positions * D + 4 * quarter * K), 2.0 * positions * D * K)
    yield Row("rectification by similarity", timing, "", 60, bound)
    timing = measure(rectification("features"), repeats=5)
    bound = machine.bound(4.0 * (positions * D + 2 * quarter * D), 2.0 * quarter * D * (K + 8))
    yield Row("rectification in the authors' order", timing, "934", 300, bound)
    bound = machine.bound(4.0 * 2 * quarter * K, 2.0 * 8 * quarter * K)
    yield Row("warp of 19 channels to a strong view", measure(warping()), "23", 15, bound)


def data_rows() -> Iterator[Row]:
    """Measures training samples, evaluation and pseudo-label files, with one thread."""
    source, target, weak = GTA5(DATA / "gta5"), Cityscapes(DATA / "cityscapes", "train"), WeakView()
    seeds = count()

    def sample(views: SourceViews | TargetViews) -> object:
        seed = next(seeds)
        return views[SeededIndex(seed % len(views), seed)]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        store = SoftLabelStore(Path(name))
        for key in target.names:
            store.write(key, torch.rand(K, *GRID).softmax(dim=0))
        views = SourceViews(source, weak, style_from=target)
        decode = measure(lambda: (source[next(seeds) % len(source)], target.image(0)), repeats=8)
        timing = measure(lambda: sample(views), repeats=16)
        yield Row("a GTA5 training sample, 1 thread", timing, "821", 120, decode.low)
        target_views = TargetViews(target, weak, StrongAugmentation(), store.read)
        decode = measure(lambda: target.image(next(seeds) % len(target)), repeats=8)
        timing = measure(lambda: sample(target_views), repeats=16)
        yield Row("a Cityscapes training sample, 1 thread", timing, "520", 120, decode.low)
        yield Row("evaluation without the network, 1 thread", measure(evaluation()), "", 333, None)
        timing = measure(soft_labels(store))
        size = (Path(name) / "image.png").stat().st_size / 1e6
        yield Row(f"soft labels ({size:.2f} MB), write and read", timing, "", 20, None)
    torch.set_num_threads(threads)


def write_images() -> None:
    """Writes generated images of the data sets' sizes, unless they exist."""
    write_streets(DATA / "gta5", layout="gta5", style="game", count=4, size=(1052, 1914))
    for split in ("train", "val"):
        write_streets(DATA / "cityscapes", layout="cityscapes", style="real", count=4, split=split, size=FULL)


def main() -> None:
    """Prints a table of all components."""
    write_images()
    machine = survey(torch.device("cpu"))
    print(f"{machine}\n\n{HEAD}")
    for row in chain(method_rows(machine), data_rows()):
        print(row, flush=True)


if __name__ == "__main__":
    main()
