"""Looks for everything that is wrong with a data set, before days are spent on it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl.alignment import class_counts
from cpsl.data.sample import SegmentationDataset


class DatasetCheck(NamedTuple):
    """What reading a whole data set showed.

    Attributes:
        images: Number of images.
        labelled: Number of images with a label.
        sizes: Number of images of each size (H, W).
        counts: (K,) pixels of each class.
        problems: One sentence for each image that cannot be used, with the file's name; and one for each
            image without a label where others have one.
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
        progress: Wraps the iteration to show how far it is; tqdm for example.
        threads: Files read at the same time.

    Returns:
        Counts and all problems; nothing is raised for a broken file.

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

    def look(index: int) -> tuple[tuple[int, int], Tensor | None] | str:
        try:
            image, label, _ = dataset[index]
            counts = None if label is None else class_counts(label, len(dataset.label_space))
        except (OSError, ValueError) as error:
            return f"{dataset.names[index]}: {error}"
        return (image.shape[1], image.shape[2]), counts

    counts = torch.zeros(len(dataset.label_space), dtype=torch.int64)
    sizes: dict[tuple[int, int], int] = {}
    problems: list[str] = []
    labelled, unlabelled = 0, []
    with ThreadPoolExecutor(threads) as pool:
        results: Iterator[tuple[tuple[int, int], Tensor | None] | str]
        results = pool.map(look, range(len(dataset)))
        for index, result in zip(progress(range(len(dataset))), results, strict=True):
            if isinstance(result, str):
                problems.append(result)
                continue
            size, of_image = result
            sizes[size] = sizes.get(size, 0) + 1
            if of_image is None:
                unlabelled.append(f"{dataset.names[index]}: no label, though other images have one")
            else:
                labelled += 1
                counts += of_image
    if labelled:
        problems += unlabelled
    return DatasetCheck(len(dataset), labelled, sizes, counts, problems)
