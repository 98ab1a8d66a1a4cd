"""Pseudo labels, self-labeling and a distillation whose results do not depend on how a batch is divided.

A program for `test_many_processes.py`, with the options of `cpsl adapt`. There is no dropout, pixels are
sampled in order, BatchNorm is frozen, and a loss is the mean over images. Otherwise dropout, CutMix and the
sampling depend on the random numbers of a rank, BatchNorm on its images, and a loss on its valid pixels.
`written.RANK` lists the stored label maps.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cpsl import clustering, sampling
from cpsl.app.command_line import parse
from cpsl.app.pseudo_labels import describe_target
from cpsl.app.run import begin_run, run_stage
from cpsl.app.stages import distill, self_label
from cpsl.data import HardLabelStore, SoftLabelStore
from cpsl.methods import distillation, self_labeling


def mean_over_images(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mean(*tensors: Tensor, **options: float) -> Tensor:
        images = zip(*(tensor.split(1) for tensor in tensors), strict=True)
        return torch.stack([loss(*image, **options) for image in images]).mean()

    return mean


def remove_randomness() -> None:
    nn.Dropout2d.forward = lambda _, features: features
    nn.BatchNorm2d.train = lambda norm, mode=True: nn.Module.train(norm, False)
    sampling._shuffled_within = partial(torch.argsort, stable=True)
    assert clustering.sample_uniform is sampling.sample_uniform
    for module in (self_labeling, distillation):
        for name in ("cross_entropy", "symmetric_cross_entropy", "prototype_consistency"):
            if hasattr(module, name):
                setattr(module, name, mean_over_images(getattr(module, name)))


def list_written_files(folder: Path, rank: int) -> None:
    def listing(write: Callable[..., None]) -> Callable[..., None]:
        def write_and_list(store: HardLabelStore | SoftLabelStore, name: str, values: Tensor) -> None:
            write(store, name, values)
            with (folder / f"written.{rank}").open("a") as file:
                file.write(f"{(store.folder / name).relative_to(folder)}\n")

        return write_and_list

    for kind in (HardLabelStore, SoftLabelStore):
        kind.write = listing(kind.write)


if __name__ == "__main__":
    config = parse(sys.argv[1:])
    remove_randomness()
    with begin_run(config) as process:
        list_written_files(config.output, process.rank)
        run_stage("warmup", lambda *_: None, config, process)  # its model is given
        describe_target(config, process)
        run_stage("self_label", self_label, config, process)
        run_stage("distill_1", partial(distill, stage="distill_1"), config, process)
