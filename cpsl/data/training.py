"""Training batches: random views of source and target images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cpsl.data.color import LabStatistics, lab_statistics, transfer_color
from cpsl.data.sample import SegmentationDataset
from cpsl.data.views import (
    StrongAugmentation,
    StrongChanges,
    WeakView,
    render,
    render_label,
    render_strong,
    render_strong_batch,
)
from cpsl.geometry import View


@dataclass(frozen=True)
class SeededIndex:
    """Index of an image, and the seed of its random views."""

    index: int
    seed: int


class _Batch:
    """Base of the batches."""

    def to(self, device: torch.device | str) -> Self:
        """Moves the batch to a device."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Returns a copy in page-locked memory, from which a GPU copies asynchronously."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Self:
        def apply(part: Any) -> Any:
            if isinstance(part, LabStatistics):
                return LabStatistics(*map(function, part))
            return function(part) if isinstance(part, Tensor | View) else part

        return type(self)(**{name: apply(part) for name, part in vars(self).items()})


@dataclass
class SourceBatch(_Batch):
    """Labeled views.

    Attributes:
        image: (B, 3, h, w) uint8.
        label: (B, h, w) uint8, 255 where ignored.
        names: Key of each image.
        style_colors: Statistics (B, 3) of the colors that `apply_deferred` gives the images; None if the
            colors are final.
        own_colors: Statistics (B, 3) of the whole images in their own colors; None with `style_colors`.
    """

    image: Tensor
    label: Tensor
    names: list[str]
    style_colors: LabStatistics | None = None
    own_colors: LabStatistics | None = None

    def apply_deferred(self) -> "SourceBatch":
        """Applies the deferred color transfer on the batch's device, without synchronizing."""
        if self.style_colors is None or self.own_colors is None:
            return self
        image = transfer_color(self.image, self.style_colors, self.own_colors)
        return replace(self, image=image, style_colors=None, own_colors=None)


@dataclass
class TargetBatch(_Batch):
    """Views of unlabeled images, with their geometry relative to the images as stored.

    Attributes:
        weak: (B, 3, h, w) uint8, a crop.
        weak_view: Geometry of `weak`.
        strong: (B, 3, h, w) uint8, the crop with another appearance and geometry; (B, 0) while deferred.
        strong_view: Geometry of `strong`.
        whole: (B, 3, H, W) uint8, the whole image.
        whole_view: Geometry of `whole`.
        pseudo_labels: (B, ...) stored pseudo labels of the whole image; (B, 0) if there are none.
        names: Key of each image.
        changes: Operations with which `apply_deferred` renders `strong` from `weak`; None if it is rendered.
    """

    weak: Tensor
    weak_view: View
    strong: Tensor
    strong_view: View
    whole: Tensor
    whole_view: View
    pseudo_labels: Tensor
    names: list[str]
    changes: list[StrongChanges] | None = None

    def apply_deferred(self) -> "TargetBatch":
        """Renders the deferred strong views on the batch's device, without synchronizing."""
        if self.changes is None:
            return self
        strong = render_strong_batch(self.weak, self.changes)
        return replace(self, strong=strong, changes=None)


@dataclass(eq=False)
class SourceViews(Dataset[SourceBatch]):
    """Weak views of labeled images, in the colors of the target.

    It is indexed by a `SeededIndex`, see `SeededSampler`; each item is a batch of one, see `collate`.

    Attributes:
        dataset: Labeled images.
        weak: Samples the views.
        style_from: Random images of this data set give each image its LAB mean and deviation; None keeps
            the colors.
        on_device: Defers the color transfer to `SourceBatch.apply_deferred`.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="gta5", style="game", count=2)
        >>> views = SourceViews(GTA5(folder), WeakView(full_size=(128, 256), crop=(64, 128), width=256))
        >>> batch = collate([views[SeededIndex(index, seed=0)] for index in (0, 1)])
        >>> batch.image.shape, batch.label.shape
        (torch.Size([2, 3, 64, 128]), torch.Size([2, 64, 128]))
    """

    dataset: SegmentationDataset
    weak: WeakView
    style_from: SegmentationDataset | None = None
    on_device: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SeededIndex) -> SourceBatch:
        with _errors_name(self.dataset.names[item.index]):
            whole, stored, name = self.dataset[item.index]
            if stored is None:
                raise ValueError("a source image needs a label, but this one has none")
            random = np.random.default_rng(item.seed)
            view = self.weak.sample(_size(whole), random)
            image = render(whole, view)
            # A label may have another resolution than its image.
            scale = torch.tensor([[stored.shape[1] / whole.shape[2]], [stored.shape[0] / whole.shape[1]]])
            label = render_label(stored, View(view.matrix * scale, view.size))
            if self.style_from is None:
                return SourceBatch(image[None], label[None], [name])
            style = self.style_from.image(int(random.integers(len(self.style_from))))
            colors = lab_statistics(style), lab_statistics(whole)
            if self.on_device:
                batched = (LabStatistics(*(part[None] for part in statistics)) for statistics in colors)
                return SourceBatch(image[None], label[None], [name], *batched)
            return SourceBatch(transfer_color(image, *colors)[None], label[None], [name])


@dataclass(eq=False)
class TargetViews(Dataset[TargetBatch]):
    """Weak and strong views of unlabeled images.

    It is indexed by a `SeededIndex`, see `SeededSampler`; each item is a batch of one, see `collate`.

    Attributes:
        dataset: Images; their labels are not read.
        weak: Samples the weak views.
        strong: Samples strong views of the weak ones.
        read: Reads the pseudo labels of a whole image by its name, all of one shape, such as
            `SoftLabelStore.read`.
        on_device: Defers the rendering of strong views to `TargetBatch.apply_deferred`.

    Example:
        >>> import tempfile
        >>> from cpsl.data import Cityscapes, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="cityscapes", style="real", count=1)
        >>> weak = WeakView(full_size=(128, 256), crop=(64, 128), width=256)
        >>> views = TargetViews(Cityscapes(folder), weak, StrongAugmentation())
        >>> batch = views[SeededIndex(index=0, seed=0)]
        >>> batch.weak.shape, batch.strong.shape, batch.whole.shape
        (torch.Size([1, 3, 64, 128]), torch.Size([1, 3, 64, 128]), torch.Size([1, 3, 128, 256]))
    """

    dataset: SegmentationDataset
    weak: WeakView
    strong: StrongAugmentation
    read: Callable[[str], Tensor] | None = None
    on_device: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SeededIndex) -> TargetBatch:
        name = self.dataset.names[item.index]
        with _errors_name(name):
            image, random = self.dataset.image(item.index), np.random.default_rng(item.seed)
            weak_view = self.weak.sample(_size(image), random)
            weak = render(image, weak_view)
            changes, strong_view = self.strong.sample_changes(weak_view, random)
            deferred = torch.empty(0, dtype=torch.uint8)
            strong = deferred if self.on_device else render_strong(weak, changes)
            whole_view = View.whole(_size(image)).resized(self.weak.full_size)
            return TargetBatch(
                weak=weak[None],
                weak_view=weak_view,
                strong=strong[None],
                strong_view=strong_view,
                whole=render(image, whole_view)[None],
                whole_view=whole_view,
                pseudo_labels=torch.empty(1, 0) if self.read is None else self.read(name)[None],
                names=[name],
                changes=[changes] if self.on_device else None,
            )


Batch = TypeVar("Batch", SourceBatch, TargetBatch)


def collate(items: Sequence[Batch]) -> Batch:
    """Joins batches into one; the `collate_fn` of a DataLoader over views.

    Raises:
        ValueError: Their parts differ in shape.

    Example:
        >>> image, label = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
        >>> collate([SourceBatch(image, label, ["a"]), SourceBatch(image, label, ["b"])]).names
        ['a', 'b']
    """
    joined: dict[str, Any] = {}
    for name, first in vars(items[0]).items():
        parts = [getattr(item, name) for item in items]
        if isinstance(first, Tensor):
            if len({part.shape for part in parts}) > 1:
                shapes = ", ".join(
                    f"{item.names[0]} {tuple(getattr(item, name).shape[1:])}" for item in items
                )
                raise ValueError(f"{name} must have the same shape throughout a batch, got {shapes}")
            joined[name] = torch.cat(parts)
        elif isinstance(first, View):
            joined[name] = View.stack(parts)
        elif isinstance(first, LabStatistics):
            joined[name] = LabStatistics(*map(torch.cat, zip(*parts, strict=True)))
        elif isinstance(first, list):
            joined[name] = list(chain(*parts))
    return type(items[0])(**joined)


def whole_image(image: Tensor, full_size: tuple[int, int]) -> Tensor:
    """Resizes a whole image (3, H, W) uint8 to `full_size` (H', W'), as `TargetViews` does.

    Example:
        >>> whole_image(torch.zeros(3, 72, 128, dtype=torch.uint8), (32, 64)).shape
        torch.Size([3, 32, 64])
    """
    return render(image, View.whole(_size(image)).resized(full_size))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


@contextmanager
def _errors_name(image: str) -> Iterator[None]:
    """Adds the image's name to errors, as a note, which a loader passes on from its workers."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This happened with the image {image}")
        raise
