"""Small segmentation batches with known results."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class SegmentationBatch(NamedTuple):
    """Inputs of losses for segmentation and domain adaptation; a loss under test uses some of them.

    Attributes:
        logits: (B, K, h, w) of the network that is trained.
        features: (B, D, h, w) of the same network.
        labels: (B, h, w) int64, class indices or `ignore_index`.
        teacher_logits: (B, K, h, w) of a network that is not trained.
        teacher_features: (B, D, h, w) of the same network.
        prototypes: (K, D) orthonormal rows, one per class.
        ignore_index: Label of ignored pixels.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    teacher_logits: Tensor
    teacher_features: Tensor
    prototypes: Tensor
    ignore_index: int = 255

    @property
    def valid(self) -> Tensor:
        """(B, h, w) bool, the pixels that are not ignored."""
        return self.labels != self.ignore_index

    def map(self, function: Callable[[Tensor], Tensor]) -> "SegmentationBatch":
        """Applies a function to all maps, that is, to everything but the prototypes.

        Example:
            >>> segmentation_batch(size=(2, 6)).map(lambda x: x[..., :3]).logits.shape
            torch.Size([2, 5, 2, 3])
        """
        return self._replace(
            logits=function(self.logits),
            features=function(self.features),
            labels=function(self.labels),
            teacher_logits=function(self.teacher_logits),
            teacher_features=function(self.teacher_features),
        )


def segmentation_batch(
    *,
    images: int = 2,
    num_classes: int = 5,
    feature_dim: int = 8,
    size: tuple[int, int] = (6, 7),
    ignored: float = 0.25,
    ignore_index: int = 255,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SegmentationBatch:
    """Returns a random batch with normal logits and features, and equally frequent classes.

    The numbers depend on seed and sizes only, not on the device, and on the dtype only by rounding.

    Args:
        images: B.
        num_classes: K.
        feature_dim: D, at least K.
        size: (h, w).
        ignored: Fraction of ignored pixels, 0...1, at random positions.
        ignore_index: Label of ignored pixels.
        seed: Seed of the random numbers.
        device: Device of the tensors.
        dtype: Floating dtype of all tensors but the labels.

    Raises:
        ValueError: There are fewer feature channels than classes, `ignored` is outside 0...1, or
            `ignore_index` is a class.

    Example:
        >>> batch = segmentation_batch(images=1, num_classes=3, size=(2, 4))
        >>> batch.labels.unique(return_counts=True)
        (tensor([  0,   1,   2, 255]), tensor([2, 2, 2, 2]))
    """
    if feature_dim < num_classes:
        raise ValueError(f"{num_classes} prototypes need as many features, got feature_dim={feature_dim}")
    if not 0 <= ignored <= 1:
        raise ValueError(f"ignored must be a share of the pixels, 0...1, got {ignored}")
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index {ignore_index} is one of the {num_classes} classes")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    pixels = images * size[0] * size[1]
    labels = torch.arange(pixels) % num_classes
    labels[pixels - round(ignored * pixels) :] = ignore_index
    labels = labels[torch.randperm(pixels, generator=generator)].reshape(images, *size)
    logits, teacher_logits = (2 * normal(images, num_classes, *size) for _ in range(2))
    features, teacher_features = (normal(images, feature_dim, *size) for _ in range(2))
    prototypes = torch.linalg.qr(normal(feature_dim, num_classes)).Q.t().contiguous()
    return SegmentationBatch(
        logits.to(device, dtype),
        features.to(device, dtype),
        labels.to(device),
        teacher_logits.to(device, dtype),
        teacher_features.to(device, dtype),
        prototypes.to(device, dtype),
        ignore_index,
    )


def perfect_prediction(batch: SegmentationBatch) -> SegmentationBatch:
    """Replaces the outputs of both networks by confident, correct logits and the prototypes as features.

    Cross-entropy, entropy and the divergence of student and teacher are 0, the mIoU is 1, the cosine is 1
    with the prototype of the class and 0 with others. Ignored pixels are predicted as class 0.

    Example:
        >>> batch = perfect_prediction(segmentation_batch())
        >>> torch.nn.functional.cross_entropy(batch.logits, batch.labels, ignore_index=255)
        tensor(0.)
    """
    classes = batch.labels.masked_fill(~batch.valid, 0).long()
    one_hot = torch.nn.functional.one_hot(classes, len(batch.prototypes)).movedim(-1, 1)
    return _predicted(batch, 100 * one_hot.to(batch.logits.dtype), batch.prototypes[classes].movedim(-1, 1))


def uniform_prediction(batch: SegmentationBatch) -> SegmentationBatch:
    """Replaces the outputs of both networks by equal logits, and features equally close to all prototypes.

    Cross-entropy and entropy are log K, the divergence of student and teacher is 0, all cosines are 1/√K.

    Example:
        >>> batch = uniform_prediction(segmentation_batch(num_classes=5))
        >>> torch.nn.functional.cross_entropy(batch.logits, batch.labels, ignore_index=255)  # log 5
        tensor(1.6094)
    """
    features = batch.prototypes.sum(dim=0)[:, None, None].expand_as(batch.features)
    return _predicted(batch, torch.zeros_like(batch.logits), features)


def all_ignored(batch: SegmentationBatch) -> SegmentationBatch:
    """Replaces all labels by `ignore_index`: loss and gradients should be 0.

    Example:
        >>> all_ignored(segmentation_batch()).valid.any()
        tensor(False)
    """
    return batch._replace(labels=torch.full_like(batch.labels, batch.ignore_index))


def absent_class(batch: SegmentationBatch) -> SegmentationBatch:
    """Replaces the last class by class 0 in all labels."""
    last = batch.labels == len(batch.prototypes) - 1
    return batch._replace(labels=batch.labels.masked_fill(last, 0))


def one_pixel(batch: SegmentationBatch) -> SegmentationBatch:
    """Crops all maps to the top left pixel, which is valid: deviations over pixels are 0 or 0/0."""
    batch = batch.map(lambda x: x[..., :1, :1])
    return batch._replace(labels=batch.labels.masked_fill(~batch.valid, 0))


def one_image(batch: SegmentationBatch) -> SegmentationBatch:
    """Keeps the first image only."""
    return batch.map(lambda x: x[:1])


EDGE_CASES = (perfect_prediction, uniform_prediction, all_ignored, absent_class, one_pixel, one_image)
"""Functions that turn a batch into an edge case."""


def _predicted(batch: SegmentationBatch, logits: Tensor, features: Tensor) -> SegmentationBatch:
    return batch._replace(
        logits=logits,
        features=features.contiguous(),
        teacher_logits=logits.clone(),
        teacher_features=features.clone(),
    )
