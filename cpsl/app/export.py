"""`cpsl export`: a model for other programs, as ONNX, torch.export or a checkpoint of the authors' code.

Input `image`: (B, 3, H, W) uint8 RGB, H and W at least 16. Output `logits`: (B, K, H, W) float32. The
program normalizes colors. Resize images to `full_size` first; the file stores `full_size`, `classes` and
`palette` as JSON.

The file is kept only if its outputs agree with the model's.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl import Segmenter
from cpsl._internal.files import write_atomically
from cpsl.app.command_line import parse_arguments
from cpsl.app.config import Size
from cpsl.app.errors import friendly_errors
from cpsl.authors import save_release_checkpoint
from cpsl.models import DeepLabV2
from cpsl.training import load

TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit: well above the rounding of float32."""

DYNAMIC = {0: "batch", 2: "height", 3: "width"}
"""Dimensions of the input that may vary."""

Run = Callable[[Tensor], Tensor]
"""An exported program."""


@dataclass(frozen=True)
class Arguments:
    """Writes a model as a file that runs without this package."""

    weights: Path
    """A `model.pt` of a run, or a `.pkl` of the authors."""
    output: Path
    """File to write: .onnx, .pt2 for torch.export.load, or .pkl for the authors' code."""
    size: Size | None = None
    """Height and width of the input in pixels; those in the model's file if omitted."""
    clustering: Path | None = None
    """A `clustering.pt` of self-labeling; a .pkl then includes its prototypes."""
    debug: bool = False
    """Show the traceback of errors."""


class ImageToLogits(nn.Module):
    """Segments uint8 images, at their size, with a model in evaluation mode."""

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
    """Writes a model on the CPU as `.onnx` or `.pt2`, and compares its outputs with those of the model."""
    writers = {".onnx": _write_onnx, ".pt2": _write_program}
    if path.suffix not in writers:
        raise ValueError(f"the output must end in {' or '.join(writers)}, got {path}")
    if segmenter.full_size is None:
        raise ValueError("the model's file does not store the size of its images: add --size")
    module = ImageToLogits(segmenter.model)
    height, width = segmenter.full_size
    notes = {
        "classes": json.dumps(segmenter.classes.names),
        "palette": json.dumps(segmenter.classes.palette),
        "full_size": json.dumps(segmenter.full_size),
    }

    def write(partial: Path) -> None:
        # With an example of one image, torch.export would fix the batch size at one.
        run = writers[path.suffix](module, _images(2, height, width), partial, notes)
        _compare(module, run, _images(1, height, width), path)
        # Odd sizes, since grids may be rounded differently.
        _compare(module, run, _images(2, height // 2 + 17, width // 2 + 18), path)

    write_atomically(path, write)


def _write_program(module: ImageToLogits, example: Tensor, path: Path, notes: dict[str, str]) -> Run:
    dynamic = dict.fromkeys(DYNAMIC, torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (example,), dynamic_shapes=(dynamic,))
    with path.open("w+b") as file:
        torch.export.save(program, file, extra_files=notes)
        file.seek(0)
        run: Run = torch.export.load(file).module()
    return run


def _write_onnx(module: ImageToLogits, example: Tensor, path: Path, notes: dict[str, str]) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter is written in it)
    except ImportError as error:
        raise RuntimeError(f"ONNX needs {error.name}: pip install 'cpsl[export]', or write a .pt2") from None
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=(DYNAMIC,),
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


def _compare(module: ImageToLogits, run: Run, images: Tensor, path: Path) -> None:
    expected, logits = module(images), run(images)
    if logits.shape != expected.shape:
        raise ValueError(
            f"{path} is not written: its output for images {tuple(images.shape)} is {tuple(logits.shape)}, "
            f"the model's is {tuple(expected.shape)}"
        )
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    changed = int((logits.argmax(dim=1) != expected.argmax(dim=1)).sum())
    summary = (
        f"images {tuple(images.shape)}: logits up to {largest:.3g} differ by at most {difference:.2g}, "
        f"{changed} of {expected[:, 0].numel()} pixels change their class"
    )
    if not difference <= TOLERANCE * largest:  # true of NaN as well
        raise ValueError(f"{path} is not written: its outputs differ from the model's; {summary}")
    print(summary)


def main(arguments: list[str]) -> None:
    """Runs `cpsl export`."""
    options = parse_arguments(Arguments, arguments, "export")
    with friendly_errors(options.debug):
        segmenter = Segmenter.load(options.weights, full_size=options.size)
        if options.output.suffix == ".pkl":
            prototypes = load(options.clustering).get("ema_prototypes") if options.clustering else None
            if options.clustering and not isinstance(prototypes, Tensor):
                raise ValueError(f"{options.clustering} is not a clustering.pt: it has no ema_prototypes")
            save_release_checkpoint(options.output, segmenter.model, prototypes_ema=prototypes)
        else:
            export(segmenter, options.output)
        print(f"wrote {options.output}")
