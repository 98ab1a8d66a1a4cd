"""Base class of the training steps, and helpers that they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import unwrap
from cpsl.clustering import ClassBalancedPrototypeClustering, ClusteringOutput
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.models.network import SegmentationNetwork, check_network


class Supervision(NamedTuple):
    """Images and labels that the network was last trained on, for display.

    Attributes:
        images: (B, 3, H, W) uint8.
        labels: (B, h, w) integer class indices, 255 where ignored.
    """

    images: Tensor
    labels: Tensor


class Method(nn.Module, ABC):
    """Base class of training steps: `losses` yields the losses, `update` updates the other state.

    Attributes:
        metrics: Losses and statistics of the last batch by name, detached scalars on the device.
        supervision: Images and labels of the last batch, as the network was trained on them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Tensor] = {}
        self.supervision: Supervision | None = None

    def forward(self, *batches: Any, **options: Any) -> Tensor:
        """Returns the sum of `losses`, which has the same arguments."""
        return torch.stack(list(self.losses(*batches, **options))).sum()

    @abstractmethod
    def losses(
        self, source: SourceBatch, target: TargetBatch, *, last_micro_batch: bool = True
    ) -> Iterator[Tensor]:
        """Yields the weighted losses of a step, one per pass of a network.

        Args:
            source: Labeled source views.
            target: Target views, with the pseudo labels that the method needs.
            last_micro_batch: False while gradients accumulate: then no gradient is averaged over the ranks.

        Yields:
            Scalars; call `backward` on each before requesting the next.

        Raises:
            TypeError: The pseudo labels are soft instead of hard or the reverse, or a network does
                not return logits and features.
            ValueError: There are no pseudo labels, or they have another shape.
        """

    def update(self, applied: Tensor | None = None) -> None:
        """Updates state other than the trained parameters; call it once per step, after `optimizer.step()`.

        The step consists of all calls of `losses` since the last update whose losses were all taken. Those
        under `torch.no_grad()`, for validation, are no part of it.

        Args:
            applied: Scalar bool on the device, whether the optimizer applied its step; False changes nothing.
        """


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 images (B, 3, H, W) to float32 in 0...1, the input of the networks.

    Raises:
        TypeError: The images are not uint8; those of 0...1 would become black.
        ValueError: The images have another shape, such as the deferred views of a batch.
    """
    if images.ndim != 4:
        raise ValueError(
            f"images must be (B, 3, H, W), got shape {tuple(images.shape)}: a batch with deferred "
            "operations needs apply_deferred()"
        )
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, 0...255, got {images.dtype}")
    return images.float() / 255


def check_pseudo_labels(labels: Tensor, kind: Literal["soft", "hard"], *sizes: int | str) -> None:
    """Checks kind and shape of `TargetBatch.pseudo_labels`, which is (B, 0) if there are none."""
    if labels.numel() and labels.is_floating_point() != (kind == "soft"):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise TypeError(f"TargetBatch.pseudo_labels must be {kind} labels, got {got}")
    check_shape(f"TargetBatch.pseudo_labels, {kind} labels,", labels, *sizes)


def check_student(network: nn.Module) -> SegmentationNetwork:
    """Returns a network that is trained, without its wrappers; see `check_network`.

    Raises:
        TypeError: It is no `SegmentationNetwork`.
        ValueError: It has a class 255, the label of ignored pixels in all batches.
    """
    inner = check_network(network)
    if inner.num_classes > 255:
        raise ValueError(
            f"a training step takes at most 255 classes, got num_classes {inner.num_classes}: "
            "255 is the label of ignored pixels"
        )
    return inner


def check_pair(student: nn.Module, teacher: nn.Module, *, average: bool = False) -> None:
    """Checks that a teacher fits a student, before the first step.

    Raises:
        TypeError: One of them is no `SegmentationNetwork`; or, if `average`, the teacher has no `update`.
        ValueError: They are the same module, or their numbers of classes or (if `average`) features differ.
    """
    inner, other = check_network(student), check_network(teacher)
    if average and not callable(getattr(teacher, "update", None)):
        raise TypeError(
            f"the teacher must be ExponentialMovingAverage(student), got {type(teacher).__name__}"
        )
    if inner is other:
        raise ValueError("student and teacher are the same module: pass a copy as the teacher")
    _check_equal("student and teacher", inner, other, ("num_classes", "feature_dim")[: 1 + average])


def check_clustering(student: nn.Module, clustering: nn.Module) -> None:
    """Checks that a clustering has the classes and features of a network, before the first step.

    Raises:
        TypeError: It is no `ClassBalancedPrototypeClustering`, wrapped or not.
        ValueError: Its number of classes or features differs, or its `ignore_index` is not 255.
    """
    network, inner = check_network(student), unwrap(clustering) if clustering is not None else None
    if not isinstance(inner, ClassBalancedPrototypeClustering):
        raise TypeError(f"clustering must be a ClassBalancedPrototypeClustering, got {type(inner).__name__}")
    _check_equal("network and clustering", network, inner, ("num_classes", "feature_dim"))
    if inner.ignore_index != 255:
        raise ValueError(f"the clustering's ignore_index must be 255, got {inner.ignore_index}")


def detached(clusters: ClusteringOutput) -> ClusteringOutput:
    """Returns the result of a clustering without its graph, which no step but its own needs."""
    return clusters._replace(loss=clusters.loss.detach(), scores=clusters.scores.detach())


def check_pending(micro_batches: Sequence[object]) -> None:
    """Raises RuntimeError if there is nothing to update with."""
    if not micro_batches:
        raise RuntimeError(
            "update needs losses: call it once per step, after the optimizer's step; take all losses of the "
            "iterator, outside of torch.no_grad()"
        )


def _check_equal(pair: str, one: nn.Module, other: nn.Module, attributes: Sequence[str]) -> None:
    for name in attributes:
        values = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            raise ValueError(f"{pair} differ in {name}: {values[0]} and {values[1]}")
