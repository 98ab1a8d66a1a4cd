"""Small segmentation batches of which the answers are known."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class SegmentationBatch(NamedTuple):
    """What losses of segmentation and domain adaptation take; a loss under test picks its part.

    Attributes:
        logits: (B, K, h, w) of the network that learns.
        features: (B, D, h, w) of the same network.
        labels: (B, h, w) int64, class indices or `ignore_index`.
        teacher_logits: (B, K, h, w) of a network that is constant.
        teacher_features: (B, D, h, w) of the same network.
        prototypes: (K, D) orthonormal rows, one a class.
        ignore_index: Label of pixels that do not count.
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
        """(B, h, w) bool, the pixels that count."""
        return self.labels != self.ignore_index

    def map(self, function: Callable[[Tensor], Tensor]) -> "SegmentationBatch":
        """Returns the batch with a function applied to every map, prototypes excepted.

        Args:
            function: (B, ..., h, w) to the like; labels have no channels.

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
    """Draws a batch: normal logits and features, and labels in which all classes are equally frequent.

    The numbers depend on the seed and the sizes alone, not on the device, nor on the dtype but for rounding.

    Args:
        images: B.
        num_classes: K.
        feature_dim: D, at least K.
        size: (h, w).
        ignored: Share of ignored pixels, 0...1; the others hold the classes in turn, in random places.
        ignore_index: Label of pixels that do not count.
        seed: Of the generator that draws.
        device: Where the tensors lie.
        dtype: Floating dtype of all but the labels.

    Returns:
        The batch.

    Raises:
        ValueError: There are fewer feature channels than classes, `ignored` is no share, or `ignore_index` is
            a class.

    Example:
        >>> batch = segmentation_batch(images=1, num_classes=3, size=(2, 4))
        >>> batch.labels.unique(return_counts=True)
        (tensor([  0,   1,   2, 255]), tensor([2, 2, 2, 2]))
    """
    if feature_dim < num_classes:
        raise ValueError(
            f"orthonormal prototypes of {num_classes} classes need as many feature channels, "
            f"got feature_dim={feature_dim}"
        )
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
    """Both networks are sure of the right class, and features are the prototypes of their classes.

    Cross-entropy, entropy and the divergence of student and teacher are 0; the cosine is 1 with the own
    prototype and 0 with the others; the mIoU is 1. Ignored pixels are predicted as class 0.

    Example:
        >>> batch = perfect_prediction(segmentation_batch())
        >>> torch.nn.functional.cross_entropy(batch.logits, batch.labels, ignore_index=255)
        tensor(0.)
    """
    classes = batch.labels.masked_fill(~batch.valid, 0)
    one_hot = torch.nn.functional.one_hot(classes, len(batch.prototypes)).movedim(-1, 1)
    logits = 100 * one_hot.to(batch.logits.dtype)
    features = batch.prototypes[classes].movedim(-1, 1)
    return _predicted(batch, logits, features)


def uniform_prediction(batch: SegmentationBatch) -> SegmentationBatch:
    """Both networks find all classes equally likely, and features are equally close to all prototypes.

    Cross-entropy and entropy are log K, the divergence of student and teacher is 0, all cosines are 1/√K.

    Example:
        >>> batch = uniform_prediction(segmentation_batch(num_classes=5))
        >>> torch.nn.functional.cross_entropy(batch.logits, batch.labels, ignore_index=255)  # log 5
        tensor(1.6094)
    """
    features = batch.prototypes.sum(dim=0)[:, None, None].expand_as(batch.features)
    return _predicted(batch, torch.zeros_like(batch.logits), features)


def all_ignored(batch: SegmentationBatch) -> SegmentationBatch:
    """No pixel counts: a mean over valid pixels is 0, and so are its gradients.

    Example:
        >>> all_ignored(segmentation_batch()).valid.any()
        tensor(False)
    """
    return batch._replace(labels=torch.full_like(batch.labels, batch.ignore_index))


def absent_class(batch: SegmentationBatch) -> SegmentationBatch:
    """The last class is in no label; its pixels are of class 0.

    Example:
        >>> absent_class(segmentation_batch(num_classes=3)).labels.unique()
        tensor([  0,   1, 255])
    """
    last = batch.labels == len(batch.prototypes) - 1
    return batch._replace(labels=batch.labels.masked_fill(last, 0))


def one_pixel(batch: SegmentationBatch) -> SegmentationBatch:
    """Every map is the one top left pixel, which counts: deviations over pixels are 0, or 0/0.

    Example:
        >>> batch = one_pixel(segmentation_batch())
        >>> batch.features.shape, batch.valid.all()
        (torch.Size([2, 8, 1, 1]), tensor(True))
    """
    batch = batch.map(lambda x: x[..., :1, :1])
    return batch._replace(labels=batch.labels.masked_fill(~batch.valid, 0))


def one_image(batch: SegmentationBatch) -> SegmentationBatch:
    """The first image alone.

    Example:
        >>> one_image(segmentation_batch()).labels.shape
        torch.Size([1, 6, 7])
    """
    return batch.map(lambda x: x[:1])


EDGE_CASES: tuple[Callable[[SegmentationBatch], SegmentationBatch], ...] = (
    perfect_prediction,
    uniform_prediction,
    all_ignored,
    absent_class,
    one_pixel,
    one_image,
)
"""What is made of a batch to test a loss where losses break."""


def _predicted(batch: SegmentationBatch, logits: Tensor, features: Tensor) -> SegmentationBatch:
    return batch._replace(
        logits=logits,
        features=features.contiguous(),
        teacher_logits=logits.clone(),
        teacher_features=features.clone(),
    )
