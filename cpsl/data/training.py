"""Training batches: random views of source and target images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cpsl.data.color import LabStatistics, lab_statistics, transfer_color
from cpsl.data.jitter import ColorJitter
from cpsl.data.operations import Operation, apply_operations, apply_operations_to_batch
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

CROP_TRIALS = 10
"""How often a view is sampled at most until it shows enough of a rare class (DAFormer)."""

RARE_SHARE = 0.005
"""Share of a view that is enough; DAFormer asks for 1500 pixels of 512x512."""


@dataclass(frozen=True)
class SeededIndex:
    """Index of an image, and the seed of its random views.

    Attributes:
        index: Index of the image.
        seed: Seed of its views.
        rare_class: Class that the view of a labeled image should show, see `RareClassSampling`.
    """

    index: int
    seed: int
    rare_class: int | None = None


class _Batch:
    """Base of the batches."""

    def to(self, device: torch.device | str) -> Self:
        """Moves the batch to a device."""
        # A copy to the CPU would be read before it is complete.
        non_blocking = torch.device(device).type != "cpu"
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

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
        own_colors: Statistics (B, 3) of the whole images in their own colors; None with `style_colors`. An
            image keeps its colors if both are equal.
        operations: Operations on the appearance of each image that `apply_deferred` applies after the color
            transfer; None if there are none.
    """

    image: Tensor
    label: Tensor
    names: list[str]
    style_colors: LabStatistics | None = None
    own_colors: LabStatistics | None = None
    operations: list[list[Operation]] | None = None

    def apply_deferred(self) -> "SourceBatch":
        """Applies the deferred color transfer and jitter on the batch's device, without synchronizing."""
        image = self.image
        if self.style_colors is not None and self.own_colors is not None:
            pairs = zip(self.style_colors, self.own_colors, strict=True)
            kept = torch.stack([(style == own).all(dim=1) for style, own in pairs]).all(dim=0)
            styled = transfer_color(image, self.style_colors, self.own_colors)
            image = torch.where(kept[:, None, None, None], image, styled)
        if self.operations is not None:
            image = apply_operations_to_batch(image, self.operations)
        if image is self.image:
            return self
        return replace(self, image=image, style_colors=None, own_colors=None, operations=None)


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
        color_transfer: Probability that a view takes the colors of `style_from`.
        jitter: Photometric augmentation, after the color transfer; None for none.
        on_device: Defers color transfer and jitter to `SourceBatch.apply_deferred`.

    Raises:
        ValueError: color_transfer is not in 0...1.

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
    color_transfer: float = field(default=1.0, kw_only=True)
    jitter: ColorJitter | None = field(default=None, kw_only=True)
    on_device: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.color_transfer <= 1:  # NaN is refused too
            raise ValueError(f"color_transfer must lie in 0...1, got {self.color_transfer}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SeededIndex) -> SourceBatch:
        with _errors_name(self.dataset.names[item.index]):
            whole, stored, name = self.dataset[item.index]
            if stored is None:
                raise ValueError("a source image needs a label, but this one has none")
            random = np.random.default_rng(item.seed)
            view, label = self._sample_view(_size(whole), stored, random, item.rare_class)
            batch = SourceBatch(render(whole, view)[None], label[None], [name])
            # On the device a whole batch is transferred, also images that keep their colors.
            if self.style_from is not None and (self.color_transfer or self.on_device):
                own = style = lab_statistics(whole)
                # A generator of its own: the style of an image does not depend on the share.
                if np.random.default_rng((item.seed, 1)).random() < self.color_transfer:
                    index = int(random.integers(len(self.style_from)))
                    with _errors_name(self.style_from.names[index]):
                        style = lab_statistics(self.style_from.image(index))
                batch.style_colors = LabStatistics(*(part[None] for part in style))
                batch.own_colors = LabStatistics(*(part[None] for part in own))
            if self.jitter is not None:
                batch.operations = [self.jitter.sample(random)]
            return batch if self.on_device else _apply(batch)

    def _sample_view(
        self, size: tuple[int, int], stored: Tensor, random: np.random.Generator, rare_class: int | None
    ) -> tuple[View, Tensor]:
        """Samples a view, again while it shows too little of the rare class, and renders its label."""
        # A label may have another resolution than its image.
        scale = torch.tensor([[stored.shape[1] / size[1]], [stored.shape[0] / size[0]]])
        for _ in range(1 if rare_class is None else CROP_TRIALS):
            view = self.weak.sample(size, random)
            label = render_label(stored, View(view.matrix * scale, view.size))
            if rare_class is not None and (label == rare_class).float().mean() >= RARE_SHARE:
                break
        return view, label


@dataclass(eq=False)
class JoinedViews(Dataset[SourceBatch]):
    """Views of several data sets of labeled images, one after the other.

    Attributes:
        parts: Views of each data set by its name; `SourceBatch.names` begin with this name.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, write_streets
        >>> folder = tempfile.mkdtemp()
        >>> write_streets(folder, layout="gta5", style="game", count=2)
        >>> views = SourceViews(GTA5(folder), WeakView(full_size=(128, 256), crop=(64, 128), width=256))
        >>> JoinedViews({"game": views, "again": views})[SeededIndex(2, seed=0)].names
        ['again/00001']
    """

    parts: Mapping[str, SourceViews]

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, item: SeededIndex) -> SourceBatch:
        index = item.index
        for name, views in self.parts.items():
            if index < len(views):
                batch = views[replace(item, index=index)]
                return replace(batch, names=[f"{name}/{image}" for image in batch.names])
            index -= len(views)
        raise IndexError(f"there are {len(self)} images, got the index {item.index}")


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


def _apply(batch: SourceBatch) -> SourceBatch:
    """Applies color transfer and jitter to a batch of one on the host, with Pillow."""
    image = batch.image[0]
    if batch.style_colors is not None and batch.own_colors is not None:
        colors = batch.style_colors, batch.own_colors
        style, own = (LabStatistics(*(part[0] for part in s)) for s in colors)
        if not all(map(torch.equal, style, own)):
            image = transfer_color(image, style, own)
    if batch.operations is not None:
        image = apply_operations(image, batch.operations[0])
    return replace(batch, image=image[None], style_colors=None, own_colors=None, operations=None)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


@contextmanager
def _errors_name(image: str) -> Iterator[None]:
    """Adds the image's name to errors, as a note, which a loader passes on from its workers.

    An error keeps the name of the image within, whose colors another one should take.
    """
    note = "This happened with the image "
    try:
        yield
    except Exception as error:
        if not any(known.startswith(note) for known in getattr(error, "__notes__", [])):
            error.add_note(note + image)
        raise
