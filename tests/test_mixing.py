import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.mixing import classmix, cutmix, mask_patches

SEEDS = st.integers(0, 10_000)


@given(height=st.integers(8, 40), width=st.integers(8, 40), probability=st.floats(0, 1), seed=SEEDS)
def test_images_and_labels_get_the_same_rectangle(
    height: int, width: int, probability: float, seed: int
) -> None:
    torch.manual_seed(seed)
    image = torch.zeros(5, 3, height, width, dtype=torch.uint8)
    mixed = cutmix(
        image,
        torch.zeros(5, height, width, dtype=torch.int64),
        image + 1,
        torch.ones(5, height, width, dtype=torch.uint8),
        probability=probability,
    )
    assert mixed.image.dtype == torch.uint8
    assert torch.equal(mixed.image[:, 1].long(), mixed.labels)
    share = mixed.labels.float().mean(dim=(1, 2))
    assert torch.equal(mixed.pasted, mixed.labels == 1)
    near = 1 / height + 1 / width  # the border of the box is between pixels
    assert (((share - 0.5).abs() <= near) | (share == 0)).all()


def test_images_are_mixed_with_the_given_probability() -> None:
    torch.manual_seed(0)
    image, labels = torch.zeros(500, 3, 8, 8), torch.zeros(500, 8, 8, dtype=torch.int64)
    mixed = cutmix(image, labels, image + 1, labels + 1, probability=0.3)
    assert 0.2 < (mixed.labels.amax(dim=(1, 2)) > 0).float().mean() < 0.4


def test_labels_on_a_coarser_grid_are_sampled_at_its_nodes() -> None:
    torch.manual_seed(1)
    source = torch.arange(64).reshape(1, 8, 8)
    image = torch.zeros(1, 3, 8, 8)
    mixed = cutmix(image, torch.full((1, 3, 3), 255), image, source, probability=1)
    nodes = source[:, [0, 4, 7]][:, :, [0, 4, 7]]
    pasted = mixed.labels != 255
    assert pasted.any()
    assert torch.equal(mixed.labels[pasted], nodes[pasted])


@given(
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    stride=st.integers(1, 8),
    align_corners=st.booleans(),
    seed=SEEDS,
)
def test_labels_on_any_grid_are_those_of_the_pixels_at_its_nodes(
    height: int, width: int, stride: int, align_corners: bool, seed: int
) -> None:
    """The labels are the rows and columns themselves, which a network's grid interpolates exactly."""
    torch.manual_seed(seed)
    size = (height * stride, width * stride)
    grid = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).float()
    nodes = F.interpolate(
        grid[None], (height, width), mode="bilinear", align_corners=align_corners, antialias=False
    )[0]
    labels = torch.full((2, height, width), 255)
    for axis, source in enumerate(grid.long()):
        image = torch.zeros(2, 3, *size)
        both = source.expand(2, *size)
        mixed = cutmix(image, labels, image, both, probability=1, align_corners=align_corners)
        pasted = mixed.labels[mixed.pasted] - nodes[axis].expand(2, -1, -1)[mixed.pasted]
        assert (pasted.abs() <= 0.501).all()


def labeled_images(classes: int, dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    """Returns random images (3, 3, 6, 7), and labels; about one in five is ignored."""
    labels = torch.randint(classes, (3, 6, 7))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return torch.randint(256, (3, 3, 6, 7)).to(dtype), labels


@given(
    classes=st.integers(1, 12),
    image_dtype=st.sampled_from([torch.uint8, torch.float32]),
    label_dtype=st.sampled_from([torch.uint8, torch.int64]),
    seed=SEEDS,
)
def test_half_of_the_classes_are_pasted_as_a_whole(
    classes: int, image_dtype: torch.dtype, label_dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    image, labels = labeled_images(5, image_dtype)
    other_image, other_labels = labeled_images(classes, image_dtype)
    mixed = classmix(image, labels.to(label_dtype), other_image, other_labels.to(label_dtype))
    for pasted, other in zip(mixed.pasted, other_labels, strict=True):
        present, chosen = set(other.unique().tolist()) - {255}, set(other[pasted].unique().tolist())
        assert chosen <= present  # never ignored pixels
        assert len(chosen) == (len(present) + 1) // 2
        assert torch.equal(pasted, torch.isin(other, torch.tensor(list(chosen))))
    assert torch.equal(mixed.labels, torch.where(mixed.pasted, other_labels, labels))
    assert torch.equal(mixed.image, torch.where(mixed.pasted[:, None], other_image, image))
    assert (mixed.image.dtype, mixed.labels.dtype) == (image_dtype, torch.int64)


@given(ignore_index=st.integers(0, 255), seed=SEEDS)
def test_an_image_without_labels_pastes_nothing(ignore_index: int, seed: int) -> None:
    torch.manual_seed(seed)
    (image, labels), (other_image, _) = labeled_images(5), labeled_images(5)
    other_labels = torch.full_like(labels, ignore_index)
    mixed = classmix(image, labels, other_image, other_labels, ignore_index=ignore_index)
    assert not mixed.pasted.any()
    assert torch.equal(mixed.image, image)
    assert torch.equal(mixed.labels, labels)


@given(seed=SEEDS)
def test_mixing_depends_on_the_seed_alone(seed: int) -> None:
    (image, labels), other = labeled_images(5), labeled_images(12)
    results = []
    for _ in range(2):
        torch.manual_seed(seed)
        results.append(classmix(image, labels, *other))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_any_label_may_mark_ignored_pixels() -> None:
    other = torch.tensor([[[255, 255, -1, -1]]])
    mixed = classmix(torch.zeros(1, 3, 1, 4), other * 0, torch.ones(1, 3, 1, 4), other, ignore_index=-1)
    assert mixed.labels.tolist() == [[[255, 255, 0, 0]]]


def test_each_class_is_pasted_equally_often_whatever_its_area() -> None:
    torch.manual_seed(0)
    areas = torch.tensor([40, 16, 5, 2, 1])
    other = torch.arange(5).repeat_interleave(areas).reshape(1, 8, 8).repeat(1000, 1, 1)
    zeros = torch.zeros(1000, 3, 8, 8)
    mixed = classmix(zeros, torch.full_like(other, 255), zeros + 1, other)
    often = torch.stack([(mixed.labels == k).any(dim=2).any(dim=1).float().mean() for k in range(5)])
    assert often.sum() == pytest.approx(3)  # three of five in each image
    assert (often - 0.6).abs().max() < 0.06  # four standard deviations


def test_images_of_different_sizes_are_not_mixed() -> None:
    image, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"other_image.*\(1, 3, 4, 5\)"):
        classmix(image, labels, torch.zeros(1, 3, 4, 5), labels)
    with pytest.raises(ValueError, match=r"labels.*\(1, 2, 2\)"):
        classmix(image, labels[:, ::2, ::2], image, labels)


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    patch=st.integers(1, 8),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=SEEDS,
)
def test_whole_patches_are_masked_with_the_mean_color(
    height: int, width: int, patch: int, share: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    image = torch.rand(2, 3, height, width).to(dtype)
    mean = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
    masked = mask_patches(image, patch, share)
    assert (masked.shape, masked.dtype) == (image.shape, image.dtype)
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            for number in range(2):
                at = (number, slice(None), slice(top, top + patch), slice(left, left + patch))
                assert torch.equal(masked[at], image[at]) or torch.equal(masked[at], mean[at])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_given_share_of_the_patches_is_masked(share: float) -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 3, 80, 80)
    masked = mask_patches(image, 4, share)
    changed = (masked != image).any(dim=1).float().mean(dim=(1, 2))
    assert changed.tolist() == pytest.approx([share] * 4, abs=0.1 if 0 < share < 1 else 0)
    patterns = {tuple(each.flatten().tolist()) for each in (masked != image).any(dim=1)}
    assert len(patterns) == (4 if 0 < share < 1 else 1)  # each image has its own


@pytest.mark.parametrize(
    ("patch", "share", "named"), [(0, 0.5, "patch.*0"), (4, 1.5, r"share.*1\.5"), (4, -0.1, r"share.*-0\.1")]
)
def test_patches_and_shares_out_of_range_are_named(patch: int, share: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mask_patches(torch.zeros(1, 3, 8, 8), patch, share)


def test_integer_images_cannot_be_masked_with_their_mean() -> None:
    with pytest.raises(TypeError, match="uint8"):
        mask_patches(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 4, 0.5)
