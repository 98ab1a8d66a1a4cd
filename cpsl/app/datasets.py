"""Label space, data sets and endless training batches, built from the settings."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from cpsl import data
from cpsl._internal.randomness import derive_seed
from cpsl._internal.workers import usable_cores
from cpsl.app.config import Authors, Config
from cpsl.app.domain import Domain
from cpsl.app.ranges import Size
from cpsl.app.source_sampling import describe_sources, named_sources, source_sampling
from cpsl.authors import AuthorsStrongAugmentation
from cpsl.data.cache import CachedDataset
from cpsl.data.sample import Files
from cpsl.data.sampler import Sampling
from cpsl.data.streets import Style
from cpsl.training import Process, logger, progress

T = TypeVar("T")

IMAGES_PER_PROCESS = 32
"""Images from which on another process is started."""

LABEL_SETTINGS = (
    *("ids", "label_pattern", "first_id", "tolerance", "ignore_unknown", "resize_labels"),
    *("skip_unpaired", "label_orientation"),
)
"""Settings of a domain about the labels in its folder."""

FOLDER_SETTINGS = (*LABEL_SETTINGS, "image_pattern", "value_range")
"""Settings of a domain that only data sets of folders have."""


def label_space(config: Config) -> data.LabelSpace:
    """Returns the classes of the model."""
    spaces = {"cityscapes-19": data.CITYSCAPES_19, "cityscapes-16": data.CITYSCAPES_16}
    known = spaces.get(config.classes[0] if len(config.classes) == 1 else "")
    names = known.names if known else config.classes
    return data.LabelSpace(names, config.palette or data.class_colors(names))


def domains(config: Config) -> dict[str, Domain]:
    """Returns the domains that the settings name: "source" or "source 1", "source 2", ..., "target", ..."""
    named = named_sources(config) | {"target": config.target}
    if config.evaluation.given:
        named["evaluation"] = config.evaluation
    return named


def data_folders(config: Config) -> dict[str, Path]:
    """Returns the folders of all domains by their setting, such as "target.images"."""
    named = {
        f"{name}.{option}": getattr(domain, option)
        for name, domain in domains(config).items()
        for option in ("root", "images", "labels")
    }
    return {name: folder for name, folder in named.items() if folder is not None}


def open_dataset(config: Config, domain: Domain) -> data.SegmentationDataset:
    """Returns the images of a domain."""
    return _dataset(domain, label_space(config))


def target_dataset(config: Config) -> data.SegmentationDataset:
    """Returns the images of the target domain that are trained on."""
    return open_dataset(config, config.target)


def evaluation_dataset(config: Config) -> data.SegmentationDataset:
    """Returns the images for evaluation: labeled ones if the settings name them, else the target's."""
    return open_dataset(config, config.evaluation if config.evaluation.given else config.target)


def _dataset(domain: Domain, classes: data.LabelSpace) -> data.SegmentationDataset:
    option = "images" if domain.dataset == "folder" else "root"
    folder = getattr(domain, option)
    if folder is None:
        raise ValueError(f'a domain of dataset "{domain.dataset}" needs `{option}`, the folder of its files')
    dataset: data.SegmentationDataset
    unused = [name for name in FOLDER_SETTINGS if getattr(domain, name) != getattr(Domain(), name)]
    if domain.dataset != "folder" and unused:
        raise ValueError(f'{unused[0]} is a setting of dataset = "folder", not of "{domain.dataset}"')
    for data_folder in (folder, domain.labels):
        if domain.cache and data_folder and domain.cache.resolve().is_relative_to(data_folder.resolve()):
            raise ValueError(f"cache {domain.cache} is inside {data_folder}, where it would be read as data")
    if domain.dataset == "folder":
        settings = {name: getattr(domain, name) for name in FOLDER_SETTINGS}
        dataset = data.SegmentationFolder(folder, domain.labels, classes, **settings)
    elif domain.dataset == "cityscapes":
        dataset = data.Cityscapes(folder, domain.split, label_space=classes)
    else:
        dataset = (data.GTA5 if domain.dataset == "gta5" else data.Synthia)(folder, label_space=classes)
    if not 0 < domain.max_images < len(dataset):
        return dataset
    return data.Subset(dataset, [i * len(dataset) // domain.max_images for i in range(domain.max_images)])


def draw_streets(config: Config) -> None:
    """Generates the street scenes that the settings ask for, unless they exist."""
    for name, domain in domains(config).items():
        style: Style = "game" if name.startswith("source") and not domain.from_target else "real"
        if domain.streets and domain.root is not None and domain.dataset in ("gta5", "cityscapes"):
            logger.info(f"{domain.streets} generated street scenes in {domain.root}")
            data.write_streets(
                domain.root,
                layout=domain.dataset,
                style=style,
                split=domain.split,
                count=domain.streets,
                size=domain.streets_size,
                seed=domain.streets_seed,
                workers=file_workers(config, domain.streets),
            )


def file_workers(config: Config, images: int) -> int:
    """Returns the number of processes that read or write images before training: at most one per core.

    `workers = 0` means that there may be no other processes; a few images are not worth their start.
    """
    return min(usable_cores(), images // IMAGES_PER_PROCESS) if config.workers else 0


def size_of_source(config: Config, source: Domain) -> Size:
    """Returns the size to which images of a source are resized before they are scaled."""
    of_all = None if source.from_target else config.views.source_size
    return source.size or of_all or config.views.full_size


def source_batches(
    config: Config, stage: str, process: Process, batch_size: int, start: int
) -> Iterator[data.SourceBatch]:
    """Yields endless training batches of all sources, from iteration `start` on."""
    views = config.views
    styles = _training_dataset(config, config.target) if views.color_transfer else None
    jitter = None
    if strength := views.source_jitter:
        jitter = data.ColorJitter(strength, hue=strength / 4, blur=strength / 2)
    parts = {
        name: data.SourceViews(
            _training_dataset(config, source, size_of_source(config, source)),
            _weak_view(config, size_of_source(config, source)),
            styles,
            color_transfer=0 if source.from_target else views.color_transfer,
            jitter=jitter,
            on_device=views.on_device,
        )
        for name, source in named_sources(config).items()
    }
    joined = data.JoinedViews(parts) if len(parts) > 1 else parts["source"]
    datasets = {name: part.dataset for name, part in parts.items()}
    sampling = source_sampling(config, process, datasets)
    if process.is_main and len(parts) > 1:
        for name, described in describe_sources(config, datasets, sampling).items():
            logger.info(f"{name}: {described}")
    return _batches(config, joined, f"{stage} source", process, batch_size, start, sampling)


def target_batches(
    config: Config,
    stage: str,
    process: Process,
    batch_size: int,
    start: int,
    read: Callable[[str], Tensor] | None = None,
    strong: data.StrongAugmentation | None = None,
) -> Iterator[data.TargetBatch]:
    """Yields endless training batches of the target domain, with the pseudo labels that `read` returns.

    Strong views are the paper's if `strong` is None.
    """
    strong, authors = strong or data.StrongAugmentation(), config.authors
    if authors != Authors():
        strong = AuthorsStrongAugmentation(
            fixed_label_order=authors.fixed_label_order,
            stretched_label_translation=authors.stretched_label_translation,
        )
    weak, on_device = _weak_view(config), config.views.on_device
    views = data.TargetViews(
        _training_dataset(config, config.target), weak, strong, read, on_device=on_device
    )
    return _batches(config, views, f"{stage} target", process, batch_size, start)


def _training_dataset(config: Config, domain: Domain, size: Size | None = None) -> data.SegmentationDataset:
    """Returns the images of a domain, large ones from the cache if it has one."""
    dataset = open_dataset(config, domain)
    if domain.cache is None:
        return dataset
    assert isinstance(dataset, Files | data.Subset)
    return CachedDataset(dataset, domain.cache, size or config.views.full_size)


def _weak_view(config: Config, size: Size | None = None) -> data.WeakView:
    views, size = config.views, size or config.views.full_size
    return data.WeakView(full_size=size, crop=views.crop, width=views.width, scale=views.scale)


def _batches(
    config: Config,
    views: Dataset[Any],
    purpose: str,
    process: Process,
    batch_size: int,
    start: int,
    sampling: Sampling | None = None,
) -> Iterator[Any]:
    parts, images = micro_batches(config, batch_size, process)
    loader = data.training_loader(
        views,
        images,
        seed=derive_seed(config.seed, purpose),
        start=start * parts,
        num_workers=config.workers,
        pin_memory=process.device.type == "cuda",
        sampling=sampling,
    )
    for batch in loader:
        yield batch.to(process.device).apply_deferred()


def micro_batches(config: Config, batch_size: int, process: Process) -> tuple[int, int]:
    """Returns the micro-batches of a step, and the images of each and process.

    Raises:
        ValueError: The images cannot be divided evenly.
    """
    images, rest = divmod(batch_size, process.world_size)
    if rest:
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the processes ({process.world_size})"
        )
    parts = min(config.gradient_accumulation_steps, images)  # stages differ in their batch size
    if images % parts:
        raise ValueError(
            f"batch_size {batch_size} gives {images} images per process, which must be a multiple of "
            f"gradient_accumulation_steps ({parts})"
        )
    return parts, images // parts


def share_of_rank(items: Sequence[T], process: Process, title: str) -> Iterator[T]:
    """Yields this rank's share of the items, every world_size-th, with a progress bar."""
    mine = items[process.rank :: process.world_size]
    return progress(mine, title, process, total=len(mine))
