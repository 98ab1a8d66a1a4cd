"""What `cpsl adapt` says about labels before it trains, after reading some of them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from cpsl import class_counts
from cpsl.app.checking.words import find_warnings
from cpsl.app.class_shares import SOURCE_LABELS
from cpsl.app.domain import Domain
from cpsl.app.evaluate import evenly_spaced
from cpsl.data import DatasetCheck, LabelSpace, SegmentationDataset
from cpsl.data.sample import read_label

THREADS = 4
"""Labels that are read at once."""


def warn_of_labels(
    datasets: Mapping[str, SegmentationDataset], domains: Mapping[str, Domain], classes: LabelSpace
) -> list[str]:
    """Returns the check's warnings about labels of sources and evaluation, after reading at most 100 of each.

    Args:
        datasets: Data sets of the domains by name: "source" or "source 1", ..., "target", "evaluation".
        domains: Their settings.
        classes: Label space of the run.

    Raises:
        FileNotFoundError, ValueError: A label cannot be read, or has values without a class.
    """
    # Labels of the target are read only if it is evaluated on them.
    used = {name: each for name, each in datasets.items() if name != "target" or "evaluation" not in datasets}
    counted = {name: _count(dataset, len(classes)) for name, dataset in used.items()}
    complete = all(len(dataset) <= SOURCE_LABELS for dataset in used.values())
    return find_warnings(counted, domains, classes, complete=complete)


def _count(dataset: SegmentationDataset, num_classes: int) -> DatasetCheck:
    chosen = evenly_spaced(len(dataset), SOURCE_LABELS)
    counts, labeled, ignored = torch.zeros(num_classes, dtype=torch.int64), 0, 0
    with ThreadPoolExecutor(THREADS) as pool:
        for label in pool.map(partial(read_label, dataset), chosen):
            if label is not None:
                of_classes = class_counts(label, num_classes)
                counts += of_classes
                labeled, ignored = labeled + 1, ignored + label.numel() - int(of_classes.sum())
    return DatasetCheck(len(dataset), labeled, {}, counts, [], [], ignored, [])
