import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.mixing import cutmix


@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    probability=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
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
    assert torch.equal(mixed.pasted, share > 0)
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
