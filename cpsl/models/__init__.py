"""Networks: the segmentation model, its teacher, the discriminator and the release's checkpoints."""

from cpsl.models.deeplab import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DeepLabV2,
    SegmentationOutput,
    freeze_batch_norm,
)
from cpsl.models.discriminator import Discriminator
from cpsl.models.ema import ExponentialMovingAverage, update_moving_average
from cpsl.models.release import (
    ReleaseCheckpoint,
    load_release_checkpoint,
    read_release_checkpoint,
    save_release_checkpoint,
)
from cpsl.models.resnet import (
    Backbone,
    BasicBlock,
    Bottleneck,
    ResNet,
    load_backbone_weights,
    resnet18,
    resnet50,
    resnet101,
    resnet_tiny,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "BasicBlock",
    "Bottleneck",
    "DeepLabV2",
    "Discriminator",
    "ExponentialMovingAverage",
    "ReleaseCheckpoint",
    "ResNet",
    "SegmentationOutput",
    "freeze_batch_norm",
    "load_backbone_weights",
    "load_release_checkpoint",
    "read_release_checkpoint",
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet_tiny",
    "save_release_checkpoint",
    "update_moving_average",
]
