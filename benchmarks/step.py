"""A full step of self-labeling: one image, 448x256 crop, 1024x512 whole image, ResNet-101.

    python benchmarks/step.py

Each variant runs in its own process, so that its peak memory is its own. The passes of the networks and the
optimizer are timed apart; "rest" are losses, geometry, rectification and clustering. The bound is the time of
the networks' operations at the rate of the machine's best convolution or matrix product.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cpsl import ClassBalancedPrototypeClustering
from cpsl.methods import SelfLabeling
from cpsl.models import DeepLabV2, ExponentialMovingAverage
from cpsl.testing.training import training_batches
from cpsl.training import Optimization, Precision, autocast
from cpsl.training.cost import peak_memory
from measure import HEAD, Row, Timing, measure

K, D, CROP, FULL = 19, 256, (256, 448), (512, 1024)
ITERATIONS = 4


def run(layout: torch.memory_format, precision: Precision) -> tuple[Timing, list[float], int, float]:
    """Measures the time of a step, seconds of its parts, peak memory in bytes and the machine's best rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, target = training_batches(K, images=1, crop=CROP, full_size=FULL, device=device)
    network = DeepLabV2(K).to(device).to(memory_format=layout).train()
    teacher = ExponentialMovingAverage(network)
    clustering = ClassBalancedPrototypeClustering(K, D).to(device)
    clustering.initialize(torch.randn(K, D), torch.full((K,), 1 / K))
    method = SelfLabeling(network, teacher, clustering)
    parameters = [*network.parameters(), clustering.prototypes]
    optimizer = torch.optim.SGD(parameters, 2.5e-4, 0.9, weight_decay=5e-4, fused=True)
    optimization = Optimization([optimizer], ITERATIONS, precision=precision)

    def step() -> None:
        with autocast(device, precision):
            for loss in method.losses(source, target):
                optimization.backward(loss)
        method.update(optimization.step())

    def pass_of_student() -> None:
        with autocast(device, precision):
            output = network(source.image / 255)
        (output.logits.float().mean() + output.features.float().mean()).backward()

    def pass_of_teacher() -> None:
        with torch.no_grad(), autocast(device, precision):
            teacher.module(target.whole / 255)

    def update() -> None:
        optimizer.step()
        teacher.update(network)

    steps = measure(step, repeats=ITERATIONS - 1, warm_up=1)
    peak = peak_memory(device)
    works = (pass_of_student, pass_of_teacher, update)
    student, teaching, updating = (measure(work, repeats=3, warm_up=1).median for work in works)
    return steps, [student, teaching, 2 * student, updating], peak, best_rate(precision, device)


def count_operations() -> float:
    """Returns the operations of a step: three passes of the student, one of the teacher."""
    with torch.device("meta"):
        model = DeepLabV2(K)
        crop, full = torch.zeros(1, 3, *CROP), torch.zeros(1, 3, *FULL)
        with FlopCounterMode(display=False) as student:
            output = model(crop)
            (output.logits.mean() + output.features.mean()).backward()
        with FlopCounterMode(display=False) as teacher, torch.no_grad():
            model(full)
    return float(3 * student.get_total_flops() + teacher.get_total_flops())


def best_rate(precision: Precision, device: torch.device) -> float:
    """Returns operations per second of the machine's best convolution or matrix product."""
    kind: Any = {"device": device, "dtype": getattr(torch, precision)}
    a = torch.rand(2048, 2048, **kind)
    image = torch.rand(1, 256, 33, 57, **kind).to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3, **kind).to(memory_format=torch.channels_last)
    product = 2 * 2048**3 / measure(lambda: a @ a).low
    convolution = measure(lambda: torch.conv2d(image, weight, padding=2, dilation=2)).low
    return max(product, 2 * 256 * 256 * 9 * 33 * 57 / convolution)


VARIANTS: tuple[tuple[str, torch.memory_format, Precision], ...] = (
    ("full step, the authors' layout, float32", torch.contiguous_format, "float32"),
    ("full step, channels last, float32", torch.channels_last, "float32"),
    ("full step, channels last, bfloat16", torch.channels_last, "bfloat16"),
)
TARGETS: dict[str, float] = {"float32": 0.65, "bfloat16": 0.4}
"""Time of a step relative to the first variant."""


def rows() -> Iterator[tuple[Row, str]]:
    """Yields a row per variant, and a line with the shares of the parts of its step."""
    first, operations = None, count_operations()
    for name, layout, precision in VARIANTS:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            timing, parts, peak, rate = process.submit(run, layout, precision).result()
        step = timing.median
        authors, target, note = "19000-28000", None, ""
        if first is not None:
            authors, target = "", 1e3 * first * TARGETS[precision]
            note = f"{step / first:.2f} of it ({TARGETS[precision]})"
        first = first or step
        row = Row(name, timing, authors, target, operations / rate, note)
        cells = [f"{seconds / step:10.1%}" for seconds in (*parts, step - sum(parts))]
        cells.append(f"{operations / step / 1e12:10.2f}{peak / 1e9:10.2f}")
        yield row, f"{name:44}" + "".join(cells)


PARTS = ("source", "teacher", "student", "optimizer", "rest", "TFLOP/s", "peak GB")


def main() -> None:
    """Prints the steps, then their parts."""
    print(HEAD)
    lines = [f"{'parts of the step; authors: peak 4.8 GB':44}" + "".join(f"{part:>10}" for part in PARTS)]
    for row, line in rows():
        print(row, flush=True)
        lines.append(line)
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
