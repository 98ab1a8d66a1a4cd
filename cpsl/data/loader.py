"""Loaders of random training batches."""

import os
import signal
from collections.abc import Callable
from threading import Thread

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cpsl._internal.distributed import rank_and_size
from cpsl._internal.randomness import derive_seed
from cpsl.data.sample import SegmentationDataset
from cpsl.data.sampler import Sampling, SeededSampler
from cpsl.data.training import Batch, SourceBatch, SourceViews, TargetBatch, TargetViews, collate
from cpsl.data.views import StrongAugmentation, WeakView


def training_loader(
    views: Dataset[Batch],
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    sampling: Sampling | None = None,
) -> DataLoader[Batch]:
    """Returns an endless loader of random batches that are divided among the ranks.

    A batch depends on the seed and on its number alone, see `SeededSampler`.

    Args:
        views: `SourceViews`, `JoinedViews` or `TargetViews`.
        batch_size: Images per batch of this rank.
        seed: Seed of the order and of the augmentation.
        start: Number of the first batch, to resume a run.
        num_workers: Number of processes that load images.
        pin_memory: Whether batches are copied to page-locked memory, for a CUDA device.
        sampling: Samples the images, see `SeededSampler`; None samples each once per epoch.

    Raises:
        ValueError: There are no images, or batch_size is not positive.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, SourceViews, WeakView, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="gta5", style="game", count=2)
        >>> weak = WeakView(full_size=(128, 256), crop=(64, 128), width=256)
        >>> batch = next(iter(training_loader(SourceViews(GTA5(folder), weak), batch_size=2)))
        >>> batch.image.shape, batch.label.shape
        (torch.Size([2, 3, 64, 128]), torch.Size([2, 64, 128]))
    """
    rank, world_size = rank_and_size()
    length: int = len(views)  # type: ignore[arg-type]  # torch's Dataset declares no length
    sampler = SeededSampler(
        length, batch_size, seed, start=start, rank=rank, world_size=world_size, sampling=sampling
    )
    return DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=_outlive_signals,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # the default takes a number from the global random state
    )


def domain_loaders(
    source: SegmentationDataset,
    target: SegmentationDataset,
    view: WeakView,
    batch_size: int,
    *,
    pseudo_labels: Callable[[str], Tensor] | None = None,
    seed: int = 0,
    num_workers: int = 0,
) -> tuple[DataLoader[SourceBatch], DataLoader[TargetBatch]]:
    """Returns endless loaders of both domains with the augmentation of the paper.

    Source images take the LAB mean and deviation of random target images; target images come in a weak and a
    strong view and as a whole. For other choices use `SourceViews`, `TargetViews` and `training_loader`.

    Args:
        source: Labeled images.
        target: Images; labels are not used.
        view: Weak view of both.
        batch_size: Images per batch of this rank, in each domain.
        pseudo_labels: Reads the pseudo labels of a target image by its name, such as `SoftLabelStore.read`.
        seed: Seed of orders and augmentation.
        num_workers: Number of processes that load images, per domain.

    Raises:
        ValueError: There are no images, or batch_size is not positive.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, Cityscapes, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(f"{folder}/game", layout="gta5", style="game", count=2)
        >>> write_streets(f"{folder}/real", layout="cityscapes", style="real", count=2)
        >>> source, target = GTA5(f"{folder}/game"), Cityscapes(f"{folder}/real")
        >>> loaders = domain_loaders(source, target, WeakView.of_size((128, 256)), batch_size=2)
        >>> source_batch, target_batch = next(zip(*loaders))
        >>> source_batch.image.shape, target_batch.strong.shape
        (torch.Size([2, 3, 64, 112]), torch.Size([2, 3, 64, 112]))
    """
    source_views = SourceViews(source, view, style_from=target)
    target_views = TargetViews(target, view, StrongAugmentation(), pseudo_labels)
    sources, targets = derive_seed(seed, "source"), derive_seed(seed, "target")
    return (
        training_loader(source_views, batch_size, seed=sources, num_workers=num_workers),
        training_loader(target_views, batch_size, seed=targets, num_workers=num_workers),
    )


def _outlive_signals(worker: int) -> None:
    """Lets a process that loads images outlive SIGINT, SIGHUP, and a SIGTERM of others than its main process.

    Terminals, `timeout` and schedulers send them to all processes of a run. The main process needs images for
    its last iteration, writes a checkpoint, and then ends its loaders.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # it alone tells who sent a signal; macOS and Windows lack it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_wait_for_main_process, daemon=True).start()


def _wait_for_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
