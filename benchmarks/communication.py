"""What the processes of a run tell each other in a training step: counted, and computed.

    python benchmarks/communication.py                            # small networks, 1, 2, 4 and 8 processes
    python benchmarks/communication.py --backbone resnet101 --ranks 2

Runs some steps of the trainers, as they are, in processes on the CPU that talk by gloo, on tiny random
images, and counts the bytes of every collective where torch hands it to the backend, DDP's own included.
Beside them stands the cost model: what the formulas in `predict` say. Bytes are those that a rank hands over;
a ring all-reduce sends 2·(R - 1)/R times as many over the wire.

SyncBatchNorm needs CUDA, so its bytes are computed only; so are the figures at the paper's sizes.
"""

import json
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import distill  # noqa: E402
import self_label  # noqa: E402
import warmup  # noqa: E402
from config import Config, parse  # noqa: E402
from cpsl.data import SourceBatch, TargetBatch  # noqa: E402
from cpsl.engine import Cost, Process, TrainingLoop, save, start_process, text_table  # noqa: E402
from cpsl.geometry import View  # noqa: E402
from cpsl.models import DeepLabV2, Discriminator, freeze_batch_norm  # noqa: E402
from networks import build_model, save_model  # noqa: E402

K, CROP, FULL = 19, (32, 64), (48, 96)
STEPS, COUNTED = 4, 2
"""Steps of each stage, and the one that is counted: DDP arranges its buckets in the first two, and the last
writes a point of the curves and a checkpoint."""

Stage = Literal["warmup", "self_label", "distill_1"]
STAGES: tuple[Stage, ...] = ("warmup", "self_label", "distill_1")

KINDS = {
    "optimization.py": "gradients",
    "sinkhorn.py": "assignment",
    "sampling.py": "drawn pixels",
    "clustering.py": "drawn pixels",
    "alignment.py": "class distribution",
    "loop.py": "loop",
}
"""What a collective is for, by the file that asks for it."""


@dataclass(frozen=True)
class Sizes:
    """What the cost model needs to know.

    Attributes:
        parameters: Parameters of the networks that are trained.
        classes: K.
        feature_dim: D.
        ranks: R.
        images: Images of each domain a rank has in a part of a step.
        parts: Parts of a step.
        samples: n pixels drawn for each image.
        iterations: Of the assignment.
    """

    parameters: int
    classes: int
    feature_dim: int
    ranks: int
    images: int = 1
    parts: int = 1
    samples: int = 256
    iterations: int = 3


def predict(stage: Stage, sizes: Sizes) -> dict[str, int]:
    """Returns the bytes that a rank hands over in a step, by what they are for; nothing if it is alone.

    Gradients are averaged once a step, however many parts it has. The drawn pixels are those of all ranks:
    features, indices and labels, after the numbers of pixels of each class on each rank.
    """
    if sizes.ranks == 1:
        return {}
    number, index = 4, 8  # bytes of float32 and int64
    k = sizes.classes
    flags = 2  # a byte each: is any rank to stop, were any numbers not finite
    if stage != "self_label":
        return {"gradients": number * sizes.parameters, "loop": flags}
    prototypes = k * sizes.feature_dim
    drawn = sizes.ranks * sizes.images * sizes.samples
    counts = index * sizes.ranks * (k + 1)
    return {
        "gradients": number * (sizes.parameters + prototypes),
        # The best score; in each iteration the largest score and the sum of each class; the marginal error.
        "assignment": number * sizes.parts * (1 + 2 * sizes.iterations * k + k),
        "drawn pixels": sizes.parts * (counts + drawn * (number * sizes.feature_dim + 2 * index)),
        "class distribution": index * k,
        "loop": flags,
    }


def predict_batch_norm(model: nn.Module, passes: int) -> int:
    """Returns the bytes of SyncBatchNorm in a step of so many passes with gradients, from its formula.

    Forward each rank hands over mean, inverse deviation and the number of pixels, backward two sums.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return passes * sum(
        4 * (2 * norm.num_features + 1) + 4 * 2 * norm.num_features for norm in norms
    )


class Traffic(TorchDispatchMode):
    """Counts the bytes of every collective, by iteration and by what it is for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.iteration = -1
        self.bytes: Counter[tuple[int, str]] = Counter()
        self.calls: Counter[tuple[int, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes a collective and lets it happen."""
        if func.namespace == "c10d":
            # Gathers name their outputs first, and then what this rank hands over.
            given = args[1] if "gather" in func.__name__ else args[0]
            tensors = [given] if isinstance(given, Tensor) else given
            entry = (self.iteration, _purpose(sys._getframe()))
            self.calls[entry] += 1
            self.bytes[entry] += sum(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))


def _purpose(frame: FrameType | None) -> str:
    """Returns what a collective is for: the first file of the package on the way to it that says so."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent in (ROOT / "cpsl", ROOT / "cpsl" / "engine") and path.name in KINDS:
            return KINDS[path.name]
        frame = frame.f_back
    return "DDP's arrangement"


def batches(images: int) -> tuple[SourceBatch, TargetBatch]:
    """Returns tiny batches of random numbers."""
    whole = View.whole(FULL, images)
    weak = whole.cropped(3, 5, CROP)
    strong = weak.flipped()

    def image(size: tuple[int, int]) -> Tensor:
        return torch.randint(256, (images, 3, *size), dtype=torch.uint8)

    label = torch.randint(K, (images, *CROP), dtype=torch.uint8)
    soft = torch.rand(images, K, 6, 12).softmax(dim=1)
    names = ["a"] * images
    return (
        SourceBatch(image(CROP), label, names),
        TargetBatch(image(CROP), weak, image(CROP), strong, image(FULL), whole, soft, names),
    )


def settings(folder: Path, arguments: "Arguments", ranks: int) -> Config:
    """Returns settings of a few tiny steps."""
    words = ["--output", str(folder), "--source.images", "a", "--target.images", "b"]
    words += ["--device", "cpu", "--accumulate", str(arguments.parts)]
    words += ["--views.crop", *map(str, CROP), "--views.full-size", *map(str, FULL)]
    words += [
        "--model.backbone",
        arguments.backbone,
        "--model.feature-dim",
        str(arguments.feature_dim),
    ]
    words += ["--self-label.bank-size", str(arguments.bank_size)]
    batch = str(ranks * arguments.parts * arguments.images)
    for stage in ("source-only", "warmup", "self-label", "distill"):
        words += [f"--{stage}.iterations", str(STEPS), f"--{stage}.batch-size", batch]
    return parse(Config, [*words, "--warmup.start", "random", "--distill.student", "previous"])


def train(stage: Stage, config: Config, images: int) -> Traffic:
    """Runs some steps of a stage in this process, one of several or alone."""
    module: ModuleType = {"warmup": warmup, "self_label": self_label, "distill_1": distill}[stage]
    source, target = batches(images)
    if stage == "distill_1":
        labels = torch.randint(K, (images, *FULL), dtype=torch.uint8)
        target = TargetBatch(**{**vars(target), "pseudo_labels": labels})
    # The trainer runs as it is; only its images are these instead of files.
    setattr(module, "source_batches", lambda *_: repeat(source))  # noqa: B010
    setattr(module, "target_batches", lambda *_: repeat(target))  # noqa: B010
    setattr(distill, "label_target", lambda *_: None)  # noqa: B010
    traffic, iterate = Traffic(), TrainingLoop.__iter__

    def noted(loop: TrainingLoop) -> Iterator[int]:
        for iteration in iterate(loop):
            traffic.iteration = iteration
            yield iteration

    setattr(TrainingLoop, "__iter__", noted)  # noqa: B010
    try:
        with start_process("cpu") as process:
            torch.manual_seed(0)
            run: dict[Stage, Callable[[Config, Process], Cost]] = {
                "warmup": warmup.warm_up,
                "self_label": self_label.self_label,
                "distill_1": partial(distill.distill, stage="distill_1", previous="self_label"),
            }
            with traffic:
                run[stage](config, process)
    finally:
        setattr(TrainingLoop, "__iter__", iterate)  # noqa: B010
    return traffic


def work(
    rank: int, ranks: int, port: int, folder: Path, stage: Stage, arguments: "Arguments"
) -> None:
    """Counts a stage as one of so many processes; rank 0 writes what it counted."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            WORLD_SIZE=str(ranks),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
    traffic = train(stage, settings(folder, arguments, ranks), arguments.images)
    if rank == 0:
        counted = {
            "step": {kind: n for (step, kind), n in traffic.bytes.items() if step == COUNTED},
            "calls": {kind: n for (step, kind), n in traffic.calls.items() if step == COUNTED},
            "last": {kind: n for (step, kind), n in traffic.bytes.items() if step == STEPS - 1},
        }
        (folder / f"{stage}.json").write_text(json.dumps(counted))


def count(stage: Stage, ranks: int, arguments: "Arguments") -> dict[str, dict[str, int]]:
    """Returns the bytes that rank 0 hands over in a step, how many messages, and in the last step.

    The last step writes a point of the curves and a checkpoint, too.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(folder, arguments, ranks)
        model = build_model(config, "random")
        for before in ("warmup", "self_label"):
            save_model(folder / before / "model.pt", model, config)
        start = {
            "prototypes": torch.randn(K, arguments.feature_dim),
            "class_distribution": torch.full((K,), 1 / K),
        }
        save(folder / "pseudo_labels" / "start.pt", start)
        spawn(work, args=(ranks, port, folder, stage, arguments), nprocs=ranks)
        counted: dict[str, dict[str, int]] = json.loads((folder / f"{stage}.json").read_text())
    return counted


def sizes(stage: Stage, arguments: "Arguments", ranks: int) -> Sizes:
    """Returns what the cost model needs to know of these arguments."""
    with torch.device("meta"):
        networks: list[nn.Module] = [DeepLabV2(K, arguments.backbone, arguments.feature_dim)]
        if stage == "warmup":
            freeze_batch_norm(networks[0])
            networks.append(Discriminator(K))
    parameters = [p for network in networks for p in network.parameters()]
    return Sizes(
        parameters=sum(p.numel() for p in parameters if p.requires_grad),
        classes=K,
        feature_dim=arguments.feature_dim,
        ranks=ranks,
        images=arguments.images,
        parts=arguments.parts,
    )


@dataclass(frozen=True)
class Arguments:
    """Counts what the processes of a run tell each other."""

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of processes."""
    stages: tuple[Stage, ...] = STAGES
    """Stages of a run."""
    backbone: str = "resnet_tiny"
    """resnet101 is the paper's; each process then holds 1 to 2 GB."""
    feature_dim: int = 256
    """Channels of the features."""
    images: int = 1
    """Images of each domain that a process has in a part of a step."""
    parts: int = 1
    """Parts of a step (accumulate)."""
    bank_size: int = 65_536
    """Pixels in the memory bank, over all processes."""


def table(arguments: Arguments) -> str:
    """Returns a table of a step's bytes, counted and computed."""
    rows: list[tuple[str, ...]] = [
        ("stage, processes, what for", "messages", "bytes", "formula", "difference")
    ]
    for stage in arguments.stages:
        for ranks in arguments.ranks:
            counted, formula = (
                count(stage, ranks, arguments),
                predict(stage, sizes(stage, arguments, ranks)),
            )
            if not counted["step"] and not formula:
                rows.append((f"{stage}, {ranks}", "0", "0", "0", "0"))
            for kind in sorted({*counted["step"], *formula}):
                got, wanted = counted["step"].get(kind, 0), formula.get(kind, 0)
                cells = (
                    f"{n:,}" for n in (counted["calls"].get(kind, 0), got, wanted, got - wanted)
                )
                rows.append((f"{stage}, {ranks}, {kind}", *cells))
            once = counted["last"].get("loop", 0) - counted["step"].get("loop", 0)
            if ranks > 1:
                rows.append((f"{stage}, {ranks}, curves and checkpoint", "", f"{once:,}", "", ""))
    return text_table(rows)


def paper_table() -> str:
    """Returns the bytes of a step at the paper's sizes, computed from the formulas."""
    paper = Arguments(backbone="resnet101")
    with torch.device("meta"):
        model = DeepLabV2(K)
    rows: list[tuple[str, ...]] = [
        ("processes", "gradients", "SyncBatchNorm", "drawn pixels", "assignment", "bank a rank")
    ]
    for ranks in (1, 2, 4, 8, 32):
        each = predict("self_label", sizes("self_label", paper, ranks))
        norm = predict_batch_norm(model, passes=3) if ranks > 1 else 0
        # Features, label and whether the row is valid.
        bank = paper.bank_size // ranks * (4 * paper.feature_dim + 8 + 1)
        cells = (
            each.get("gradients", 0),
            norm,
            each.get("drawn pixels", 0),
            each.get("assignment", 0),
        )
        rows.append((str(ranks), *(f"{n / 1e6:.3f} MB" for n in (*cells, bank))))
    return text_table(rows)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    print(f"A step, bytes that a process hands over; {arguments.backbone}, counted on gloo")
    print(table(arguments))
    print(
        "\nA step of self-labeling at the paper's sizes, one image a process, computed from the formulas"
    )
    print(paper_table())
