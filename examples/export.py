"""A model for other programs: ONNX, or torch's own exported program.

    python examples/export.py --weights runs/demo/distill_2/model.pt --output model.onnx
    python examples/export.py --weights runs/demo/distill_2/model.pt --output model.pt2

Input `image`: (B, 3, H, W) uint8 RGB. Output `logits`: (B, K, H, W) float32, as large as the image; the
largest is the class. Colours are normalised inside. B, H and W are free, H and W from 16 pixels up. Images
are to be resized to `full_size` before, which the file names beside `classes` and `palette`, all as JSON.

A file is only left if it computes what the model does.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from cpsl import Segmenter
from cpsl.files import write_atomically
from cpsl.models import DeepLabV2
from stage import friendly_errors

# Of the largest logit: far above the rounding of float32 in another order, far below what moves a border.
TOLERANCE = 1e-3
FREE = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class Arguments:
    """Writes a model as a file that runs without this package."""

    weights: Path
    """A `model.pt` of a run, or a `.pkl` of the authors' release."""
    output: Path
    """The file to write: `.onnx`, or `.pt2` for torch.export.load."""
    size: tuple[int, int] | None = None
    """Height and width at which an image is seen; what the model's file says if left out."""
    debug: bool = False
    """Show where in the code an error was raised."""


class Stored(nn.Module):
    """Takes images as they are stored, gives scores of their size.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: DeepLabV2) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits (B, K, H, W) float32 of images (B, 3, H, W) uint8."""
        logits = self.model(image.float() / 255).logits
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=True)


@torch.no_grad()
def export(segmenter: Segmenter, path: Path) -> None:
    """Writes a model as ONNX or as an exported program, if the file then computes the same.

    Args:
        segmenter: On the CPU.
        path: Ends in `.onnx` or `.pt2`.

    Raises:
        RuntimeError: What writes ONNX is not installed.
        ValueError: The suffix is another, the size is not known, or the outputs differ.
    """
    writers = {".onnx": _write_onnx, ".pt2": _write_program}
    if path.suffix not in writers:
        raise ValueError(f"the output must end in {' or '.join(writers)}, got {path}")
    if segmenter.full_size is None:
        raise ValueError("the model's file does not say at which size it sees images: give --size")
    module = Stored(segmenter.model)
    height, width = segmenter.full_size
    notes = {
        "classes": json.dumps(segmenter.classes.names),
        "palette": json.dumps(segmenter.classes.palette),
        "full_size": json.dumps(segmenter.full_size),
    }

    def write(partial: Path) -> None:
        # An example of one image would be taken for a program of one image.
        run = writers[path.suffix](module, _images(2, height, width), partial, notes)
        _compare(module, run, _images(1, height, width), path)
        # Odd numbers show where a grid is rounded another way.
        _compare(module, run, _images(2, height // 2 + 17, width // 2 + 18), path)

    write_atomically(path, write)


Run = Callable[[Tensor], Tensor]


def _write_program(module: Stored, example: Tensor, path: Path, notes: dict[str, str]) -> Run:
    free = dict.fromkeys(FREE, torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (example,), dynamic_shapes=(free,))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=notes)
    with path.open("rb") as file:
        run: Run = torch.export.load(file).module()
    return run


def _write_onnx(module: Stored, example: Tensor, path: Path, notes: dict[str, str]) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter is written in it)
    except ImportError as error:
        raise RuntimeError(
            f"ONNX needs {error.name}, which is not installed: pip install 'cpsl[export]', or write a .pt2"
        ) from None
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=(FREE,),
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(notes)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def _images(count: int, height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=random, dtype=torch.uint8)


def _compare(module: Stored, run: Run, images: Tensor, path: Path) -> None:
    wanted, got = module(images), run(images)
    if got.shape != wanted.shape:
        raise ValueError(
            f"{path} is not written: of images {tuple(images.shape)} its file makes {tuple(got.shape)}, the "
            f"model {tuple(wanted.shape)}"
        )
    difference, largest = float((got - wanted).abs().max()), float(wanted.abs().max())
    changed = int((got.argmax(dim=1) != wanted.argmax(dim=1)).sum())
    said = (
        f"images {tuple(images.shape)}: logits up to {largest:.3g} differ by at most {difference:.2g}, "
        f"{changed} of {wanted[:, 0].numel()} pixels are of another class"
    )
    if not difference <= TOLERANCE * largest:  # NaN is no smaller either
        raise ValueError(f"{path} is not written: its file computes something else; {said}")
    print(said)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, description=__doc__, config=(tyro.conf.FlagConversionOff,))
    with friendly_errors(arguments.debug):
        export(Segmenter.load(arguments.weights, full_size=arguments.size), arguments.output)
        print(f"{arguments.output} is written")
