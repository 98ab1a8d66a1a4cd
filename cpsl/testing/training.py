"""Random batches of both domains, to test training steps."""

import torch

from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.geometry import View


def training_batches(
    num_classes: int,
    *,
    images: int = 2,
    crop: tuple[int, int] = (32, 64),
    full_size: tuple[int, int] = (64, 128),
    soft: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[SourceBatch, TargetBatch]:
    """Returns a random source batch and a random target batch with all views and pseudo labels.

    Args:
        num_classes: Number of classes K.
        images: B of each domain.
        crop: (H, W) of the training views.
        full_size: (H, W) of the whole target images.
        soft: Whether the pseudo labels are probabilities (B, K, H/8, W/8), or class indices (B, H, W).
        seed: Seed of the random numbers.
        device: Device of the tensors.

    Example:
        >>> source, target = training_batches(num_classes=3)
        >>> source.image.shape, source.label.shape, target.pseudo_labels.shape
        (torch.Size([2, 3, 32, 64]), torch.Size([2, 32, 64]), torch.Size([2, 3, 8, 16]))
    """
    random = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=random, dtype=torch.uint8).to(device)

    whole = View.whole(full_size, images, device)
    weak = whole.cropped(full_size[0] // 8, full_size[1] // 8, crop).flipped()
    box = torch.tensor([2.0, 2.0, crop[1] / 3, crop[0] / 3]).to(device)
    strong = weak.rotated(10).with_cutout(box)
    names = [f"image {number}" for number in range(images)]
    if soft:
        grid = (images, num_classes, full_size[0] // 8, full_size[1] // 8)
        pseudo = torch.rand(grid, generator=random).softmax(dim=1).to(device)
    else:
        pseudo = integers(num_classes, images, *full_size)
    return (
        SourceBatch(integers(256, images, 3, *crop), integers(num_classes, images, *crop), names),
        TargetBatch(
            weak=integers(256, images, 3, *crop),
            weak_view=weak,
            strong=integers(256, images, 3, *crop),
            strong_view=strong,
            whole=integers(256, images, 3, *full_size),
            whole_view=whole,
            pseudo_labels=pseudo,
            names=names,
        ),
    )
