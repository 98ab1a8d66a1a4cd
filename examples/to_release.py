"""A model of a run as a checkpoint that the authors' release loads.

    python examples/to_release.py --weights runs/gta5_to_cityscapes/distill_2/model.pt --output stage3.pkl

The other direction needs no program: evaluate.py and `[given]` take a `.pkl` as it is.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import Tensor

from cpsl import Segmenter
from cpsl.engine import load
from cpsl.models import save_release_checkpoint
from stage import friendly_errors


@dataclass(frozen=True)
class Arguments:
    """Writes a model of a run as a checkpoint that the authors' release loads."""

    weights: Path
    """A `model.pt` of a run, with the backbone resnet101 and 256 features."""
    output: Path
    """The `.pkl` to write."""
    clustering: Path | None = None
    """A `clustering.pt` of self-labeling, whose moving average of the prototypes goes with the model."""


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, description=__doc__)
    with friendly_errors():
        model = Segmenter.load(arguments.weights).model
        prototypes = None
        if arguments.clustering:
            prototypes = load(arguments.clustering).get("ema_prototypes")
            if not isinstance(prototypes, Tensor):
                raise ValueError(
                    f"{arguments.clustering} is no clustering.pt: no ema_prototypes in it"
                )
        save_release_checkpoint(arguments.output, model, prototypes_ema=prototypes)
        print(f"{arguments.output} is written")
