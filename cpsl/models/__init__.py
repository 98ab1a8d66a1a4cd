"""Networks: the segmentation network, its moving average and the discriminator."""

from typing import TYPE_CHECKING, Any

from cpsl.models.deeplab import IMAGENET_MEAN, IMAGENET_STD, DeepLabV2, SegmentationOutput, freeze_batch_norm
from cpsl.models.discriminator import Discriminator
from cpsl.models.ema import ExponentialMovingAverage
from cpsl.models.resnet import Backbone, load_backbone_weights

if TYPE_CHECKING:
    from cpsl.authors.checkpoints import load_release_checkpoint

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "DeepLabV2",
    "Discriminator",
    "ExponentialMovingAverage",
    "SegmentationOutput",
    "freeze_batch_norm",
    "load_backbone_weights",
    "load_release_checkpoint",
]


def __getattr__(name: str) -> Any:
    # Imported at first use, because `cpsl.authors` depends on this package.
    if name == "load_release_checkpoint":
        from cpsl.authors.checkpoints import load_release_checkpoint

        return load_release_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
