"""A full stage-1 step, 1 image, 448x256 crop, 1024x512 whole, ResNet-101: the trainer itself, in three ways.

    python benchmarks/step.py

Each way runs in a process of its own, one after the other, so that its peak memory is its own. "The release's
layout" is the same step with channels outermost. The networks' own passes and the optimiser are timed apart;
"rest" is all else: losses, geometry, rectification, clustering. The bound is the time in which the machine
does the networks' operations at the pace of its best convolution or matrix product.
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
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import networks  # noqa: E402
import self_label  # noqa: E402
from config import Config, parse  # noqa: E402
from cpsl.data import SourceBatch, TargetBatch  # noqa: E402
from cpsl.engine import (  # noqa: E402
    Precision,
    Process,
    TrainingLoop,
    autocast,
    save,
    start_process,
)
from cpsl.geometry import View  # noqa: E402
from cpsl.models import DeepLabV2, ExponentialMovingAverage  # noqa: E402
from machine import Timing, measure  # noqa: E402
from networks import build_model, build_optimization, save_model, to_unit  # noqa: E402
from table import HEAD, Row, line  # noqa: E402

K, CROP, FULL = 19, (256, 448), (512, 1024)

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
    """Trains some iterations; returns seconds of a step and its parts, bound, operations, peak bytes."""
    source, target = batches()

    def same(batch: Any) -> Any:
        def forever(*_: Any) -> Iterator[Any]:
            return repeat(batch)

        return forever

    # The trainer runs as it is; only its images are these instead of files.
    setattr(self_label, "source_batches", same(source))  # noqa: B010
    setattr(self_label, "target_batches", same(target))  # noqa: B010
    loops: list[TrainingLoop] = []

    def remembered(*words: Any, **options: Any) -> TrainingLoop:
        loops.append(TrainingLoop(*words, **options))
        return loops[-1]

    setattr(self_label, "TrainingLoop", remembered)  # noqa: B010
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
        split = parts(config, process, source, target)
        pace = best_pace(arguments.precision, process.device)
    operations = count_operations()
    return {
        "step": cost.seconds_per_iteration,
        "fastest": min(list(loops[0]._durations)[1:]),
        "slowest": max(list(loops[0]._durations)[1:]),
        "peak": float(cost.peak_memory),
        "operations": operations,
        "bound": operations / pace,
        **split,
    }


def parts(
    config: Config, process: Process, source: SourceBatch, target: TargetBatch
) -> dict[str, float]:
    """Returns the seconds of the parts of a step that can be run alone."""
    model = build_model(config, "random").to(process.device).train()
    teacher = ExponentialMovingAverage(model)
    optimization = build_optimization(config, config.self_label, model)
    source, target = source.to(process.device), target.to(process.device)

    def learn() -> None:
        with autocast(process.device, config.precision):
            output = model(to_unit(source.image))
        (output.logits.float().mean() + output.features.float().mean()).backward()

    def teach() -> None:
        with torch.no_grad(), autocast(process.device, config.precision):
            teacher.module(to_unit(target.whole))

    def move() -> None:
        optimization.optimizer.step()
        teacher.update(model)

    one = measure(learn, repeats=3, warm_up=1).median
    return {
        "source": one,
        "student": 2 * one,
        "teacher": measure(teach, repeats=3, warm_up=1).median,
        "optimiser": measure(move, repeats=3, warm_up=1).median,
    }


def count_operations() -> float:
    """Returns a step's operations: three passes of the student, one of the teacher."""
    with torch.device("meta"):
        model = DeepLabV2(K)
        crop, full = torch.zeros(1, 3, *CROP), torch.zeros(1, 3, *FULL)
        with FlopCounterMode(display=False) as student:
            output = model(crop)
            (output.logits.mean() + output.features.mean()).backward()
        with FlopCounterMode(display=False) as teacher, torch.no_grad():
            model(full)
    return float(3 * student.get_total_flops() + teacher.get_total_flops())


def best_pace(precision: Precision, device: torch.device) -> float:
    """Returns operations a second of the machine's best convolution or matrix product."""
    dtype = getattr(torch, precision)
    a = torch.rand(2048, 2048, device=device, dtype=dtype)
    image = torch.rand(1, 256, 33, 57, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3, device=device, dtype=dtype)
    weight = weight.to(memory_format=torch.channels_last)
    product = 2 * 2048**3 / measure(lambda: a @ a).low
    convolve = measure(lambda: torch.conv2d(image, weight, padding=2, dilation=2)).low
    return max(product, 2 * 256 * 256 * 9 * 33 * 57 / convolve)


WAYS: tuple[tuple[str, Layout, Precision], ...] = (
    ("full step, the release's layout, float32", "contiguous", "float32"),
    ("full step, channels last, float32", "channels_last", "float32"),
    ("full step, channels last, bfloat16", "channels_last", "bfloat16"),
)
AIMS: dict[str, float] = {"float32": 0.65, "bfloat16": 0.4}
"""Time of a step, as a share of that in the release's layout."""


def in_its_own_process(arguments: Arguments) -> dict[str, float]:
    """Returns what `run` measures in a new process, whose peak memory is then its own."""
    words = [f"--layout={arguments.layout}", f"--precision={arguments.precision}"]
    words += [f"--iterations={arguments.iterations}"]
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows(iterations: int) -> Iterator[tuple[Row, str]]:
    """Yields a row for each way, and a line about the parts of its step."""
    first = None
    for name, layout, precision in WAYS:
        result = in_its_own_process(Arguments(layout, precision, iterations))
        step = result["step"]
        timing = Timing(step, result["fastest"], result["slowest"], iterations - 1)
        if first is None:
            row = Row(name, timing, "19000-28000", "", result["bound"])
        else:
            ratio, aim = step / first, AIMS[precision]
            reach = f"{ratio:.2f} of it ({aim})"
            row = Row(name, timing, "", reach, result["bound"], ratio <= aim)
        first = first or step
        split = [result[part] for part in ("source", "teacher", "student", "optimiser")]
        cells = [f"{seconds / step:10.1%}" for seconds in (*split, step - sum(split))]
        cells.append(f"{result['operations'] / step / 1e12:10.2f}{result['peak'] / 1e9:10.2f}")
        yield row, f"{name:44}" + "".join(cells)


PARTS = ("source", "teacher", "student", "optimiser", "rest", "TFLOP/s", "peak GB")
PARTS_HEAD = f"{'parts of the step; release: peak 4.8 GB':44}" + "".join(f"{p:>10}" for p in PARTS)


def main(arguments: Arguments) -> None:
    """Measures one way and prints it as JSON, or all three as tables."""
    if arguments.layout is not None:
        print(json.dumps(run(arguments)))
        return
    print(HEAD)
    splits = []
    for row, split in rows(arguments.iterations):
        print(line(row), flush=True)
        splits.append(split)
    print("\n".join(["", PARTS_HEAD, *splits]))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
