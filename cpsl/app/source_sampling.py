"""How often the images of each source are sampled."""

import hashlib
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from cpsl import data
from cpsl.app.config import Config
from cpsl.app.domain import Domain
from cpsl.app.file_lists import stat_files
from cpsl.data.sample import files_of
from cpsl.data.sampler import Sampling
from cpsl.training import Process, load, progress, save


def named_sources(config: Config) -> dict[str, Domain]:
    """Returns the sources: "source" if there is one, else "source 1", "source 2", ..."""
    if not config.more_sources:
        return {"source": config.source}
    return {f"source {number}": source for number, source in enumerate(config.sources, start=1)}


def source_shares(config: Config, lengths: Mapping[str, int]) -> dict[str, float]:
    """Returns the share of each source in the samples, given their numbers of images.

    If no source has a weight, the shares are proportional to the square roots of the numbers: a few images
    count more than in proportion, but do not prevail. Rare-class sampling changes the shares, see
    `describe_sources`.
    """
    sources = named_sources(config)
    weights = {name: sources[name].weight or math.sqrt(length) for name, length in lengths.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def source_sampling(
    config: Config, process: Process, datasets: Mapping[str, data.SegmentationDataset]
) -> Sampling | None:
    """Returns how source images are sampled; None samples the images of a single source evenly."""
    if config.views.rare_class_temperature:
        counts = {name: count_source(config, process, name, dataset) for name, dataset in datasets.items()}
        return rare_class_sampling(config, counts)
    if len(datasets) == 1:
        return None
    shares = source_shares(config, {name: len(dataset) for name, dataset in datasets.items()})
    return data.MixedSampling([len(dataset) for dataset in datasets.values()], list(shares.values()))


def rare_class_sampling(config: Config, counts: Mapping[str, Tensor]) -> data.RareClassSampling:
    """Returns the rare-class sampling, given the pixels of each class in each image (N, K) of each source."""
    shares = source_shares(config, {name: len(of_source) for name, of_source in counts.items()})
    weights = [torch.full((len(each),), shares[name] / len(each)) for name, each in counts.items()]
    temperature = config.views.rare_class_temperature
    return data.RareClassSampling(torch.cat([*counts.values()]), temperature, torch.cat(weights))


def describe_sources(
    config: Config, datasets: Mapping[str, data.SegmentationDataset], sampling: Sampling | None = None
) -> dict[str, str]:
    """Describes each source: its number of images and its share of the samples.

    `sampling` is that of the run; without it the shares are those before rare-class sampling.
    """
    lengths = {name: len(dataset) for name, dataset in datasets.items()}
    shares = source_shares(config, lengths)
    if isinstance(sampling, data.RareClassSampling):
        parts = sampling.image_probabilities.split(list(lengths.values()))
        shares = {name: float(part.sum()) for name, part in zip(lengths, parts, strict=True)}
    return {
        name: f"{length:,} images, {100 * shares[name]:.1f} % of the samples"
        for name, length in lengths.items()
    }


def count_source(config: Config, process: Process, name: str, dataset: data.SegmentationDataset) -> Tensor:
    """Returns the pixels of each class in each image (N, K); read once, then from a file in the run's folder.

    The main process reads the labels, the others wait for its file. Labels with another size or time are read
    again.
    """
    path = config.output / "class_counts" / f"{_key(named_sources(config)[name], dataset)[:16]}.pt"
    path = process.gather(path)[0]  # of files on the disk of each node, the times may differ
    if process.is_main and not path.exists():
        show = partial(progress, title=f"classes of {name}", process=process, total=len(dataset))
        save(path, {"counts": data.count_classes(dataset, show)})
    process.barrier()
    counts: Tensor = load(path, "cpu")["counts"]
    return counts


def _key(source: Domain, dataset: data.SegmentationDataset) -> str:
    """Returns what identifies the labels of a source, and how they are read."""
    labels = [str(label) for index in range(len(dataset)) if (label := files_of(dataset, index)[1])]
    stored = [(file.size, file.time) for file in stat_files(labels).values()]
    content = (source, dataset.label_space.names, dataset.names, stored)
    return hashlib.sha256(repr(content).encode()).hexdigest()
