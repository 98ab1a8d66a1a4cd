import pickle
import traceback
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cpsl.data.color import LabStatistics, lab_statistics
from cpsl.data.jitter import ColorJitter
from cpsl.data.labels import LabelSpace
from cpsl.data.sample import Sample
from cpsl.data.sampler import SeededSampler
from cpsl.data.training import (
    JoinedViews,
    SeededIndex,
    SourceBatch,
    SourceViews,
    TargetBatch,
    TargetViews,
    collate,
    whole_image,
)
from cpsl.data.views import StrongAugmentation, WeakView
from cpsl.geometry import View, warp

WEAK = WeakView(full_size=(64, 128), crop=(32, 48), width=130)
SIZES = [(50, 90), (60, 100), (64, 128), (40, 100)]


class Images:
    """Images of four sizes; the label of a pixel is a function of its position."""

    label_space = LabelSpace(("a", "b"), ((0, 0, 0), (255, 255, 255)))

    def __init__(self, labeled: bool = True, label_size: tuple[int, int] | None = None) -> None:
        self.names = [f"street_{i}" for i in range(len(SIZES))]
        self.labeled = labeled
        self.label_size = label_size

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Tensor:
        height, width = SIZES[index]
        y, x = np.mgrid[:height, :width] / height
        waves = [np.sin((2 + c) * x + index) * np.cos((4 - c) * y + c) for c in range(3)]
        return torch.from_numpy((130 + 70 * np.stack(waves)).astype(np.uint8))

    def __getitem__(self, index: int) -> Sample:
        label = blocks(self.label_size or SIZES[index]) if self.labeled else None
        return Sample(self.image(index), label, self.names[index])


class Dark(Images):
    def image(self, index: int) -> Tensor:
        return super().image(index) // 3


def blocks(size: tuple[int, int]) -> Tensor:
    """Returns labels 0...14 in a grid of 3 x 5 that spans a label map of any size."""
    y = torch.arange(size[0]) * 3 // size[0]
    x = torch.arange(size[1]) * 5 // size[1]
    return (y[:, None] * 5 + x).to(torch.uint8)


def soft_labels(name: str) -> Tensor:
    return torch.full((2, 9, 17), float(name.split("_")[1]))


def missing(name: str) -> Tensor:
    raise FileNotFoundError("no soft label")


def target_views() -> TargetViews:
    return TargetViews(Images(), WEAK, StrongAugmentation(), soft_labels)


def deferred() -> tuple[SourceViews, TargetViews]:
    return (
        SourceViews(Images(), WEAK, Images(), on_device=True),
        TargetViews(Images(), WEAK, StrongAugmentation(), soft_labels, on_device=True),
    )


ALL_VIEWS = [SourceViews(Images(), WEAK, Images()), target_views(), *deferred()]


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, View) and isinstance(b, View):
        return a.size == b.size and equal(a.matrix, b.matrix) and equal(a.cutout, b.cutout)
    if isinstance(a, LabStatistics) and isinstance(b, LabStatistics):
        return equal(a.mean, b.mean) and equal(a.deviation, b.deviation)
    return a == b


def same(a: SourceBatch | TargetBatch, b: SourceBatch | TargetBatch) -> bool:
    return type(a) is type(b) and all(equal(part, vars(b)[name]) for name, part in vars(a).items())


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_an_item_is_a_function_of_its_index_and_seed(views: SourceViews | TargetViews) -> None:
    first = views[SeededIndex(1, 7)]
    np.random.seed(3)
    torch.manual_seed(3)
    assert same(first, views[SeededIndex(1, 7)])
    assert not same(first, views[SeededIndex(1, 8)])
    assert not same(first, views[SeededIndex(2, 7)])


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_a_batch_is_its_items_one_by_one(views: SourceViews | TargetViews) -> None:
    indices = [SeededIndex(3, 1), SeededIndex(0, 2), SeededIndex(3, 3)]
    batch = collate([views[index] for index in indices])
    assert batch.names == ["street_3", "street_0", "street_3"]
    for i, index in enumerate(indices):
        for name, part in vars(views[index]).items():
            joined = vars(batch)[name]
            if isinstance(part, Tensor):
                assert torch.equal(joined[i], part[0])
            elif isinstance(part, View):
                assert torch.equal(joined.matrix[i], part.matrix[0])
                if part.cutout is not None:
                    assert torch.equal(joined.cutout[i], part.cutout[0])
            elif isinstance(part, LabStatistics):
                assert torch.equal(joined.mean[i], part.mean[0])
                assert torch.equal(joined.deviation[i], part.deviation[0])
            elif isinstance(part, list):
                assert joined[i] == part[0]
            else:
                assert joined is part is None


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    views = target_views()

    def batches(workers: int) -> list[TargetBatch]:
        sampler = SeededSampler(len(views), batch_size=2, seed=5)
        loader = DataLoader(views, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        return list(islice(loader, 3))

    assert all(same(a, b) for a, b in zip(batches(0), batches(1), strict=True))


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_views_can_be_pickled_for_spawned_workers(views: SourceViews | TargetViews) -> None:
    assert same(pickle.loads(pickle.dumps(views))[SeededIndex(1, 2)], views[SeededIndex(1, 2)])


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_the_views_of_a_target_item_agree(index: int) -> None:
    item = target_views()[SeededIndex(index, 11)]
    original = Images().image(index)[None].float()
    native = View.whole(SIZES[index])
    for image, view in [(item.weak, item.weak_view), (item.whole, item.whole_view)]:
        expected, valid = warp(original, native, view)
        assert valid.all()
        assert image.dtype == torch.uint8
        assert (image.float() - expected).abs().mean() < 1.5
    assert item.strong.shape == item.weak.shape
    assert item.strong_view.cutout is not None

    # From the whole image to the crop, as training steps warp the teacher's output.
    warped, valid = warp(item.whole.float(), item.whole_view, item.weak_view)
    assert valid.all()
    assert (warped - item.weak.float()).abs().mean() < 2.5
    assert torch.equal(item.whole[0], whole_image(Images().image(index), (64, 128)))
    assert (item.pseudo_labels == index).all()


def test_a_source_label_of_another_size_than_its_image_is_aligned() -> None:
    index = SeededIndex(1, 9)
    expected = SourceViews(Images(), WEAK)[index].label
    got = SourceViews(Images(label_size=(120, 200)), WEAK)[index].label
    assert (got == expected).float().mean() > 0.9
    assert expected.unique().numel() > 3


def test_the_source_gets_the_colors_of_the_target() -> None:
    index = SeededIndex(2, 0)
    plain, styled = SourceViews(Images(), WEAK)[index], SourceViews(Images(), WEAK, Dark())[index]
    assert torch.equal(plain.label, styled.label)
    brightness = [float(lab_statistics(batch.image[0]).mean[0]) for batch in (plain, styled)]
    assert brightness[1] < 0.6 * brightness[0]


def jittered(on_device: bool, share: float = 0.5) -> SourceViews:
    jitter = ColorJitter(0.4, hue=0.05, blur=0.3)
    return SourceViews(Images(), WEAK, Images(), color_transfer=share, jitter=jitter, on_device=on_device)


def test_a_share_of_the_views_takes_the_colors_of_the_target() -> None:
    indices = [SeededIndex(i % 4, i) for i in range(200)]
    own, all_styled, some = (
        [SourceViews(Images(), WEAK, Dark(), color_transfer=share)[index].image for index in indices]
        for share in (0, 1, 0.3)
    )
    kept = [torch.equal(a, b) for a, b in zip(some, own, strict=True)]
    assert 0.6 < sum(kept) / len(kept) < 0.8
    assert not any(map(torch.equal, all_styled, own))
    assert all(map(torch.equal, own, (SourceViews(Images(), WEAK)[index].image for index in indices)))


def test_a_deferred_share_agrees_with_that_of_the_loader() -> None:
    indices = [SeededIndex(i % 4, i) for i in range(24)]
    for share in (0.0, 0.5):
        expected = collate([jittered(False, share)[index] for index in indices])
        applied = collate([jittered(True, share)[index] for index in indices]).apply_deferred()
        assert (applied.image.int() - expected.image.int()).abs().float().mean() < 1
        assert torch.equal(applied.label, expected.label)
    unstyled = SourceViews(Images(), WEAK, Images(), color_transfer=0.0, on_device=True)
    for index in indices:
        assert torch.equal(unstyled[index].apply_deferred().image, SourceViews(Images(), WEAK)[index].image)


def test_joined_views_are_those_of_each_source() -> None:
    plain, styled = SourceViews(Images(), WEAK), jittered(False)
    joined = JoinedViews({"a": plain, "b": styled})
    assert len(joined) == 8
    for index in range(8):
        batch = joined[SeededIndex(index, index)]
        views, name = (plain, "a") if index < 4 else (styled, "b")
        expected = views[SeededIndex(index % 4, index)]
        assert torch.equal(batch.image, expected.image)
        assert batch.names == [f"{name}/{expected.names[0]}"]
    with pytest.raises(IndexError, match="8"):
        joined[SeededIndex(8, 0)]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="color_transfer"):
        SourceViews(Images(), WEAK, color_transfer=share)


def test_without_a_store_there_are_no_pseudo_labels() -> None:
    views = TargetViews(Images(labeled=False), WEAK, StrongAugmentation())
    batch = collate([views[SeededIndex(0, 0)], views[SeededIndex(1, 1)]])
    assert batch.weak.shape == (2, 3, 32, 48)
    assert batch.pseudo_labels.shape == (2, 0)


def test_moving_a_batch_moves_all_its_parts() -> None:
    batch = target_views()[SeededIndex(0, 0)].to("meta")
    parts = [part for part in vars(batch).values() if isinstance(part, Tensor)]
    views = [part for part in vars(batch).values() if isinstance(part, View)]
    assert len(parts) == 4
    assert len(views) == 3
    assert all(part.is_meta for part in parts)
    assert all(view.matrix.is_meta for view in views)
    assert batch.strong_view.cutout.is_meta


def test_deferred_operations_agree_with_those_of_the_loader() -> None:
    indices = [SeededIndex(i % 4, i) for i in range(12)]
    for views, later in zip((SourceViews(Images(), WEAK, Images()), target_views()), deferred(), strict=True):
        expected, batch = (collate([each[index] for index in indices]) for each in (views, later))
        applied = batch.apply_deferred()
        assert not same(batch, applied)
        for name, part in vars(expected).items():
            got = vars(applied)[name]
            if name == "image" or name == "strong":
                assert (got.int() - part.int()).abs().float().mean() < 1
            else:
                assert equal(got, part)
        assert applied.apply_deferred() is applied
        assert expected.apply_deferred() is expected


def test_deferred_strong_images_are_empty() -> None:
    _, views = deferred()
    batch = collate([views[SeededIndex(0, 0)], views[SeededIndex(1, 1)]])
    assert batch.strong.shape == (2, 0)
    assert batch.apply_deferred().strong.shape == (2, 3, 32, 48)


def test_without_color_transfer_nothing_is_deferred() -> None:
    batch = SourceViews(Images(), WEAK, on_device=True)[SeededIndex(0, 0)]
    assert same(batch, SourceViews(Images(), WEAK)[SeededIndex(0, 0)])
    assert batch.apply_deferred() is batch


def test_moving_a_batch_moves_the_deferred_statistics() -> None:
    source = deferred()[0][SeededIndex(0, 0)].to("meta")
    for colors in (source.style_colors, source.own_colors):
        assert colors.mean.is_meta
        assert colors.deviation.is_meta


@pytest.mark.cuda
def test_deferred_operations_do_not_synchronize_a_gpu() -> None:
    for views in deferred():
        indices = [SeededIndex(i, i) for i in range(4)]
        loader = DataLoader(views, batch_size=4, sampler=indices, collate_fn=collate, pin_memory=True)
        batch = next(iter(loader))
        torch.cuda.set_sync_debug_mode("error")
        try:
            applied = batch.to("cuda").apply_deferred()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (applied.image if isinstance(applied, SourceBatch) else applied.strong).is_cuda


@pytest.mark.cuda
def test_batches_are_pinned_by_a_loader() -> None:
    loader = DataLoader(target_views(), sampler=[SeededIndex(0, 0)], collate_fn=collate, pin_memory=True)
    batch = next(iter(loader))
    assert batch.strong.is_pinned()
    assert batch.strong_view.cutout.is_pinned()
    assert batch.to("cuda").weak_view.matrix.is_cuda


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("views", "kind"),
    [
        (SourceViews(Images(labeled=False), WEAK), "ValueError"),
        (TargetViews(Images(), WEAK, StrongAugmentation(), missing), "FileNotFoundError"),
    ],
)
def test_errors_name_the_image(views: SourceViews | TargetViews, kind: str, workers: int) -> None:
    loader = DataLoader(views, sampler=[SeededIndex(2, 0)], num_workers=workers, collate_fn=collate)
    iterator = iter(loader)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        next(iterator)
    text = "".join(traceback.format_exception(caught.value))
    assert kind in text
    assert "street_2" in text
    if workers:
        # The error's traceback keeps the iterator, and its worker, alive until some later test.
        iterator._shutdown_workers()


class Damaged(Images):
    def __init__(self, damaged: bool, name: str) -> None:
        super().__init__()
        self.names = [f"{name}_{i}" for i in range(len(SIZES))]
        self.damaged = damaged

    def image(self, index: int) -> Tensor:
        if self.damaged:
            raise ValueError("it is empty")
        return super().image(index)


@pytest.mark.parametrize("damaged", ["own", "style"])
def test_an_error_names_the_image_that_could_not_be_read(damaged: str) -> None:
    own, style = (Damaged(damaged == name, name) for name in ("own", "style"))
    with pytest.raises(ValueError, match="it is empty") as error:
        SourceViews(own, WEAK, style)[SeededIndex(0, seed=0)]
    (note,) = error.value.__notes__
    assert f"{damaged}_" in note
