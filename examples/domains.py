"""From settings to data: label space, data sets, endless batches of training views."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from config import Config, Domain
from cpsl.data import (
    CITYSCAPES_16,
    CITYSCAPES_19,
    GTA5,
    Cityscapes,
    DrawSampler,
    LabelSpace,
    SegmentationDataset,
    SegmentationFolder,
    SourceBatch,
    SourceViews,
    StrongAugmentation,
    Subset,
    Synthia,
    TargetBatch,
    TargetViews,
    WeakView,
    collate,
    distinct_palette,
    write_streets,
)
from cpsl.data.streets import Style
from cpsl.engine import Process, logger
from cpsl.randomness import derive_seed
from cpsl.visualize import overlay, panel


def label_space(config: Config) -> LabelSpace:
    """Returns the classes that the model tells apart."""
    spaces = {"cityscapes-19": CITYSCAPES_19, "cityscapes-16": CITYSCAPES_16}
    known = spaces.get(config.classes[0]) if len(config.classes) == 1 else None
    names = known.names if known else config.classes
    colors = known.palette if known else distinct_palette(len(names))
    return LabelSpace(names, config.palette or colors)


def source_dataset(config: Config) -> SegmentationDataset:
    """Returns the labelled images of the source domain."""
    return _dataset(config.source, label_space(config))


def target_dataset(config: Config) -> SegmentationDataset:
    """Returns the images of the target domain that are trained on."""
    return _dataset(config.target, label_space(config))


def evaluation_dataset(config: Config) -> SegmentationDataset:
    """Returns the images that are evaluated: with labels if there are any, else the target's."""
    return _dataset(
        config.evaluation if config.evaluation.given else config.target, label_space(config)
    )


def _dataset(domain: Domain, classes: LabelSpace) -> SegmentationDataset:
    dataset = _all_images(domain, classes)
    if not 0 < domain.limit < len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // domain.limit for i in range(domain.limit)])


def _all_images(domain: Domain, classes: LabelSpace) -> SegmentationDataset:
    if domain.dataset == "folder":
        if domain.images is None:
            raise ValueError(
                'a domain of dataset "folder" needs `images`, the folder of its images'
            )
        return SegmentationFolder(domain.images, domain.labels, classes, ids=domain.ids or None)
    if domain.root is None:
        raise ValueError(
            f'a domain of dataset "{domain.dataset}" needs `root`, the folder of its files'
        )
    if domain.dataset == "gta5":
        return GTA5(domain.root, label_space=classes)
    if domain.dataset == "synthia":
        return Synthia(domain.root, label_space=classes)
    return Cityscapes(domain.root, domain.split, label_space=classes)


def draw_streets(config: Config) -> None:
    """Draws the generated scenes that the settings ask for; those that are there already are kept."""
    styles: list[tuple[Domain, Style]] = [
        (config.source, "game"),
        (config.target, "real"),
        (config.evaluation, "real"),
    ]
    for domain, style in styles:
        if domain.streets and domain.root is not None and domain.dataset in ("gta5", "cityscapes"):
            logger.info(f"{domain.streets} generated street scenes in {domain.root}")
            write_streets(
                domain.root,
                layout=domain.dataset,
                style=style,
                split=domain.split,
                count=domain.streets,
                size=domain.streets_size,
                seed=domain.streets_seed,
            )


def source_batches(
    config: Config, stage: str, process: Process, batch_size: int, start: int
) -> Iterator[SourceBatch]:
    """Yields endless training batches of the source domain, from iteration `start` on."""
    views = SourceViews(
        source_dataset(config),
        _weak_view(config, config.views.source_size),
        style_from=target_dataset(config) if config.views.color_transfer else None,
        on_device=config.views.on_device,
    )
    return _batches(config, views, f"{stage} source", process, batch_size, start)


def target_batches(
    config: Config,
    stage: str,
    process: Process,
    batch_size: int,
    start: int,
    read: Callable[[str], Tensor] | None = None,
) -> Iterator[TargetBatch]:
    """Yields endless training batches of the target domain, with the pseudo labels that `read` reads."""
    strong = StrongAugmentation(
        order=config.views.strong_order, translation=config.views.strong_translation
    )
    views = TargetViews(
        target_dataset(config),
        _weak_view(config),
        strong,
        read,
        on_device=config.views.on_device,
    )
    return _batches(config, views, f"{stage} target", process, batch_size, start)


def _weak_view(config: Config, size: tuple[int, int] | None = None) -> WeakView:
    views = config.views
    return WeakView(
        full_size=size or views.full_size, crop=views.crop, width=views.width, scale=views.scale
    )


def _batches(
    config: Config,
    views: SourceViews | TargetViews,
    purpose: str,
    process: Process,
    batch_size: int,
    start: int,
) -> Iterator[Any]:
    share, rest = divmod(batch_size, process.world_size * config.accumulate)
    if rest or not share:
        raise SystemExit(
            f"batch_size {batch_size} must be a multiple of processes ({process.world_size}) times "
            f"accumulate ({config.accumulate})"
        )
    sampler = DrawSampler(
        len(views),
        share,
        derive_seed(config.seed, purpose),
        start=start * config.accumulate,
        rank=process.rank,
        world_size=process.world_size,
    )
    loader = DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=process.device.type == "cuda",
        persistent_workers=config.workers > 0,
        generator=torch.Generator(),  # else a loader begins with a draw from the global random state
    )
    for batch in loader:
        yield batch.to(process.device).finish()


def training_picture(config: Config, image: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
    """Shows the first image of a batch, its labels, and other images beside them.

    Args:
        config: Settings.
        image: (B, 3, H, W) uint8.
        labels: (B, h, w) class indices.
        others: (B, 3, H, W) uint8 each.

    Returns:
        (3, H, W') uint8.
    """
    grown = F.interpolate(labels[:1, None].float(), image.shape[2:])[0, 0].long()
    shown = overlay(image[0], grown, label_space(config).palette, alpha=0.7)
    pictures = [image[0], shown, *(other[0] for other in others)]
    return panel(pictures, columns=len(pictures)).cpu()
