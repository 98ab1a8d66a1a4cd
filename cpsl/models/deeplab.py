"""DeepLabV2 with the head of CPSL: features that can be clustered, and logits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpsl.models.resnet import BACKBONES, Backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's three colours, for images in 0...1, which torchvision's weights expect."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Deviation of ImageNet's three colours, for images in 0...1, which torchvision's weights expect."""


class SegmentationOutput(NamedTuple):
    """What a segmentation model gives.

    Attributes:
        logits: (B, K, h, w).
        features: (B, D, h, w), the last thing before the linear classifier.
    """

    logits: Tensor
    features: Tensor


class SqueezeExcitation(nn.Module):
    """Weighs channels by what the whole image holds (Hu et al., 2018).

    Args:
        channels: Channels C.
        reduction: C over the width of the hidden layer.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the weighed channels."""
        weight: Tensor = self.weigh(x.mean(dim=(2, 3)))
        return x * weight[:, :, None, None]


class DeepLabHead(nn.Module):
    """Parallel dilated convolutions, squeeze-excitation, a fusing convolution, a linear classifier.

    Convolutions start as He et al. (2015) have it, with zero biases; the classifier, which should start near
    uniform probabilities, from a normal distribution of deviation 0.01; linear layers as torch has them.

    Args:
        inputs: Channels of the backbone.
        num_classes: Number of classes K.
        feature_dim: Channels D of each branch and of the features.
        dropout: Probability that a channel of the features is dropped.
        dilations: Of the 3x3 branches; a 1x1 branch comes first.
    """

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        feature_dim: int,
        dropout: float,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.dilations = tuple(dilations)

        def branch(kernel: int, dilation: int) -> nn.Sequential:
            padding = dilation * (kernel // 2)
            return nn.Sequential(
                nn.Conv2d(inputs, feature_dim, kernel, 1, padding, dilation),
                nn.GroupNorm(math.gcd(32, feature_dim), feature_dim),
                nn.ReLU(inplace=True),
            )

        self.branches = nn.ModuleList([branch(1, 1), *(branch(3, d) for d in dilations)])
        together = feature_dim * len(self.branches)
        self.fuse = nn.Sequential(
            SqueezeExcitation(together),
            nn.Conv2d(together, feature_dim, 3, padding=1),
            nn.GroupNorm(math.gcd(32, feature_dim), feature_dim),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(feature_dim, num_classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.classify.weight, std=0.01)

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Returns logits and features on the grid of `x`."""
        branches = torch.cat([branch(x) for branch in self.branches], dim=1)
        features = self.dropout(self.fuse(branches))
        return SegmentationOutput(self.classify(features), features)


class DeepLabV2(nn.Module):
    """Segmentation network whose features are clustered (Chen et al., 2017, with the head of CPSL's release).

    Args:
        num_classes: Number of classes K.
        backbone: "resnet101", "resnet50", "resnet18", "resnet_tiny", or a module that obeys `Backbone`.
        feature_dim: Channels D of the features. GroupNorm has gcd(32, D) groups.
        dropout: Probability that a channel of the features is dropped while training.
        output_norm: Whether a BatchNorm follows a named backbone; see `ResNet`.
        mean: Of the three colours, subtracted from the image; the default suits the release's weights.
        std: Of the three colours, the image is divided by it; for other weights `IMAGENET_STD`.
        dilations: Of the head's 3x3 branches.

    Attributes:
        backbone: The encoder.
        head: Everything after it; it usually learns faster.
        num_classes: K.
        feature_dim: D.
        backbone_name: Name that the backbone was asked for by; None if it came as a module.

    Raises:
        ValueError: There is no backbone of that name, or no class or feature.
        TypeError: The backbone does not obey the contract.

    Example:
        >>> model = DeepLabV2(num_classes=19, backbone="resnet_tiny", feature_dim=32).eval()
        >>> output = model(torch.rand(1, 3, 64, 128))
        >>> output.logits.shape, output.features.shape
        (torch.Size([1, 19, 16, 32]), torch.Size([1, 32, 16, 32]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "resnet101",
        feature_dim: int = 256,
        *,
        dropout: float = 0.1,
        output_norm: bool = False,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        dilations: Sequence[int] = (6, 12, 18, 24),
    ) -> None:
        super().__init__()
        if min(num_classes, feature_dim) < 1:
            raise ValueError(
                f"num_classes and feature_dim must be positive, got {num_classes} and {feature_dim}"
            )
        self.backbone_name = backbone if isinstance(backbone, str) else None
        if isinstance(backbone, str):
            if backbone not in BACKBONES:
                raise ValueError(
                    f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}"
                )
            backbone = BACKBONES[backbone](output_norm=output_norm)
        if not (
            isinstance(backbone, nn.Module)
            and isinstance(backbone, Backbone)
            and isinstance(backbone.channels, int)
            and isinstance(backbone.stride, int)
        ):
            raise TypeError(
                "a backbone must be an nn.Module with whole numbers `channels` and `stride`, got "
                f"{type(backbone).__name__} with channels {getattr(backbone, 'channels', 'absent')} "
                f"and stride {getattr(backbone, 'stride', 'absent')}"
            )
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.backbone = backbone
        self.head = DeepLabHead(backbone.channels, num_classes, feature_dim, dropout, dilations)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Segments images.

        Args:
            image: (B, 3, H, W) float in 0...1.

        Returns:
            Logits (B, K, h, w) and features (B, D, h, w); nodes of the grid's corners are the centres of
            the image's corner pixels.

        Raises:
            ValueError: The shape is another, or the backbone gives other than its `channels`.
            TypeError: The image is not floating point, or the backbone gives no tensor.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got shape {tuple(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(f"images must be float in 0...1, got {image.dtype}; divide by 255")
        encoded = self.backbone((image - self.mean) / self.std)
        if not isinstance(encoded, Tensor):
            raise TypeError(f"the backbone must return one tensor, got {type(encoded).__name__}")
        if encoded.ndim != 4 or encoded.shape[1] != self.backbone.channels:
            raise ValueError(
                f"the backbone must return (B, {self.backbone.channels}, h, w), as its `channels` say, "
                f"got {tuple(encoded.shape)}"
            )
        output: SegmentationOutput = self.head(encoded)
        return output


def freeze_batch_norm(module: nn.Module) -> None:
    """Makes every BatchNorm keep its statistics, weights and biases.

    `module.train()` makes the statistics move again: freeze after it. Weights and biases stay fixed.

    Args:
        module: Changed in place.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
        >>> freeze_batch_norm(model)
        >>> model[0].training, model[1].training
        (True, False)
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval().requires_grad_(False)
