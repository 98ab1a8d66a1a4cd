"""DeepLabV2 with the head of CPSL, which returns logits and the features that are clustered."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl.models.network import NetworkSpec, SegmentationNetwork, SegmentationOutput, layers_of
from cpsl.models.resnet import BACKBONES, Backbone


class SqueezeExcitation(nn.Module):
    """Reweights channels by global context (Hu et al., 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the reweighted channels."""
        weight: Tensor = self.weigh(x.mean(dim=(2, 3)))
        return x * weight[:, :, None, None]


class DeepLabHead(nn.Module):
    """Parallel dilated convolutions, squeeze-and-excitation, a fusing convolution and a linear classifier.

    Convolutions are initialized as in He et al. (2015) with zero biases, linear layers by torch's default,
    and the classifier with standard deviation 0.01, for nearly uniform initial probabilities.
    """

    def __init__(
        self, inputs: int, num_classes: int, feature_dim: int, dropout: float, dilations: Sequence[int]
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

    if TYPE_CHECKING:
        __call__ = forward


class DeepLabV2(SegmentationNetwork):
    """Segmentation network: a dilated backbone (Chen et al., 2017) with the head of the authors' code.

    Args:
        num_classes: Number of classes K.
        backbone: "resnet101", "resnet50", "resnet18", "resnet_tiny", or a module that implements `Backbone`.
        feature_dim: Channels D of the features. GroupNorm has gcd(32, D) groups.
        dropout: Probability that a channel of the features is dropped during training.
        output_norm: Whether a BatchNorm follows a named backbone; see `cpsl.models.resnet.ResNet`.
        mean: RGB mean that is subtracted from images. The default suits the authors' weights.
        std: RGB standard deviation; images are divided by it. torchvision's weights require
            `IMAGENET_MEAN` and `IMAGENET_STD`.
        dilations: Dilations of the head's 3x3 branches.

    Attributes:
        backbone: The encoder.
        head: Everything after the encoder; usually trained with a higher learning rate.
        num_classes: K.
        feature_dim: D.
        align_corners: True, the maps are corner-aligned.
        input_size: 1, images may have any size.
        backbone_name: Name of the backbone; None if it was passed as a module.

    Raises:
        ValueError: The name of the backbone is unknown, or num_classes or feature_dim is not positive.
        TypeError: The backbone does not implement `Backbone`.

    Example:
        >>> model = DeepLabV2(num_classes=19, backbone="resnet_tiny", feature_dim=32).eval()
        >>> output = model(torch.rand(1, 3, 64, 128))
        >>> output.logits.shape, output.features.shape
        (torch.Size([1, 19, 16, 32]), torch.Size([1, 32, 16, 32]))
    """

    mean: Tensor
    std: Tensor
    align_corners = True
    input_size = 1

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
            raise ValueError(f"num_classes, feature_dim must be positive, got {num_classes}, {feature_dim}")
        self.backbone_name = backbone if isinstance(backbone, str) else None
        if isinstance(backbone, str):
            arguments = {
                "feature_dim": feature_dim,
                "dropout": dropout,
                "output_norm": output_norm,
                "dilations": list(dilations),
            }
            self.spec = NetworkSpec(f"deeplabv2:{backbone}", arguments)
            if backbone not in BACKBONES:
                raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
            backbone = BACKBONES[backbone](output_norm=output_norm)
        channels, stride = (getattr(backbone, name, "absent") for name in ("channels", "stride"))
        integers = isinstance(channels, int) and isinstance(stride, int)
        if not (isinstance(backbone, nn.Module) and isinstance(backbone, Backbone) and integers):
            raise TypeError(
                "a backbone must be an nn.Module with integers `channels` and `stride`, got "
                f"{type(backbone).__name__} with channels {channels} and stride {stride}"
            )
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.backbone = backbone
        self.head = DeepLabHead(backbone.channels, num_classes, feature_dim, dropout, dilations)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Segments images (B, 3, H, W), float in 0...1; the output is corner-aligned with them.

        Raises:
            ValueError: The shape differs, or the backbone does not return its `channels`.
            TypeError: The image is not floating point, or the backbone does not return a tensor.
        """
        check_shape("images", image, "B", 3, "H", "W")
        if not image.is_floating_point():
            raise TypeError(f"images must be float in 0...1, got {image.dtype}; divide by 255")
        encoded = self.backbone((image - self.mean) / self.std)
        if not isinstance(encoded, Tensor):
            raise TypeError(f"the backbone must return one tensor, got {type(encoded).__name__}")
        check_shape("the backbone's output", encoded, "B", self.backbone.channels, "h", "w")
        return self.head(encoded)

    if TYPE_CHECKING:
        __call__ = forward

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        """Returns the parameters of the backbone by layer, without those of a BatchNorm behind it."""
        return layers_of(self.backbone, exclude="output_norm.")
