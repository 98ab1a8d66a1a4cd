"""Check of a whole data set before it is trained on."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl.alignment import class_counts
from cpsl.data.sample import SegmentationDataset


class DatasetCheck(NamedTuple):
    """Result of `check_dataset`.

    Attributes:
        images: Number of images.
        labeled: Number of images with a label.
        sizes: Number of images of each size (H, W).
        counts: (K,) pixels of each class.
        problems: One sentence per image that cannot be used, or that lacks a label which others have.
    """

    images: int
    labeled: int
    sizes: dict[tuple[int, int], int]
    counts: Tensor
    problems: list[str]


def check_dataset(
    dataset: SegmentationDataset, progress: Callable[[Iterable[int]], Iterable[int]] = iter, threads: int = 4
) -> DatasetCheck:
    """Reads every image and label once, and collects the problems instead of raising errors.

    Args:
        dataset: Any data set of this library, or of the same protocol.
        progress: Wraps the iteration to show its progress, such as tqdm.
        threads: Number of threads that read files.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from cpsl.data.folder import SegmentationFolder
        >>> file = Path(tempfile.mkdtemp(), "empty.png")
        >>> file.touch()
        >>> result = check_dataset(SegmentationFolder(file.parent, classes=["road"]))
        >>> result.images, len(result.problems), "empty.png" in result.problems[0]
        (1, 1, True)
    """

    def read(index: int) -> tuple[tuple[int, int], Tensor | None] | str:
        try:
            image, label, _ = dataset[index]
            counts = None if label is None else class_counts(label, len(dataset.label_space))
        except (OSError, ValueError) as error:
            return f"{dataset.names[index]}: {error}"
        return (image.shape[1], image.shape[2]), counts

    counts = torch.zeros(len(dataset.label_space), dtype=torch.int64)
    sizes, labeled = Counter[tuple[int, int]](), 0
    problems, unlabeled = list[str](), list[str]()
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(read, range(len(dataset)))
        for index, result in zip(progress(range(len(dataset))), results, strict=True):
            if isinstance(result, str):
                problems.append(result)
                continue
            size, of_image = result
            sizes[size] += 1
            if of_image is None:
                unlabeled.append(f"{dataset.names[index]}: no label, though other images have one")
            else:
                labeled += 1
                counts += of_image
    if labeled:
        problems += unlabeled
    return DatasetCheck(len(dataset), labeled, sizes, counts, problems)
