"""`cpsl export`: a model for other programs, as ONNX, torch.export or a checkpoint of the authors' code.

Input `image`: (B, 3, H, W) uint8 RGB, H and W at least 16. Output `logits`: (B, K, H, W) float32. The
program normalizes colors. Resize images to `full_size` first; the file stores `full_size`, `classes`,
`palette` and `value_range` as JSON: the stored values of black and white of gray images of more than 8 bits,
null if their bits are scaled as a whole. Of some networks, only programs of fixed H and W, or of a fixed B
too, can be made.

The file is kept only if its outputs agree with the model's.
"""

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor, nn

from cpsl import Segmenter
from cpsl._internal.files import write_atomically
from cpsl.app.command_line import parse_arguments
from cpsl.app.errors import friendly_errors
from cpsl.app.networks import builder_option
from cpsl.app.ranges import Location, Size
from cpsl.app.settings import UsageError
from cpsl.app.usage import list_next, python, require_one_process
from cpsl.authors import save_release_checkpoint
from cpsl.models import DeepLabV2, check_network, resize, segment
from cpsl.training import load

TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit: well above the rounding of float32."""

DYNAMIC: tuple[dict[int, str], ...] = ({0: "batch", 2: "height", 3: "width"}, {0: "batch"}, {})
"""Dimensions of the input that may vary, in order of preference."""

NOTES = ("classes", "palette", "full_size", "value_range")
"""What is stored with a program, as JSON."""

Run = Callable[[Tensor], Tensor]
"""An exported program."""


@dataclass(frozen=True)
class Arguments:
    """Writes a model as a file that runs without this package."""

    weights: Location
    """A `model.pt` of a run, or a `.pkl` of the authors."""
    output: Location
    """File to write: .onnx, .pt2 for torch.export.load, or .pkl for the authors' code."""
    size: Size | None = None
    """Height and width of the input in pixels; those in the model's file if omitted."""
    clustering: Location | None = None
    """A `clustering.pt` of self-labeling; a .pkl then includes its prototypes."""
    network: str | None = None
    """MODULE:FUNCTION that builds the network, if the file contains a custom network."""
    debug: bool = False
    """Show the traceback of errors."""


class ImageToLogits(nn.Module):
    """Segments uint8 images, at their size, with a model in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits (B, K, H, W) float32 of images (B, 3, H, W) uint8."""
        logits = segment(self.model, image.float() / 255).logits
        return resize(logits, image.shape[2:], check_network(self.model).align_corners)


@torch.no_grad()
def export(segmenter: Segmenter, path: Path) -> None:
    """Writes a model on the CPU as `.onnx` or `.pt2`, and compares its outputs with those of the model."""
    writers = {".onnx": _write_onnx, ".pt2": _write_program}
    if path.suffix not in writers:
        raise ValueError(f"the output must end in {' or '.join(writers)}, got {path}")
    if path.suffix == ".onnx":
        for package in ("onnxruntime", "onnxscript"):
            if find_spec(package) is None:
                raise RuntimeError(f"ONNX needs {package}: pip install 'cpsl[export]', or write a .pt2")
    if segmenter.full_size is None:
        raise ValueError("the model's file does not store the size of its images: add --size")
    module = ImageToLogits(segmenter.model)
    height, width = segmenter.full_size
    values = (segmenter.classes.names, segmenter.classes.palette, segmenter.full_size, segmenter.value_range)
    notes = {name: json.dumps(value) for name, value in zip(NOTES, values, strict=True)}

    def write(partial: Path) -> None:
        for dynamic in DYNAMIC:
            # With an example of one image, torch.export would fix the batch size at one.
            example = _images(2 if dynamic else 1, height, width)
            checked = [_images(1, height, width)]
            if 2 in dynamic:  # odd sizes, since grids may be rounded differently
                checked.append(_images(2, height // 2 + 17, width // 2 + 18))
            sizes = f"variable {', '.join(dynamic.values())}" if dynamic else "fixed sizes"
            print(f"exporting with {sizes}", flush=True)
            try:
                run = writers[path.suffix](module, example, partial, notes, dynamic)
                outputs = [run(images) for images in checked]  # some refuse sizes other than the example's
                break
            except Exception as error:  # torch raises errors of many types
                if not dynamic or getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                message = str(error).partition("\n")[0][:300]
                print(f"not possible: {message}")
        for images, logits in zip(checked, outputs, strict=True):
            _compare(module, images, logits, path)

    write_atomically(path, write)


def _write_program(
    module: ImageToLogits, example: Tensor, path: Path, notes: dict[str, str], dynamic: dict[int, str]
) -> Run:
    shapes = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (example,), dynamic_shapes=(shapes,))
    with path.open("w+b") as file:
        torch.export.save(program, file, extra_files=notes)
        file.seek(0)
        run: Run = torch.export.load(file).module()
    return run


def _write_onnx(
    module: ImageToLogits, example: Tensor, path: Path, notes: dict[str, str], dynamic: dict[int, str]
) -> Run:
    import onnxruntime

    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=(dynamic,),
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


def _compare(module: ImageToLogits, images: Tensor, logits: Tensor, path: Path) -> None:
    """Raises ValueError unless a program's logits of images agree with the model's."""
    expected = module(images)
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
    require_one_process("export")
    _check_combination(options)
    with friendly_errors(options.debug):
        build = builder_option(options.network)
        segmenter = Segmenter.load(options.weights, full_size=options.size, build=build)
        if options.output.suffix == ".pkl":
            prototypes = load(options.clustering).get("ema_prototypes") if options.clustering else None
            if options.clustering and not isinstance(prototypes, Tensor):
                raise ValueError(f"{options.clustering} is not a clustering.pt: it has no ema_prototypes")
            if not isinstance(segmenter.model, DeepLabV2):
                raise ValueError(
                    f"the authors' code has no network but DeepLabV2: {options.weights} cannot become a .pkl"
                )
            save_release_checkpoint(options.output, segmenter.model, prototypes_ema=prototypes)
        else:
            export(segmenter, options.output)
        print(f"wrote {options.output}")
        if show := _show(options.output):
            print(list_next({"show its classes, colors and size": show}))


def _check_combination(options: Arguments) -> None:
    """Raises UsageError if the format of the output is not known, or has no use for an option."""
    suffix = options.output.suffix
    if suffix not in (".onnx", ".pt2", ".pkl"):
        raise UsageError(f"command line: --output: expected a .onnx, .pt2 or .pkl, got {options.output}")
    if options.output.is_dir():
        raise UsageError(f"command line: --output: {options.output} is a folder, expected a file")
    if options.clustering and suffix != ".pkl":
        raise UsageError(f"command line: --clustering: a {suffix} has no prototypes, only a .pkl has")
    if options.size and suffix == ".pkl":
        raise UsageError("command line: --size: a .pkl stores no size, only a .onnx and a .pt2 do")


def _show(path: Path) -> str:
    """Returns a command that prints what is stored with an exported model, without this package."""
    readers = {
        ".onnx": f"import onnxruntime; session = onnxruntime.InferenceSession({str(path)!r}); "
        "print(session.get_modelmeta().custom_metadata_map)",
        ".pt2": f"import torch; notes = dict.fromkeys({NOTES}, ''); "
        f"torch.export.load({str(path)!r}, extra_files=notes); print(notes)",
    }
    code = readers.get(path.suffix, "")
    quoted = quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f"{python()} -c {quoted}" if code else ""
