"""What each of several sources brings to a run: its share of the samples, and of the pixels of each class."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cpsl.app.class_shares import class_frequencies
from cpsl.app.config import Config
from cpsl.app.source_sampling import count_source, describe_sources, source_sampling, source_shares
from cpsl.app.words import listing
from cpsl.data import RareClassSampling, SegmentationDataset
from cpsl.training import Process

NAMED = 6
"""Most classes that are named; of more, their number."""


def describe_contributions(config: Config, datasets: Mapping[str, SegmentationDataset]) -> dict[str, str]:
    """Returns a note on each source, given their data sets by name."""
    alone = Process(torch.device("cpu"))  # the other processes have ended
    sampling = source_sampling(config, alone, datasets)
    described = describe_sources(config, datasets, sampling)
    if isinstance(sampling, RareClassSampling):
        counts = {name: count_source(config, alone, name, dataset) for name, dataset in datasets.items()}
        of_images = sampling.image_probabilities.split([len(each) for each in counts.values()])
        pixels = {
            name: sampled_pixels(each, probabilities)
            for (name, each), probabilities in zip(counts.items(), of_images, strict=True)
        }
    else:
        shares = source_shares(config, {name: len(dataset) for name, dataset in datasets.items()})
        pixels = {name: shares[name] * torch.tensor(class_frequencies(datasets[name])) for name in datasets}
    notes = {}
    for name, majority in majorities(pixels).items():
        of_samples = described[name].partition(", ")[2]
        classes = datasets[name].label_space.names
        notes[name] = ", ".join(filter(None, [of_samples, _most_of([classes[k] for k in majority])]))
    return notes


def sampled_pixels(counts: Tensor, probabilities: Tensor) -> Tensor:
    """Returns the share of each class (K,) in the pixels that are sampled from a source, before crops.

    `counts` are the pixels of each class in each image, (N, K), `probabilities` those of the images, (N,),
    which need not sum to one.
    """
    return probabilities @ (counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).to(probabilities)


def majorities(pixels: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Returns the classes for which a source provides more than half of the pixels, (K,) by source.

    Example:
        >>> majorities({"game": torch.tensor([0.7, 0.0]), "few": torch.tensor([0.2, 0.1])})
        {'game': [0], 'few': [1]}
    """
    half = torch.stack(list(pixels.values())).sum(dim=0) / 2
    return {name: (each > half).nonzero().flatten().tolist() for name, each in pixels.items()}


def _most_of(classes: list[str]) -> str:
    if not classes:
        return ""
    named = listing(classes) if len(classes) <= NAMED else f"{len(classes)} classes"
    return f"most of the sampled pixels of {named}"
