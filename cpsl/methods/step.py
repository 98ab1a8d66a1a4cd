"""Base class of the training steps, and helpers that they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.models.deeplab import SegmentationOutput


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
                not return an object with logits.
            ValueError: There are no pseudo labels, or they have another shape.
        """

    def update(self, applied: Tensor | None = None) -> None:
        """Updates state other than the trained parameters; call it once per step, after `optimizer.step()`.

        Args:
            applied: Scalar bool on the device, whether the optimizer applied its step; False changes nothing.
        """


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 images to float32 in 0...1, the input of the networks."""
    return images.float() / 255


def segment(network: nn.Module, images: Tensor) -> SegmentationOutput:
    """Calls a network with uint8 images (B, 3, H, W).

    Raises:
        TypeError: The network does not return an object with logits.
        ValueError: The images have another shape, such as the deferred views of a batch.
    """
    if images.ndim != 4:
        raise ValueError(
            f"images must be (B, 3, H, W), got shape {tuple(images.shape)}: a batch with deferred "
            "operations needs apply_deferred()"
        )
    output: SegmentationOutput = network(to_float(images))
    if not hasattr(output, "logits"):
        raise TypeError(
            "a network must return an object with logits and features, such as "
            f"cpsl.models.SegmentationOutput, got {type(output).__name__}"
        )
    return output


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resizes a network's output (B, C, h, w) to (H, W), bilinearly with aligned corners, in float32."""
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=True)


def check_pseudo_labels(labels: Tensor, kind: Literal["soft", "hard"], *sizes: int | str) -> None:
    """Checks kind and shape of `TargetBatch.pseudo_labels`, which is (B, 0) if there are none."""
    if labels.numel() and labels.is_floating_point() != (kind == "soft"):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise TypeError(f"TargetBatch.pseudo_labels must be {kind} labels, got {got}")
    check_shape(f"TargetBatch.pseudo_labels, {kind} labels,", labels, *sizes)
