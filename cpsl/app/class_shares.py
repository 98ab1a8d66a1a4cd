"""Class frequencies of labels, estimated from at most 100 of them."""

import torch
from torch import Tensor

from cpsl import class_counts
from cpsl.app.config import Config
from cpsl.app.datasets import open_dataset
from cpsl.app.evaluate import evenly_spaced
from cpsl.data import SegmentationDataset
from cpsl.data.sample import read_label

SOURCE_LABELS = 100
"""Most source labels, evenly spaced, whose pixels are counted."""


def source_distribution(config: Config) -> Tensor | None:
    """Returns the class frequencies (K,) of the labels of all sources, at most 100 of each; None without."""
    counts = [_label_counts(open_dataset(config, source)) for source in config.sources]
    total = torch.stack(counts).sum(dim=0)
    return total / total.sum() if total.any() else None


def class_frequencies(dataset: SegmentationDataset) -> list[float]:
    """Returns the shares of the classes in at most 100 labels of a data set; zeros without labels."""
    counts = _label_counts(dataset)
    frequencies: list[float] = (counts / counts.sum().clamp_min(1)).tolist()
    return frequencies


def _label_counts(dataset: SegmentationDataset) -> Tensor:
    counts = torch.zeros(len(dataset.label_space), dtype=torch.int64)
    for index in evenly_spaced(len(dataset), SOURCE_LABELS):
        label = read_label(dataset, index)
        if label is not None:
            counts += class_counts(label, len(counts))
    return counts
