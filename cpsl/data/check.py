"""Looks for everything that is wrong with a data set, before days are spent on it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cpsl.alignment import class_counts
from cpsl.data.sample import SegmentationDataset


@dataclass(frozen=True)
class DatasetCheck:
    """What reading a whole data set showed.

    Attributes:
        images: Number of images.
        labelled: Number of images with a label.
        sizes: Number of images of each size (H, W).
        counts: (K,) pixels of each class.
        problems: One sentence for each image that cannot be used, with the file's name.
    """

    images: int
    labelled: int
    sizes: dict[tuple[int, int], int]
    counts: Tensor
    problems: list[str]


def check_dataset(
    dataset: SegmentationDataset,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    threads: int = 4,
) -> DatasetCheck:
    """Reads every image and label once.

    Args:
        dataset: Any data set of this library, or of the same protocol.
        progress: Wraps the iteration, to show how far it is; tqdm for example.
        threads: Files read at the same time.

    Returns:
        Counts and all problems; nothing is raised for a broken file.
    """

    def look(index: int) -> tuple[tuple[int, int], Tensor | None] | str:
        try:
            sample = dataset[index]
        except (OSError, ValueError) as error:
            return str(error)
        size = (sample.image.shape[1], sample.image.shape[2])
        if sample.label is None:
            return size, None
        return size, class_counts(sample.label, len(dataset.label_space))

    counts = torch.zeros(len(dataset.label_space), dtype=torch.int64)
    sizes: dict[tuple[int, int], int] = {}
    labelled, problems = 0, []
    with ThreadPoolExecutor(threads) as pool:
        results: Iterator[tuple[tuple[int, int], Tensor | None] | str]
        results = pool.map(look, range(len(dataset)))
        for _, result in zip(progress(range(len(dataset))), results, strict=True):
            if isinstance(result, str):
                problems.append(result)
                continue
            size, of_image = result
            sizes[size] = sizes.get(size, 0) + 1
            if of_image is not None:
                labelled += 1
                counts += of_image
    return DatasetCheck(len(dataset), labelled, sizes, counts, problems)
