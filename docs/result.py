"""Draws the picture of the README from a finished demo: python docs/result.py [RUN]."""

import sys
from pathlib import Path

import torch
from PIL import Image

from cpsl.data import CITYSCAPES_19, Cityscapes, HardLabelStore
from cpsl.visualize import colorize, panel

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
streets = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/streets/real")
dataset = Cityscapes(streets, "val")
before, after = (HardLabelStore(run / stage / "predictions") for stage in ("source_only", "online"))

pictures: list[torch.Tensor] = []
for index in (3, 7, 12):
    sample = dataset[index]
    assert sample.label is not None
    labels = (sample.label, before.read(sample.name), after.read(sample.name))
    pictures += [sample.image, *(colorize(label, CITYSCAPES_19.palette) for label in labels)]
drawn = panel(pictures, columns=4, gap=6)
Image.fromarray(drawn.permute(1, 2, 0).numpy()).quantize(128).save(Path(__file__).parent / "result.png")
