"""Check of a whole data set before it is trained on."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpsl._internal.files import is_passing, without_number
from cpsl._internal.workers import map_in_processes
from cpsl.alignment import class_counts
from cpsl.data.appearance import Appearance, appearance_of, appearance_of_numbers
from cpsl.data.completeness import find_cut_end
from cpsl.data.examples import ClassExamples
from cpsl.data.orientation import OrientationError
from cpsl.data.pictures import Picture, UnscaledError
from cpsl.data.sample import SegmentationDataset, files_of, picture_of, sample_of, stored_label
from cpsl.data.unknown import UnknownValuesError

Kind = Literal["image", "label", "values", "size", "orientation", "unlabeled", "other"]

MOST_VALUES = 256
"""Unknown values of one label that are kept, the most frequent: a file of 16 bits can hold 65,536."""


class Finding(NamedTuple):
    """One problem of one image or its label.

    Attributes:
        kind: The "image" or the "label" cannot be read; the label has unknown "values"; image and label
            differ in "size"; nothing tells the "orientation" of the label; the image is "unlabeled", though
            others are not; or an "other" problem.
        file: Path of the image or the label, or the key of the image if the data set has no files.
        message: A sentence that names the file.
        reason: The sentence without the names of files.
        values: Pixels of each unknown value of the label, at most 256; colors are written "#rrggbb".
        pixels: Number of pixels of a label with unknown values.
    """

    kind: Kind
    file: str
    message: str
    reason: str = ""
    values: dict[int | str, int] = {}  # noqa: RUF012  # never changed
    pixels: int = 0


class DatasetCheck(NamedTuple):
    """Result of `check_dataset`.

    Attributes:
        images: Number of images.
        labeled: Number of images with a label, whether it can be used or not.
        sizes: Number of the images of each size (H, W) that can be read.
        counts: (K,) pixels of each class in images and labels without a problem.
        problems: One sentence per problem of an image or its label.
        findings: The same problems, with their kinds.
        ignored: Ignored pixels of the labels in `counts`.
        examples: Indices of up to six images without a problem that together show as many classes as
            possible; spread evenly if there are no labels.
        appearances: What each image shows about how it should be read; None if it cannot be read.
        image_counts: (N, K) pixels of each class in each image, whose sums are `counts`.
    """

    images: int
    labeled: int
    sizes: dict[tuple[int, int], int]
    counts: Tensor
    problems: list[str]
    findings: list[Finding]
    ignored: int
    examples: list[int]
    appearances: list[Appearance | None] = []  # noqa: RUF012  # never changed
    image_counts: Tensor = torch.zeros(0, 0, dtype=torch.int64)


class _Record(NamedTuple):
    """What one image and its label hold."""

    size: tuple[int, int] | None  # (H, W); None if the image cannot be read
    labeled: bool
    counts: npt.NDArray[np.int64] | None  # (K + 1,) pixels of each class, and ignored ones
    findings: list[Finding]
    appearance: Appearance | None  # None if the image cannot be read


def check_dataset(
    dataset: SegmentationDataset,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    threads: int = 4,
    workers: int = 0,
) -> DatasetCheck:
    """Reads every image and label once, and collects the problems instead of raising errors.

    The result does not depend on the number of threads or processes.

    Args:
        dataset: Any data set of this library, or of the same protocol.
        progress: Wraps the iteration to show its progress, such as tqdm.
        threads: Number of threads that read files, if there are no other processes.
        workers: Number of processes that read files, as in torch's DataLoader. They use many cores better
            than threads, which share one interpreter.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from cpsl.data.folder import SegmentationFolder
        >>> file = Path(tempfile.mkdtemp(), "empty.png")
        >>> file.touch()
        >>> result = check_dataset(SegmentationFolder(file.parent, classes=["road"]))
        >>> result.images, len(result.problems), "empty.png" in result.problems[0]
        (1, 1, True)
        >>> result.findings[0].kind
        'image'
    """
    classes = len(dataset.label_space)
    counts = np.zeros((len(dataset), classes + 1), np.int64)
    sizes, labeled = Counter[tuple[int, int]](), 0
    findings, usable, unlabeled = list[Finding](), list[int](), list[int]()
    examples, appearances = ClassExamples(classes), list[Appearance | None]()
    with closing(_read_all(dataset, threads, workers)) as records:
        for index, record in zip(progress(range(len(dataset))), records, strict=True):
            findings += record.findings
            appearances.append(record.appearance)
            labeled += record.labeled
            if record.size is not None:
                sizes[record.size] += 1
            if record.counts is not None:
                counts[index] = record.counts
                examples.add(index, record.counts[:classes])
            if not record.findings:
                usable.append(index)
                if not record.labeled:
                    unlabeled.append(index)
    image_counts = torch.from_numpy(counts[:, :classes])
    if labeled:
        findings += [_Pair(dataset, index).unlabeled() for index in unlabeled]
    return DatasetCheck(
        images=len(dataset),
        labeled=labeled,
        sizes=sizes,
        counts=image_counts.sum(dim=0),
        problems=[finding.message for finding in findings],
        findings=findings,
        ignored=int(counts[:, classes].sum()),
        examples=examples.choose(usable),
        appearances=appearances,
        image_counts=image_counts,
    )


def _read_all(dataset: SegmentationDataset, threads: int, workers: int) -> Generator[_Record, None, None]:
    """Yields the records of all images in their order."""
    if not workers:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(partial(_read, dataset), range(len(dataset)))
        return
    yield from map_in_processes(partial(_read, dataset), len(dataset), workers)


def _read(dataset: SegmentationDataset, index: int) -> _Record:
    """Reads an image and its label."""
    try:
        (image, label, _), picture = sample_of(dataset, index)
        size = (image.shape[1], image.shape[2])
        if flaw := _flaw(dataset, index, picture):
            return _diagnose(dataset, index, ValueError(flaw))
        if label is None:
            return _Record(size, False, None, [], appearance_of(picture))
        of_classes = class_counts(label, len(dataset.label_space)).numpy()
    except (OSError, ValueError) as error:
        if is_passing(error):
            raise
        return _diagnose(dataset, index, error)
    counts = np.append(of_classes, label.numel() - of_classes.sum())
    return _Record(size, True, counts, [], appearance_of(picture))


def _flaw(dataset: SegmentationDataset, index: int, picture: Picture) -> str:
    """Returns why the file of an image is damaged though it can be decoded, "" if nothing says so."""
    path = files_of(dataset, index)[0]
    return picture.flaw or ("" if path is None else find_cut_end(path))


def _diagnose(dataset: SegmentationDataset, index: int, error: Exception) -> _Record:
    """Finds all problems of an image and its label that cannot be read together."""
    size, label, labeled, findings, appearance = None, None, False, list[Finding](), None
    pair = _Pair(dataset, index)
    try:
        picture = picture_of(dataset, index)
        size, appearance = picture.pixels.shape[1:], appearance_of(picture)
        if flaw := _flaw(dataset, index, picture):
            findings.append(pair.problem("image", ValueError(flaw)))
    except (OSError, ValueError) as of_image:
        if is_passing(of_image):
            raise
        findings.append(pair.problem("image", of_image))
        if isinstance(of_image.__cause__, UnscaledError):
            appearance = appearance_of_numbers(of_image.__cause__.values)
    try:
        label = stored_label(dataset, index)
        labeled = label is not None
    except (OSError, ValueError) as of_label:
        if is_passing(of_label):
            raise
        labeled = True
        findings.append(pair.problem("label", of_label))
    if not findings and size is not None and label is not None and size != label.shape:
        findings.append(pair.problem("size", error))
    if not findings:
        kind: Kind = "orientation" if isinstance(error, OrientationError) else "other"
        findings.append(pair.problem(kind, error))
    return _Record(None if size is None else (size[0], size[1]), labeled, None, findings, appearance)


class _Pair:
    """An image and its label, and the description of their problems."""

    def __init__(self, dataset: SegmentationDataset, index: int) -> None:
        self.key = dataset.names[index]
        self.image, self.label = files_of(dataset, index)

    def problem(self, kind: Kind, error: Exception) -> Finding:
        """Returns the problem that an error reports."""
        file = str((self.image if kind == "image" else self.label) or self.image or self.key)
        message = reason = " ".join(without_number(error).split())  # one line
        for path, word in ((self.image, "image"), (self.label, "label")):
            reason = reason.replace(f"there is no file {path}", f"the {word} is missing")
            reason = reason.replace(f"{word} {path}", word).replace(str(path), f"the {word}")
        reason = reason.removeprefix(f"the {kind} cannot be read: ")
        if file not in message:
            message = f"{file}: {message}"
        if isinstance(error, UnknownValuesError):
            most = {*sorted(error.values, key=lambda value: -error.values[value])[:MOST_VALUES]}
            values = {value: error.values[value] for value in error.values if value in most}
            listed = ", ".join(f"{value} ({pixels} pixels)" for value, pixels in values.items())
            others = len(error.values) - len(values)
            message = f"{file} has unknown values: {listed}" + (f" and {others} others" if others else "")
            return Finding("values", file, message, "unknown values", values, error.pixels)
        return Finding(kind, file, message, reason)

    def unlabeled(self) -> Finding:
        """Returns the problem of a missing label."""
        reason = "no label, though other images have one"
        return Finding("unlabeled", str(self.image or self.key), f"{self.key}: {reason}", reason)
