"""What a training step is fed: views of source and target images, one by one and in batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cpsl.data.batched import render_strong_batch
from cpsl.data.changes import StrongChanges
from cpsl.data.color import LabStatistics, lab_statistics, transfer_color, transfer_color_batch
from cpsl.data.sample import Sample, SegmentationDataset
from cpsl.data.views import StrongAugmentation, WeakView, render, render_label
from cpsl.geometry import View


@dataclass(frozen=True)
class Draw:
    """Which image is drawn, and the seed of everything random about it."""

    index: int
    seed: int


@dataclass(frozen=True)
class SourceBatch:
    """Labelled views.

    Attributes:
        image: (B, 3, h, w) uint8.
        label: (B, h, w) uint8, 255 where ignored.
        names: Key of each image.
        style_colors: Statistics (B, 3) of the colours that `finish` gives the images; None where that is
            done, or not wanted.
        own_colors: Statistics (B, 3) of the whole images in their own colours; None with `style_colors`.
    """

    image: Tensor
    label: Tensor
    names: list[str]
    style_colors: LabStatistics | None = None
    own_colors: LabStatistics | None = None

    def finish(self) -> "SourceBatch":
        """Does, where the batch lies, what `SourceViews` left to the device; without waiting for it."""
        if self.style_colors is None or self.own_colors is None:
            return self
        image = transfer_color_batch(self.image, self.style_colors, self.own_colors)
        return replace(self, image=image, style_colors=None, own_colors=None)

    def to(self, device: torch.device | str) -> "SourceBatch":
        """Moves the batch to a device."""
        return _map(self, lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> "SourceBatch":
        """Returns a copy in page-locked memory, from which a GPU copies without waiting."""
        return _map(self, lambda part: part.pin_memory())


@dataclass(frozen=True)
class TargetBatch:
    """Views of unlabelled images; all views are views of the image as stored.

    Attributes:
        weak: (B, 3, h, w) uint8, a crop.
        weak_view: Geometry of `weak`.
        strong: (B, 3, h, w) uint8, the crop in other colours and another geometry; (B, 0) until `finish`
            draws it.
        strong_view: Geometry of `strong`.
        whole: (B, 3, H, W) uint8, the whole image.
        whole_view: Geometry of `whole`.
        pseudo_labels: (B, ...) what is stored for the whole image; (B, 0) if nothing is.
        names: Key of each image.
        changes: What `finish` makes `strong` of `weak` by; None where that is done.
    """

    weak: Tensor
    weak_view: View
    strong: Tensor
    strong_view: View
    whole: Tensor
    whole_view: View
    pseudo_labels: Tensor
    names: list[str]
    changes: StrongChanges | None = None

    def finish(self) -> "TargetBatch":
        """Does, where the batch lies, what `TargetViews` left to the device; without waiting for it."""
        if self.changes is None:
            return self
        strong = render_strong_batch(self.weak, self.changes)
        return replace(self, strong=strong, changes=None)

    def to(self, device: torch.device | str) -> "TargetBatch":
        """Moves the batch to a device."""
        return _map(self, lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> "TargetBatch":
        """Returns a copy in page-locked memory, from which a GPU copies without waiting."""
        return _map(self, lambda part: part.pin_memory())


class SourceViews(Dataset[SourceBatch]):
    """Weak views of labelled images, in the colours of the target.

    Indexed by a `Draw`; each item is a batch of one, see `collate`.

    Args:
        dataset: Labelled images.
        weak: How views are drawn.
        style_from: Each image takes the LAB mean and deviation of a random image of this data set; none
            if None.
        on_device: Only measures these and leaves the rest to `SourceBatch.finish`.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, DrawSampler, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="gta5", style="game", count=2)
        >>> weak = WeakView(full_size=(128, 256), crop=(64, 128), width=256)
        >>> views = SourceViews(GTA5(folder), weak)
        >>> sampler = DrawSampler(len(views), batch_size=2, seed=0)
        >>> batch = next(iter(torch.utils.data.DataLoader(views, batch_sampler=sampler, collate_fn=collate)))
        >>> batch.image.shape, batch.label.shape
        (torch.Size([2, 3, 64, 128]), torch.Size([2, 64, 128]))
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        weak: WeakView,
        style_from: SegmentationDataset | None = None,
        *,
        on_device: bool = False,
    ) -> None:
        self.dataset = dataset
        self.weak = weak
        self.style_from = style_from
        self.on_device = on_device

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> SourceBatch:
        with _errors_name(self.dataset.names[draw.index]):
            return self._views(self.dataset[draw.index], np.random.default_rng(draw.seed))

    def _views(self, sample: Sample, random: np.random.Generator) -> SourceBatch:
        if sample.label is None:
            raise ValueError("a source image needs a label, this one has none")
        view = self.weak.draw(_size(sample.image), random)
        image = render(sample.image, view)
        label = _label_in_view(sample.label, _size(sample.image), view)
        if self.style_from is None:
            return SourceBatch(image[None], label[None], [sample.name])
        style = self.style_from.image(int(random.integers(len(self.style_from))))
        style_colors, own_colors = lab_statistics(style), lab_statistics(sample.image)
        if self.on_device:
            colors = [
                LabStatistics(c.mean[None], c.deviation[None]) for c in (style_colors, own_colors)
            ]
            return SourceBatch(image[None], label[None], [sample.name], *colors)
        image = transfer_color(image, style_colors, own_colors)
        return SourceBatch(image[None], label[None], [sample.name])


class TargetViews(Dataset[TargetBatch]):
    """Views of unlabelled images.

    Indexed by a `Draw`; each item is a batch of one, see `collate`.

    Args:
        dataset: Images; labels are not looked at.
        weak: How weak views are drawn.
        strong: How strong views are drawn from weak ones.
        read: Reads the pseudo labels of the whole image by its name, such as `SoftLabelStore.read`; all
            must have one shape.
        on_device: Only draws what to change in strong views, and leaves the rest to `TargetBatch.finish`.

    Example:
        >>> import tempfile
        >>> from cpsl.data import Cityscapes, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="cityscapes", style="real", count=1)
        >>> weak = WeakView(full_size=(128, 256), crop=(64, 128), width=256)
        >>> views = TargetViews(Cityscapes(folder), weak, StrongAugmentation())
        >>> batch = views[Draw(index=0, seed=0)]
        >>> batch.weak.shape, batch.strong.shape, batch.whole.shape
        (torch.Size([1, 3, 64, 128]), torch.Size([1, 3, 64, 128]), torch.Size([1, 3, 128, 256]))
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        weak: WeakView,
        strong: StrongAugmentation,
        read: Callable[[str], Tensor] | None = None,
        *,
        on_device: bool = False,
    ) -> None:
        self.dataset = dataset
        self.weak = weak
        self.strong = strong
        self.read = read
        self.on_device = on_device

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> TargetBatch:
        name = self.dataset.names[draw.index]
        with _errors_name(name):
            return self._views(
                self.dataset.image(draw.index), name, np.random.default_rng(draw.seed)
            )

    def _views(self, image: Tensor, name: str, random: np.random.Generator) -> TargetBatch:
        weak_view = self.weak.draw(_size(image), random)
        weak = render(image, weak_view)
        changes: StrongChanges | None = None
        if self.on_device:
            strong = torch.empty(0, dtype=torch.uint8)
            changes, strong_view = self.strong.draw_changes(weak_view, random)
        else:
            strong, strong_view = self.strong.draw(weak, weak_view, random)
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
            changes=changes,
        )


Batch = TypeVar("Batch", SourceBatch, TargetBatch)


def collate(items: Sequence[Batch]) -> Batch:
    """Joins batches of one into one batch; the `collate_fn` of a DataLoader over views.

    Raises:
        ValueError: Parts of them differ in shape.

    Example:
        >>> image, label = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
        >>> collate([SourceBatch(image, label, ["a"]), SourceBatch(image, label, ["b"])]).names
        ['a', 'b']
    """
    joined: dict[str, Any] = {}
    for field in fields(items[0]):
        parts = [getattr(item, field.name) for item in items]
        if isinstance(parts[0], Tensor):
            if len({part.shape for part in parts}) > 1:
                shapes = (
                    f"{item.names[0]} {tuple(part.shape[1:])}"
                    for item, part in zip(items, parts, strict=True)
                )
                raise ValueError(
                    f"{field.name} of one batch must have one shape, got {', '.join(shapes)}"
                )
            joined[field.name] = torch.cat(parts)
        elif isinstance(parts[0], View | StrongChanges):
            joined[field.name] = type(parts[0]).stack(parts)
        elif isinstance(parts[0], LabStatistics):
            joined[field.name] = LabStatistics(*map(torch.cat, zip(*parts, strict=True)))
        elif isinstance(parts[0], list):
            joined[field.name] = [name for names in parts for name in names]
    return type(items[0])(**joined)


def whole_image(image: Tensor, full_size: tuple[int, int]) -> Tensor:
    """Brings a whole image to one size, as `TargetViews` does.

    Args:
        image: (3, H, W) uint8.
        full_size: (H', W').

    Returns:
        (3, H', W') uint8.

    Example:
        >>> whole_image(torch.zeros(3, 72, 128, dtype=torch.uint8), (32, 64)).shape
        torch.Size([3, 32, 64])
    """
    return render(image, View.whole(_size(image)).resized(full_size))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _label_in_view(label: Tensor, size: tuple[int, int], view: View) -> Tensor:
    """Draws a label of the whole image, at any resolution, through a view of the image of this size."""
    scale = torch.tensor([[label.shape[1] / size[1]], [label.shape[0] / size[0]]])
    return render_label(label, replace(view, matrix=view.matrix * scale))


@contextmanager
def _errors_name(image: str) -> Iterator[None]:
    """Says in errors which image they are about; a loader passes the notes on from its workers."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This happened with the image {image}")
        raise


def _map(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    moved: dict[str, Any] = {}
    for field in fields(batch):
        part = getattr(batch, field.name)
        if isinstance(part, LabStatistics):
            moved[field.name] = LabStatistics(*map(function, part))
        elif isinstance(part, Tensor | View | StrongChanges):
            moved[field.name] = function(part)
    return replace(batch, **moved)
