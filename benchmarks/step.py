"""A full stage-1 step, 1 image, 448x256 crop, 1024x512 whole, ResNet-101: the trainer itself, in three ways.

    python benchmarks/step.py

Each way runs in a process of its own, one after the other, so that its peak memory is its own. "The release's
layout" is the same step with channels outermost. The networks' own passes are timed apart, on equal inputs.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import networks  # noqa: E402
import self_label  # noqa: E402
from config import Config, parse  # noqa: E402
from cpsl.data import SourceBatch, TargetBatch  # noqa: E402
from cpsl.engine import Precision, Process, autocast, save, start_process  # noqa: E402
from cpsl.geometry import View  # noqa: E402
from machine import measure  # noqa: E402
from networks import build_model, save_model, to_unit  # noqa: E402

K, CROP, FULL = 19, (256, 448), (512, 1024)
FLOP = 3.3e12
"""Of a step, counted for the design of this project."""

Layout = Literal["channels_last", "contiguous"]


@dataclass(frozen=True)
class Arguments:
    """Measures a full stage-1 step."""

    layout: Layout | None = None
    """Only this layout; all three ways if left out."""
    precision: Precision = "float32"
    """Of the networks."""
    iterations: int = 4
    """How many steps; the first is not counted."""


def batches() -> tuple[SourceBatch, TargetBatch]:
    """Returns batches of one image each, of random numbers."""
    weak = View.whole(FULL).resized((560, 1100)).cropped(100, 200, CROP)
    strong = weak.flipped().rotated(10).with_cutout(torch.tensor([50.0, 50, 135, 135]))

    def image(size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(256, (1, 3, *size), dtype=torch.uint8)

    label = torch.randint(K, (1, *CROP), dtype=torch.uint8)
    soft = torch.rand(1, K, 65, 129).softmax(dim=1)
    whole = View.whole(FULL)
    source = SourceBatch(image(CROP), label, ["a"])
    target = TargetBatch(image(CROP), weak, image(CROP), strong, image(FULL), whole, soft, ["b"])
    return source, target


def run(arguments: Arguments) -> dict[str, float]:
    """Trains some iterations and returns seconds a step, seconds of the networks alone, and peak bytes."""
    source, target = batches()

    def same(batch: Any) -> Any:
        def forever(*_: Any) -> Iterator[Any]:
            return repeat(batch)

        return forever

    # The trainer runs as it is; only its images are these instead of files.
    setattr(self_label, "source_batches", same(source))  # noqa: B010
    setattr(self_label, "target_batches", same(target))  # noqa: B010
    if arguments.layout == "contiguous":
        networks._channels_last = lambda model: model
    with tempfile.TemporaryDirectory() as folder, start_process("auto") as process:
        words = ["--output", folder, "--source.images", "a", "--target.images", "b"]
        words += ["--views.crop", *map(str, CROP), "--views.full-size", *map(str, FULL)]
        words += ["--self-label.iterations", str(arguments.iterations), "--precision"]
        words += [arguments.precision, "--self-label.batch-size", "1"]
        config = parse(Config, words)
        model = build_model(config, "random").to(process.device)
        save_model(config.output / "warmup" / "model.pt", model, config)
        start = {"prototypes": torch.randn(K, 256), "class_distribution": torch.full((K,), 1 / K)}
        save(config.output / "pseudo_labels" / "start.pt", start)
        del model
        cost = self_label.self_label(config, process)
        own = passes(config, process, source, target)
    return {"step": cost.seconds_per_iteration, "networks": own, "peak": float(cost.peak_memory)}


def passes(config: Config, process: Process, source: SourceBatch, target: TargetBatch) -> float:
    """Returns the seconds of the networks' own passes: three of the student, one of the teacher."""
    model = build_model(config, "random").to(process.device).train()
    teacher = build_model(config, "random").to(process.device).eval().requires_grad_(False)
    source, target = source.to(process.device), target.to(process.device)

    def student(image: torch.Tensor) -> None:
        with autocast(process.device, config.precision):
            output = model(to_unit(image))
        (output.logits.float().mean() + output.features.float().mean()).backward()

    def work() -> None:
        for image in (source.image, target.weak, target.strong):
            student(image)
        with torch.no_grad(), autocast(process.device, config.precision):
            teacher(to_unit(target.whole))
        model.zero_grad(set_to_none=True)

    return measure(work, repeats=3, warm_up=1).median


def main(arguments: Arguments) -> None:
    """Measures one way and prints it as JSON, or all three as a table."""
    if arguments.layout is not None:
        print(json.dumps(run(arguments)))
        return
    ways: tuple[tuple[str, Layout, Precision], ...] = (
        ("the release's layout, float32", "contiguous", "float32"),
        ("channels last, float32", "channels_last", "float32"),
        ("channels last, bfloat16", "channels_last", "bfloat16"),
    )
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {FLOP / 1e12} TFLOP a step"
    )
    print(
        f"{'':32}{'s/step':>9}{'ratio':>8}{'networks s':>12}{'rest':>8}{'TFLOP/s':>9}{'peak GB':>9}"
    )
    first = None
    for name, layout, precision in ways:
        words = ["--layout", layout, "--precision", precision]
        words += ["--iterations", str(arguments.iterations)]
        done = subprocess.run(
            [sys.executable, __file__, *words], check=True, capture_output=True, text=True
        )
        result = json.loads(done.stdout.splitlines()[-1])
        step, own = result["step"], result["networks"]
        first = first or step
        print(
            f"{name:32}{step:9.2f}{step / first:8.2f}{own:12.2f}{1 - own / step:8.1%}"
            f"{FLOP / step / 1e12:9.2f}{result['peak'] / 1e9:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
