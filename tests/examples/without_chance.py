"""Pseudo labels, self-labeling and a distillation, without what depends on how a batch is divided.

    python tests/examples/without_chance.py --config ... [what adapt.py takes]

For a test that runs it as one process and as several. Dropout, CutMix and the draw of pixels follow the
random numbers of a rank, BatchNorm its images, and a loss averages over its valid pixels. Here is no dropout,
pixels are drawn in their order, BatchNorm is frozen, and a loss is a mean over images. What is written into a
store is noted in `written.RANK`.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import distill
import self_label
from config import Config, parse
from cpsl import clustering, sampling
from cpsl.data import HardLabelStore, SoftLabelStore
from pseudo_labels import describe_target
from stage import begin_run, run_stage


def mean_over_images(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mean(*tensors: Tensor, **options: float) -> Tensor:
        images = zip(*(tensor.split(1) for tensor in tensors), strict=True)
        return torch.stack([loss(*image, **options) for image in images]).mean()

    return mean


def take_chance_out() -> None:
    nn.Dropout2d.forward = lambda _, features: features
    nn.BatchNorm2d.train = lambda norm, mode=True: nn.Module.train(norm, False)
    sampling._shuffled_within = partial(torch.argsort, stable=True)
    assert clustering.draw_uniform is sampling.draw_uniform
    for module in (self_label, distill):
        for name in ("cross_entropy", "symmetric_cross_entropy", "prototype_consistency"):
            if hasattr(module, name):
                setattr(module, name, mean_over_images(getattr(module, name)))


def note_writing(folder: Path, rank: int) -> None:
    def noting(write: Callable[..., None]) -> Callable[..., None]:
        def noted(store: HardLabelStore | SoftLabelStore, name: str, values: Tensor) -> None:
            write(store, name, values)
            with (folder / f"written.{rank}").open("a") as notes:
                notes.write(f"{(store.folder / name).relative_to(folder)}\n")

        return noted

    for kind in (HardLabelStore, SoftLabelStore):
        kind.write = noting(kind.write)


if __name__ == "__main__":
    config = parse(Config)
    take_chance_out()
    with begin_run(config) as process:
        note_writing(config.output, process.rank)
        run_stage("warmup", lambda *_: None, config, process)  # the model is given
        describe_target(config, process)
        run_stage("self_label", self_label.self_label, config, process)
        train = partial(distill.distill, stage="distill_1", previous="self_label")
        run_stage("distill_1", train, config, process)
