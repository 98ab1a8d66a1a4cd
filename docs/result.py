"""Draws the picture of the README from a run of the quality benchmark.

Example:
    python benchmarks/quality --shifts streets --rows ours --seeds 0
    python docs/result.py
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from cpsl.data import CITYSCAPES_19, Cityscapes, HardLabelStore
from cpsl.visualize import colorize, panel

TITLES = ("Target image", "Ground truth", "Source only", "Adapted")
HEADER = 40

IMAGES = (24, 26, 28)
"""The three images in which most pixels of rare classes become right."""

dataset = Cityscapes("runs/quality/data/streets/real", "val")
run = Path("runs/quality/streets/ours/seed_0")
before, after = (HardLabelStore(run / stage / "predictions") for stage in ("source_only", "online"))

pictures: list[torch.Tensor] = []
for index in IMAGES:
    sample = dataset[index]
    assert sample.label is not None
    labels = (sample.label, before.read(sample.name), after.read(sample.name))
    pictures += [sample.image, *(colorize(label, CITYSCAPES_19.palette) for label in labels)]
drawn = Image.fromarray(panel(pictures, columns=len(TITLES), gap=6).permute(1, 2, 0).numpy())

titled = Image.new("RGB", (drawn.width, drawn.height + HEADER), "white")
titled.paste(drawn, (0, HEADER))
draw, font = ImageDraw.Draw(titled), ImageFont.load_default(size=24)
for column, title in enumerate(TITLES):
    center = (column + 0.5) * drawn.width / len(TITLES)
    draw.text((center, HEADER / 2), title, "black", font, anchor="mm")
titled.quantize(128).save(Path(__file__).parent / "result.png")
