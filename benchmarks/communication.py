"""Communication of the processes of a run per training step: counted, and computed from formulas.

    python benchmarks/communication.py                            # small networks, 1, 2, 4 and 8 processes
    python benchmarks/communication.py --backbone resnet101 --ranks 2

Runs some steps of the stages on the CPU with random batches, and counts the bytes of each collective where
torch passes it to the backend (gloo), DDP's own included. Bytes are those that a rank passes; a ring
all-reduce of b bytes sends 2 b (R - 1) / R. SyncBatchNorm needs CUDA: its bytes are computed only, as are
those of the paper's sizes.
"""

import argparse
import os
import socket
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

import cpsl
from cpsl.app import stages
from cpsl.app.config import Config, Distill, Model, SelfLabel, WarmUp
from cpsl.app.networks import build_model, save_model
from cpsl.models import DeepLabV2, Discriminator, freeze_batch_norm
from cpsl.testing.training import training_batches
from cpsl.training import TrainingLoop, save, start_process
from cpsl.training.log import text_table

K, CROP, FULL = 19, (32, 64), (48, 96)
SAMPLES, ITERATIONS = 256, 3
"""Pixels sampled per image, and iterations of the assignment; defaults of the settings."""
STEPS, COUNTED = 20, 2
"""Steps of each stage, and the one that is counted: DDP arranges its buckets in the first two, and the last
writes curves and a checkpoint."""

Stage = Literal["warmup", "self_label", "distill_1"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Counts = dict[str, tuple[int, int]]
"""Bytes and messages, by purpose."""

PURPOSES = {
    "sinkhorn.py": "assignment",
    "sampling.py": "sampled pixels",
    "clustering.py:_share": "sampled pixels",
    "clustering.py:_mean": "assignment",
    "alignment.py": "class distribution",
    "optimization.py:backward": "gradients",
    "optimization.py:step": "flags",
    "loop.py": "flags",
}
"""Purpose of a collective, by the file, or file and function, that asks for it."""


@dataclass(frozen=True)
class Run:
    """Sizes of a run, with one image of each domain per process and micro-batch."""

    backbone: str = "resnet_tiny"  # resnet101 is the paper's and needs 1 to 2 GB per process
    feature_dim: int = 256
    micro_batches: int = 1
    bank_size: int = 65_536  # over all processes

    def bank_bytes(self, ranks: int) -> int:
        """Returns the size of a rank's bank: features, labels and whether a row is valid."""
        return self.bank_size // ranks * (4 * self.feature_dim + 8 + 1)


def predict(stage: Stage, run: Run, ranks: int) -> dict[str, int]:
    """Returns the bytes that a rank passes per step, by purpose.

    Gradients are averaged once per step. Sampled pixels are those of all ranks: features, indices and labels,
    after the number of pixels of each class on each rank.
    """
    if ranks == 1:
        return {}
    number, index = 4, 8  # bytes of float32 and int64
    gradients, flags = number * count_parameters(stage, run), 4  # stop, how, non-finite loss or gradient
    if stage != "self_label":
        return {"gradients": gradients, "flags": flags}
    pixels = ranks * SAMPLES
    sampled = index * ranks * (K + 1) + pixels * (number * run.feature_dim + 2 * index)
    # The largest score; per iteration the largest score and the sum of each class; the marginal error; the
    # number of pixels over which the loss is averaged.
    assignment = number * (1 + 2 * ITERATIONS * K + K) + index
    return {
        "gradients": gradients + number * K * run.feature_dim,
        "assignment": run.micro_batches * assignment,
        "sampled pixels": run.micro_batches * sampled,
        "class distribution": index * K,
        "flags": flags,
    }


def count_parameters(stage: Stage, run: Run) -> int:
    """Returns the number of trained parameters of the networks."""
    with torch.device("meta"):
        networks = nn.ModuleList([DeepLabV2(K, run.backbone, run.feature_dim)])
        if stage == "warmup":
            freeze_batch_norm(networks)
            networks.append(Discriminator(K))
    return sum(p.numel() for p in networks.parameters() if p.requires_grad)


def predict_batch_norm(model: nn.Module, passes: int) -> int:
    """Returns the bytes of SyncBatchNorm per step with a number of passes with gradients.

    Forward, each rank passes mean, inverse deviation and the number of pixels, backward two sums.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return passes * sum(4 * (4 * norm.num_features + 1) for norm in norms)


class Traffic(TorchDispatchMode):
    """Counts bytes and messages of collectives, by iteration and purpose."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.iteration = -1
        self.counts: dict[int, Counts] = defaultdict(dict)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts a collective and runs it."""
        if func.namespace == "c10d":
            # A gather names its outputs first, then what this rank passes.
            passed = args[1] if "gather" in func.__name__ else args[0]
            tensors = [passed] if isinstance(passed, Tensor) else passed
            counts, purpose = self.counts[self.iteration], _purpose(sys._getframe())
            size, messages = counts.get(purpose, (0, 0))
            counts[purpose] = (size + sum(tensor.nbytes for tensor in tensors), messages + 1)
        return func(*args, **(kwargs or {}))


def _purpose(frame: FrameType | None) -> str:
    """Returns the purpose of a collective, from the innermost frame that is in `PURPOSES`."""
    folder = Path(cpsl.__file__).parent
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent in (folder, folder / "training"):
            for key in (path.name, f"{path.name}:{frame.f_code.co_name}"):
                if key in PURPOSES:
                    return PURPOSES[key]
        frame = frame.f_back
    return "DDP's arrangement"


def settings(folder: Path, run: Run, ranks: int) -> Config:
    """Returns settings of a few tiny steps."""
    size: Any = {"iterations": STEPS, "batch_size": ranks * run.micro_batches}
    return Config(
        folder,
        method="paper",
        gradient_accumulation_steps=run.micro_batches,
        model=Model(f"deeplabv2:{run.backbone}", run.feature_dim),
        warmup=WarmUp("random", **size),
        self_label=SelfLabel(**size, bank_size=run.bank_size),
        distill=Distill(**size),
    )


def work(rank: int, ranks: int, port: int, folder: Path, stage: Stage, run: Run, counts: Any) -> None:
    """Runs some steps of a stage as one of several processes; rank 0 puts its counts into a queue."""
    torch.set_num_threads(1)
    if ranks > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks}
        address |= {"RANK": rank, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in address.items()}
    soft = stage == "self_label"
    source, target = training_batches(K, images=1, crop=CROP, full_size=FULL, soft=soft)
    traffic, iterate = Traffic(), TrainingLoop.__iter__

    def iterate_and_note(loop: TrainingLoop) -> Iterator[int]:
        for traffic.iteration in iterate(loop):
            yield traffic.iteration

    with (
        patch.object(stages, "source_batches", lambda *_: repeat(source)),
        patch.object(stages, "target_batches", lambda *_: repeat(target)),
        patch.object(stages, "label_target", lambda *_: None),
        patch.object(TrainingLoop, "__iter__", iterate_and_note),
        start_process("cpu") as process,
        traffic,
    ):
        stages.TRAINERS[stage](settings(folder, run, ranks), process, stage=stage)
    if rank == 0:
        counts.put([traffic.counts[step] for step in (COUNTED, STEPS - 1)])


def count(stage: Stage, ranks: int, run: Run) -> tuple[Counts, Counts]:
    """Returns bytes and messages of rank 0 by purpose, in a step and in the last step of a stage."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    counts = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(folder, run, ranks)
        model = build_model(config, "random")
        for previous in ("warmup", "self_label"):
            save_model(folder / previous / "model.pt", model, config)
        start = {"prototypes": torch.randn(K, run.feature_dim), "class_distribution": torch.ones(K) / K}
        save(folder / "pseudo_labels" / "start.pt", start)
        spawn(work, args=(ranks, port, folder, stage, run, counts), nprocs=ranks)
    step, last = counts.get()
    return step, last


def table(stages: Sequence[Stage], numbers_of_ranks: Sequence[int], run: Run) -> str:
    """Returns a table of counted and computed bytes."""
    rows = [["stage, processes, purpose", "messages", "bytes", "formula", "difference"]]
    for stage, ranks in product(stages, numbers_of_ranks):
        (step, last), formula = count(stage, ranks, run), predict(stage, run, ranks)
        if ranks == 1 and not step:
            rows.append([f"{stage}, {ranks}", "0", "0", "0", "0"])
        for purpose in sorted({*step, *formula}):
            (got, messages), wanted = step.get(purpose, (0, 0)), formula.get(purpose, 0)
            numbers = (messages, got, wanted, got - wanted)
            rows.append([f"{stage}, {ranks}, {purpose}", *(f"{n:,}" for n in numbers)])
        if ranks > 1:
            once = last["flags"][0] - step["flags"][0]
            rows.append([f"{stage}, {ranks}, curves and checkpoint", "", f"{once:,}", "", ""])
    return text_table(rows)


def paper_table() -> str:
    """Returns the bytes of a self-labeling step at the paper's sizes, from the formulas."""
    paper = Run(backbone="resnet101")
    with torch.device("meta"):
        model = DeepLabV2(K)
    rows = [["processes", "gradients", "SyncBatchNorm", "sampled pixels", "assignment", "bank per rank"]]
    for ranks in (1, 2, 4, 8, 32):
        step = predict("self_label", paper, ranks)
        gradients, *others = (step.get(name, 0) for name in ("gradients", "sampled pixels", "assignment"))
        norm = predict_batch_norm(model, passes=3) if ranks > 1 else 0
        numbers = (gradients, norm, *others, paper.bank_bytes(ranks))
        rows.append([str(ranks), *(f"{n / 1e6:.3f} MB" for n in numbers)])
    return text_table(rows)


def main() -> None:
    """Prints the counted bytes, and those computed for the paper's sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--backbone", default="resnet_tiny", help="resnet101 is the paper's")
    parser.add_argument("--micro-batches", type=int, default=1)
    options = parser.parse_args()
    run = Run(options.backbone, micro_batches=options.micro_batches)
    print(f"Bytes that a process passes per step; {run.backbone}, counted with gloo")
    print(table(options.stages, options.ranks, run))
    print("\nA self-labeling step at the paper's sizes, one image per process, from the formulas")
    print(paper_table())


if __name__ == "__main__":
    main()
