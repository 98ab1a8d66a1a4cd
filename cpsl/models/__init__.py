"""Networks of this library and adapters for others, their protocol, moving average and discriminator."""

from typing import TYPE_CHECKING, Any

from cpsl.models.batch_norm import adapt_batch_norm, freeze_batch_norm
from cpsl.models.build import build_network
from cpsl.models.decoders import DAFormerDecoder, LightDecoder
from cpsl.models.deeplab import DeepLabV2
from cpsl.models.discriminator import Discriminator
from cpsl.models.ema import ExponentialMovingAverage
from cpsl.models.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkSpec,
    SegmentationNetwork,
    SegmentationOutput,
    check_network,
    parameter_groups,
    resize,
    segment,
)
from cpsl.models.resnet import Backbone, load_backbone_weights

if TYPE_CHECKING:
    from cpsl.authors.checkpoints import load_release_checkpoint
    from cpsl.models.adapters.module import from_module
    from cpsl.models.adapters.smp import from_smp
    from cpsl.models.adapters.timm import from_timm
    from cpsl.models.adapters.torchvision import from_torchvision
    from cpsl.models.adapters.transformers import from_transformers

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "DAFormerDecoder",
    "DeepLabV2",
    "Discriminator",
    "ExponentialMovingAverage",
    "LightDecoder",
    "NetworkSpec",
    "SegmentationNetwork",
    "SegmentationOutput",
    "adapt_batch_norm",
    "build_network",
    "check_network",
    "freeze_batch_norm",
    "from_module",
    "from_smp",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "load_backbone_weights",
    "load_release_checkpoint",
    "parameter_groups",
    "resize",
    "segment",
]


def __getattr__(name: str) -> Any:
    # Imported at first use: `cpsl.authors` depends on this package, and the adapters are rarely needed.
    from importlib import import_module

    if name == "load_release_checkpoint":
        return import_module("cpsl.authors.checkpoints").load_release_checkpoint
    if name.startswith("from_") and name in __all__:
        return getattr(import_module(f"cpsl.models.adapters.{name.removeprefix('from_')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
