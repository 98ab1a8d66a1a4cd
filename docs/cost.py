"""Estimates the hours of the recipes on GPUs from their arithmetic, for docs/recipes.md. Nothing is measured.

    python docs/cost.py

    hours = operations per step x steps / (peak of the GPU x utilization) / 3600

The operations of a network are counted on a device without memory. A step is a number of passes; a backward
pass costs two forward ones. Data loading and evaluation are not part of it.
"""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from cpsl.app.command_line import read_layers
from cpsl.app.config import Config
from cpsl.app.networks import build_model
from cpsl.app.stages import trained_stages
from cpsl.models import SegmentationNetwork, build_network, segment
from cpsl.training.log import text_table

PEAKS = {
    "V100 SXM2": 125e12,  # data sheet of the V100
    "RTX 4090": 165.2e12,  # whitepaper of the Ada GPU architecture, appendix A
    "A100": 312e12,  # data sheet of the A100
    "H100 SXM": 989.5e12,  # data sheet of the H100: 1,979 with sparsity, which doubles the rate
}
"""Operations per second of dense matrix products in half precision with float32 sums, by NVIDIA's documents.

Compared with quotations of these documents, for V100, A100 and H100 those in PyTorch Lightning
(`lightning.fabric.utilities.throughput`), not with the documents themselves.
"""

UTILIZATION = (0.1, 0.4)
"""Shares of the peak that a training reaches, as assumed: the hours are between those of both."""

RECIPES = ("gta5_to_cityscapes", "", "online_mit_b5", "online_dinov2")
"""The recipes of the table; "" are the defaults of all settings."""

MIT_B5 = {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
"""Sizes of nvidia/mit-b5, so that nothing has to be downloaded."""


class Passes(NamedTuple):
    """Forward passes of a step per image of the batch; a backward pass counts two."""

    crop: int
    whole: int = 0


def passes(config: Config, stage: str) -> Passes:
    """Returns the passes of a stage's training step."""
    if stage == "self_label":  # source, strong view and mixed crop; the teacher sees the whole image
        return Passes(9, 1)
    if stage.startswith("distill"):  # source and strong view; the teacher sees the strong view
        return Passes(7)
    if stage == "online":  # source, mixed image, masked image; the teacher sees the crop
        return Passes(10 if config.online.masked_weight else 7)
    adapts = config.settings_of(stage).adversarial_weight > 0  # type: ignore[union-attr]
    return Passes(6 if adapts else 3)


@torch.inference_mode()
def operations(network: SegmentationNetwork, size: tuple[int, int]) -> int:
    """Counts the operations of a forward pass of an image (H, W); a multiply-add counts two."""
    image = torch.zeros(1, 3, *size, device="meta")
    with FlopCounterMode(display=False) as counter:
        segment(network, image)
    return int(counter.get_total_flops())


def step_operations(network: SegmentationNetwork, config: Config, stage: str) -> int:
    """Returns the operations of a training step."""
    needed, views = passes(config, stage), config.views
    per_image = needed.crop * operations(network, views.crop)
    if needed.whole:
        per_image += needed.whole * operations(network, views.full_size)
    return per_image * config.settings_of(stage).batch_size


def hours(operations: float, peak: float) -> str:
    """Returns the hours at both utilizations, such as "6 to 24"."""
    most, least = (operations / (peak * share) / 3600 for share in UTILIZATION)
    return " to ".join(f"{value:.0f}" if value > 9.5 else f"{value:.1f}" for value in (least, most))


def read(name: str) -> tuple[Config, SegmentationNetwork]:
    """Returns the settings of a recipe, and its network on a device without memory."""
    config = read_layers([name] if name else [])
    if config.model.network == "transformers:nvidia/mit-b5":
        network = build_network("transformers:segformer", 19, weights="random", **MIT_B5)
    else:
        with torch.device("meta"):
            network = build_model(config, "random")
    return config, network.eval().to("meta")


def rows(name: str) -> list[tuple[str, ...]]:
    """Returns the rows of a recipe: one for each stage, then the total."""
    config, network = read(name)
    table, total = [], 0.0
    for stage in trained_stages(config):
        steps, per_step = config.settings_of(stage).iterations, step_operations(network, config, stage)
        total += steps * per_step
        of_gpus = (hours(steps * per_step, peak) for peak in PEAKS.values())
        table.append((name or "no recipe", stage, f"{steps:,}", f"{per_step / 1e12:.1f}", *of_gpus))
    of_gpus = (hours(total, peak) for peak in PEAKS.values())
    return [*table, (name or "no recipe", "total", "", "", *of_gpus)]


def main() -> None:
    """Prints the table."""
    head = ("recipe", "stage", "steps", "TFLOP per step", *(f"{gpu}, h" for gpu in PEAKS))
    print(text_table([head, *(row for name in RECIPES for row in rows(name))]))


if __name__ == "__main__":
    main()
