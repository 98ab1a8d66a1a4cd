"""`cpsl predict`: label maps and pictures of images, folders of images and videos.

An interrupted run resumes with the same command. In the output, `prediction.json` describes the results,
`legend.png` shows the colors of the classes, and `inputs.jsonl` has size and time of the predicted files:
those that were overwritten are predicted again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote
from typing import Any

from torch import Tensor

from cpsl import Segmenter
from cpsl._internal.files import in_full, is_passing
from cpsl.app.command_line import parse_arguments
from cpsl.app.errors import describe_changes, describe_error, friendly_errors
from cpsl.app.networks import builder_option
from cpsl.app.prediction_files import FRAME, Inputs, Kind, Output, UnreadableError, frame_key
from cpsl.app.ranges import Location, Positive, Size, ValueRange
from cpsl.app.usage import list_next, program, require_one_process
from cpsl.app.video import SUFFIXES as VIDEOS
from cpsl.app.video import read_frames
from cpsl.data.appearance import Appearance, appearance_of, value_range_of
from cpsl.data.files import describe_skipped, find_files
from cpsl.data.legends import LEGEND, is_legend
from cpsl.data.names import IMAGE_SUFFIXES
from cpsl.data.pictures import Range, read_picture
from cpsl.inference import Prediction
from cpsl.training import Precision, Process, autocast, progress, start_process
from cpsl.training.checkpoints import exclusive_run, write_text


@dataclass(frozen=True)
class Arguments:
    """Segments images and videos."""

    weights: Location
    """A `model.pt` of a run, or a `.pkl` of the authors."""
    input: Location
    """An image, a video, or a folder of them, searched recursively."""
    output: Location
    """Folder of the results, which have the relative paths of their images."""
    write: tuple[Kind, ...] = ("labels", "overlay")
    """Class indices, class colors, colors over the image or video, 255 times the probability of the class."""
    flip: bool = False
    """Average over the image and its mirror image."""
    scales: tuple[Positive, ...] = (1.0,)
    """Average over these multiples of the size."""
    size: Size | None = None
    """Height and width of the network's input in pixels; those in the model's file if omitted."""
    value_range: ValueRange | None = None
    """Stored values of black and white of gray images of more than 8 bits; the model's if omitted."""
    network: str | None = None
    """MODULE:FUNCTION that builds the network, if the file contains a custom network."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "float32"
    """Precision of the network; the half precisions are mixed precision."""
    debug: bool = False
    """Show the traceback of errors."""


def predict_all(arguments: Arguments, process: Process) -> list[str]:
    """Segments all images and frames that have no result yet; returns messages about unreadable files.

    Raises:
        BlockingIOError: Another process writes into the output.
        FileNotFoundError: There is no such input, or nothing in it.
        ValueError: Inputs would share a result, the output is inside of the input, or it has other results;
            or the scores of an image are not finite.
    """
    build = builder_option(arguments.network)
    is_video = arguments.input.suffix.lower() in VIDEOS
    found, skipped = {arguments.input.stem + "/" * is_video: arguments.input}, dict[Path, str]()
    if arguments.input.is_dir():
        suffixes = IMAGE_SUFFIXES + VIDEOS
        found = find_files(arguments.input, suffixes, "images or videos", containers=VIDEOS, skipped=skipped)
    elif not arguments.input.exists():
        raise FileNotFoundError(f"there is no image, video or folder {in_full(arguments.input)}")
    if arguments.output.resolve().is_relative_to(arguments.input.resolve()):
        raise ValueError(
            f"{arguments.output} is inside {arguments.input}, where results would be read as images"
        )
    _check_frames(found)
    segmenter = Segmenter.load(
        arguments.weights,
        full_size=arguments.size,
        value_range=arguments.value_range,
        device=process.device,
        build=build,
    )
    output = Output(arguments.output, arguments.write, segmenter)
    output.refuse_foreign()
    with exclusive_run(arguments.output):
        _describe(arguments, segmenter, output)
        return _predict(found, skipped, segmenter, output, arguments, process)


def _predict(
    found: Mapping[str, Path],
    skipped: Mapping[Path, str],
    segmenter: Segmenter,
    output: Output,
    arguments: Arguments,
    process: Process,
) -> list[str]:
    """Segments what has no result yet, and prints a summary; returns messages about unreadable files."""
    inputs = Inputs(arguments.output)
    counts = Counter[str]()
    unreadable, doubts, looks = list[str](), list[str](), list[Appearance | None]()
    for name, path in progress(found.items(), "images", process, total=len(found)):
        is_video, frames, predicted = name.endswith("/"), 0, False
        try:
            if not inputs.unchanged(name, path):
                counts["changed"] += output.remove(name)
                inputs.record(name, path)
            if not is_video and name in output:
                counts["kept"] += 1
                continue
            pictures = _pictures(name, path, segmenter.value_range, looks, doubts)
            for key, image in progress(pictures, path.name, process) if is_video else pictures:
                frames += 1
                if key not in output:
                    with autocast(process.device, arguments.precision):
                        prediction = segmenter.predict(
                            image, scales=arguments.scales, flip=arguments.flip, allow_non_finite=True
                        )
                    _refuse_non_finite(path, prediction, arguments.precision)
                    output.write(key, image, prediction)
                    predicted = True
        except UnreadableError as error:
            unreadable.append(str(error))
            continue
        if frames and is_video and "overlay" in arguments.write:
            output.join(name, frames, path)
        counts["predicted" if predicted else "kept"] += 1
    output.write_legend()
    if process.is_main:
        print(_summary(counts, len(unreadable), inputs.gone(found)))
        if skipped:
            print(f"not read: {describe_skipped(skipped)}")
        for doubt in doubts:
            print(f"Warning: {doubt}")
        if proposed := value_range_of(looks, segmenter.value_range):
            print(
                f"Warning: {len(looks)} images have gray values of more than 8 bits that fill only a part of "
                f"the range they were read with, or exceed it: try --value-range {proposed[0]} {proposed[1]}"
            )
    return unreadable


def _refuse_non_finite(path: Path, prediction: Prediction, precision: Precision) -> None:
    """Raises ValueError if there are pixels without finite scores, and so without a class."""
    if wrong := int(prediction.non_finite):
        advice = "the model is damaged, or its training diverged: use another one with --weights"
        if precision != "float32":
            advice = "use --precision float32, and another --output if there are results already"
        pixels = prediction.scores[0].numel()
        raise ValueError(f"{path}: the scores of {wrong} of {pixels} pixels are not finite; {advice}")


def _summary(counts: Counter[str], unreadable: int, gone: list[str]) -> str:
    """Returns a sentence about what was predicted and what was kept.

    >>> _summary(Counter(predicted=3, kept=9, changed=1), 2, [])
    '3 predicted (1 again, since the file changed), 9 kept from before, 2 unreadable'
    """
    again = f" ({counts['changed']} again, since the file changed)" if counts["changed"] else ""
    kept = f", {counts['kept']} kept from before" if counts["kept"] else ""
    failed = f", {unreadable} unreadable" if unreadable else ""
    files = "file that is gone remain" if len(gone) == 1 else "files that are gone remain"
    remain = f"; results of {len(gone)} {files}, such as {gone[0]}" if gone else ""
    return f"{counts['predicted']} predicted{again}{kept}{failed}{remain}"


def _check_frames(found: Mapping[str, Path]) -> None:
    """Raises ValueError if a frame of a video would share its result with an image."""
    for name, path in found.items():
        folder, slash, number = name.rpartition("/")
        video = found.get(folder + slash)
        if video is not None and FRAME.fullmatch(number):
            raise ValueError(
                f"{path} and the frames of {video} would share the results {folder}/000000, ...: "
                "rename one of them, or predict them into different folders"
            )


def _pictures(
    name: str, path: Path, value_range: Range | None, looks: list[Appearance | None], doubts: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the image of a file, or the frames of a video, each with its key.

    `looks` takes the appearance of images of more than 8 bits, `doubts` messages about videos.
    """
    try:
        if name.endswith("/"):
            for index, frame in enumerate(read_frames(path, doubts)):
                yield frame_key(name, index), frame
        else:
            picture = read_picture(path, value_range)
            if picture.values is not None:
                looks.append(appearance_of(picture))
            yield name, picture.pixels
    except (OSError, ValueError, RuntimeError) as error:
        if is_passing(error):
            raise
        raise UnreadableError(describe_error(error)) from error


def _describe(arguments: Arguments, segmenter: Segmenter, output: Output) -> None:
    """Writes `prediction.json`; raises ValueError if the output has results of another model or options."""
    with arguments.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    description = {
        "classes": segmenter.classes.names,
        "palette": segmenter.classes.palette,
        "weights": str(arguments.weights),
        "sha256": digest,
        "input": str(arguments.input.resolve()),
        "size": segmenter.full_size,
        "scales": arguments.scales,
        "flip": arguments.flip,
        "value_range": segmenter.value_range,
        "precision": arguments.precision,
    }
    text = json.dumps(description, indent=1)
    path, now = output.description, json.loads(text)
    before = _read_description(path) if path.exists() else now
    title = "results of another model or other options"
    changed = describe_changes(path, title, before, now, free=("weights",))
    if changed and output.has_results():
        raise ValueError(changed)
    write_text(path, text)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        description = None
    if not isinstance(description, dict):
        raise ValueError(f"{path} is damaged: choose another folder with --output, or delete this one")
    return description


def _next_steps(options: Arguments, unreadable: list[str]) -> dict[str, str]:
    """Returns what may be done with the results: look at one, and score the model on readable images."""
    steps = {}
    folders = (options.output / kind for kind in ("overlay", "colors") if kind in options.write)
    pictures = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    if pictures:
        steps["look at a result"] = quote(str(pictures[0]))
    as_trained = options.size is None and options.value_range is None  # else `cpsl evaluate` reads otherwise
    if (
        as_trained
        and not unreadable
        and any(path.suffix.lower() in IMAGE_SUFFIXES for path in options.input.rglob("*"))
    ):
        network = ["--network", options.network] if options.network else []
        line = join(["evaluate", "--weights", str(options.weights), "--images", str(options.input), *network])
        steps["see how certain the model is, without labels"] = f"{program()} {line}"
    return steps


def main(arguments: list[str]) -> None:
    """Runs `cpsl predict`."""
    options = parse_arguments(Arguments, arguments, "predict")
    require_one_process("predict")
    with friendly_errors(options.debug), start_process(options.device) as process:
        unreadable = predict_all(options, process)
        if process.is_main:
            print(f"results in {options.output}")
            if is_legend(legend := options.output / LEGEND):
                print(f"colors: {legend}")
            if steps := _next_steps(options, unreadable):
                print(list_next(steps))
        if unreadable:
            raise SystemExit("\n".join(["these files could not be read:", *unreadable]))
