import pickle
import traceback
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cpsl.data.changes import StrongChanges
from cpsl.data.color import LabStatistics, lab_statistics
from cpsl.data.labels import LabelSpace
from cpsl.data.sample import Sample
from cpsl.data.sampler import DrawSampler
from cpsl.data.training import (
    Draw,
    SourceBatch,
    SourceViews,
    TargetBatch,
    TargetViews,
    collate,
    whole_image,
)
from cpsl.data.views import StrongAugmentation, WeakView
from cpsl.geometry import View, carry

WEAK = WeakView(full_size=(64, 128), crop=(32, 48), width=130)
SIZES = [(50, 90), (60, 100), (64, 128), (40, 100)]


class Images:
    """Images of four sizes; the label of a pixel follows from its place."""

    label_space = LabelSpace(("a", "b"), ((0, 0, 0), (255, 255, 255)))

    def __init__(self, labelled: bool = True, label_size: tuple[int, int] | None = None) -> None:
        self.names = [f"street_{i}" for i in range(len(SIZES))]
        self.labelled = labelled
        self.label_size = label_size

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Tensor:
        height, width = SIZES[index]
        y, x = np.mgrid[:height, :width] / height
        waves = [np.sin((2 + c) * x + index) * np.cos((4 - c) * y + c) for c in range(3)]
        return torch.from_numpy((130 + 70 * np.stack(waves)).astype(np.uint8))

    def __getitem__(self, index: int) -> Sample:
        label = blocks(self.label_size or SIZES[index]) if self.labelled else None
        return Sample(self.image(index), label, self.names[index])


def blocks(size: tuple[int, int]) -> Tensor:
    """Returns labels 0...14 in a grid of 3 x 5 that spans a label map of any size."""
    y = torch.arange(size[0]) * 3 // size[0]
    x = torch.arange(size[1]) * 5 // size[1]
    return (y[:, None] * 5 + x).to(torch.uint8)


def soft_labels(name: str) -> Tensor:
    return torch.full((2, 9, 17), float(name.split("_")[1]))


def missing(name: str) -> Tensor:
    raise FileNotFoundError("no soft label")


def everything() -> TargetViews:
    return TargetViews(Images(), WEAK, StrongAugmentation(), soft_labels)


def unfinished() -> tuple[SourceViews, TargetViews]:
    return (
        SourceViews(Images(), WEAK, Images(), on_device=True),
        TargetViews(Images(), WEAK, StrongAugmentation(), soft_labels, on_device=True),
    )


ALL_VIEWS = [SourceViews(Images(), WEAK, Images()), everything(), *unfinished()]


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, View) and isinstance(b, View):
        return a.size == b.size and equal(a.matrix, b.matrix) and equal(a.hidden, b.hidden)
    if isinstance(a, StrongChanges) and isinstance(b, StrongChanges):
        return all(equal(part, vars(b)[name]) for name, part in vars(a).items())
    if isinstance(a, LabStatistics) and isinstance(b, LabStatistics):
        return equal(a.mean, b.mean) and equal(a.deviation, b.deviation)
    return a == b


def same(a: SourceBatch | TargetBatch, b: SourceBatch | TargetBatch) -> bool:
    return type(a) is type(b) and all(equal(part, vars(b)[name]) for name, part in vars(a).items())


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_an_item_is_a_function_of_its_draw(views: SourceViews | TargetViews) -> None:
    first = views[Draw(1, 7)]
    np.random.seed(3)
    torch.manual_seed(3)
    assert same(first, views[Draw(1, 7)])
    assert not same(first, views[Draw(1, 8)])
    assert not same(first, views[Draw(2, 7)])


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_a_batch_is_its_items_one_by_one(views: SourceViews | TargetViews) -> None:
    draws = [Draw(3, 1), Draw(0, 2), Draw(3, 3)]
    batch = collate([views[draw] for draw in draws])
    assert batch.names == ["street_3", "street_0", "street_3"]
    for i, draw in enumerate(draws):
        for name, part in vars(views[draw]).items():
            joined = vars(batch)[name]
            if isinstance(part, Tensor):
                assert torch.equal(joined[i], part[0])
            elif isinstance(part, View):
                assert torch.equal(joined.matrix[i], part.matrix[0])
                if part.hidden is not None:
                    assert torch.equal(joined.hidden[i], part.hidden[0])
            elif isinstance(part, LabStatistics):
                assert torch.equal(joined.mean[i], part.mean[0])
                assert torch.equal(joined.deviation[i], part.deviation[0])
            elif isinstance(part, StrongChanges):
                assert torch.equal(joined.operations[i], part.operations[0])
                assert torch.equal(joined.view.matrix[i], part.view.matrix[0])
            else:
                assert isinstance(joined, list) or joined is part is None


def test_workers_change_nothing() -> None:
    views = everything()

    def batches(workers: int) -> list[TargetBatch]:
        sampler = DrawSampler(len(views), batch_size=2, seed=5)
        loader = DataLoader(views, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        return list(islice(loader, 3))

    assert all(same(a, b) for a, b in zip(batches(0), batches(1), strict=True))


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_workers_can_be_spawned(views: SourceViews | TargetViews) -> None:
    assert same(pickle.loads(pickle.dumps(views))[Draw(1, 2)], views[Draw(1, 2)])


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_the_parts_of_a_target_item_show_one_image(index: int) -> None:
    item = everything()[Draw(index, 11)]
    original = Images().image(index)[None].float()
    native = View.whole(SIZES[index])
    for image, view in [(item.weak, item.weak_view), (item.whole, item.whole_view)]:
        expected, seen = carry(original, native, view)
        assert seen.all()
        assert image.dtype == torch.uint8
        assert (image.float() - expected).abs().mean() < 1.5
    assert item.strong.shape == item.weak.shape
    assert item.strong_view.hidden is not None

    # From the whole image into the crop, as a trainer carries its teacher's output.
    carried, seen = carry(item.whole.float(), item.whole_view, item.weak_view)
    assert seen.all()
    assert (carried - item.weak.float()).abs().mean() < 2.5
    assert torch.equal(item.whole[0], whole_image(Images().image(index), (64, 128)))
    assert (item.pseudo_labels == index).all()


def test_a_source_label_of_another_size_than_its_image_lands_in_its_place() -> None:
    draw = Draw(1, 9)
    expected = SourceViews(Images(), WEAK)[draw].label
    got = SourceViews(Images(label_size=(120, 200)), WEAK)[draw].label
    assert (got == expected).float().mean() > 0.9
    assert expected.unique().numel() > 3


def test_the_source_takes_the_colours_of_the_target() -> None:
    class Dark(Images):
        def image(self, index: int) -> Tensor:
            return super().image(index) // 3

    draw = Draw(2, 0)
    plain, styled = SourceViews(Images(), WEAK)[draw], SourceViews(Images(), WEAK, Dark())[draw]
    assert torch.equal(plain.label, styled.label)
    brightness = [float(lab_statistics(batch.image[0]).mean[0]) for batch in (plain, styled)]
    assert brightness[1] < 0.6 * brightness[0]


def test_without_a_store_there_are_no_pseudo_labels() -> None:
    views = TargetViews(Images(labelled=False), WEAK, StrongAugmentation())
    batch = collate([views[Draw(0, 0)], views[Draw(1, 1)]])
    assert batch.weak.shape == (2, 3, 32, 48)
    assert batch.pseudo_labels.shape == (2, 0)


def test_moving_a_batch_moves_all_its_parts() -> None:
    batch = everything()[Draw(0, 0)].to("meta")
    parts = [part for part in vars(batch).values() if isinstance(part, Tensor)]
    views = [part for part in vars(batch).values() if isinstance(part, View)]
    assert len(parts) == 4
    assert len(views) == 3
    assert all(part.is_meta for part in parts)
    assert all(view.matrix.is_meta for view in views)
    assert batch.strong_view.hidden.is_meta


def test_what_is_left_to_the_device_is_finished_as_the_loader_would() -> None:
    draws = [Draw(i % 4, i) for i in range(12)]
    for views, later in zip(
        (SourceViews(Images(), WEAK, Images()), everything()), unfinished(), strict=True
    ):
        expected, batch = (collate([each[draw] for draw in draws]) for each in (views, later))
        finished = batch.finish()
        assert not same(batch, finished)
        for name, part in vars(expected).items():
            got = vars(finished)[name]
            if name == "image" or name == "strong":
                difference = (got.int() - part.int()).abs()
                assert (difference > 1).float().mean() < 0.002
                assert difference.float().mean() < 0.1
            else:
                assert equal(got, part)
        assert finished.finish() is finished
        assert expected.finish() is expected


def test_strong_images_are_not_there_before_they_are_finished() -> None:
    _, views = unfinished()
    batch = collate([views[Draw(0, 0)], views[Draw(1, 1)]])
    assert batch.strong.shape == (2, 0)
    assert batch.finish().strong.shape == (2, 3, 32, 48)


def test_without_a_style_there_is_nothing_to_finish() -> None:
    batch = SourceViews(Images(), WEAK, on_device=True)[Draw(0, 0)]
    assert same(batch, SourceViews(Images(), WEAK)[Draw(0, 0)])
    assert batch.finish() is batch


def test_moving_an_unfinished_batch_moves_what_is_left_to_do() -> None:
    source, target = (views[Draw(0, 0)].to("meta") for views in unfinished())
    for colors in (source.style_colors, source.own_colors):
        assert colors.mean.is_meta
        assert colors.deviation.is_meta
    assert target.changes.operations.is_meta
    assert target.changes.view.matrix.is_meta


@pytest.mark.cuda
def test_batches_are_finished_without_waiting_for_the_device() -> None:
    for views in unfinished():
        draws = [Draw(i, i) for i in range(4)]
        loader = DataLoader(views, batch_size=4, sampler=draws, collate_fn=collate, pin_memory=True)
        batch = next(iter(loader))
        torch.cuda.set_sync_debug_mode("error")
        try:
            finished = batch.to("cuda").finish()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (finished.image if isinstance(finished, SourceBatch) else finished.strong).is_cuda


@pytest.mark.cuda
def test_batches_are_pinned_by_a_loader() -> None:
    loader = DataLoader(everything(), sampler=[Draw(0, 0)], collate_fn=collate, pin_memory=True)
    batch = next(iter(loader))
    assert batch.strong.is_pinned()
    assert batch.strong_view.hidden.is_pinned()
    assert batch.to("cuda").weak_view.matrix.is_cuda


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("views", "kind"),
    [
        (SourceViews(Images(labelled=False), WEAK), "ValueError"),
        (TargetViews(Images(), WEAK, StrongAugmentation(), missing), "FileNotFoundError"),
    ],
)
def test_errors_name_the_image(views: SourceViews | TargetViews, kind: str, workers: int) -> None:
    loader = DataLoader(views, sampler=[Draw(2, 0)], num_workers=workers, collate_fn=collate)
    iterator = iter(loader)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        next(iterator)
    text = "".join(traceback.format_exception(caught.value))
    assert kind in text
    assert "street_2" in text
    if workers:
        # The error's traceback keeps the iterator, and its worker, alive until some later test.
        iterator._shutdown_workers()
