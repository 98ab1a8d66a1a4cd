"""Dilated residual networks, and the protocol of a backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

from cpsl._internal.files import without_number
from cpsl.models.adapters.fitting import fit_weights
from cpsl.models.adapters.weights import read_weights


@runtime_checkable
class Backbone(Protocol):
    """Protocol of an encoder for `DeepLabV2`: an nn.Module with two more attributes.

    Its forward maps normalized images (B, 3, H, W) to (B, C, h, w) with h ≈ H / stride.

    Attributes:
        channels: Channels C of the output.
        stride: Input pixels per step of the output grid.

    Example:
        A custom encoder:

        >>> class Patches(nn.Module):
        ...     channels, stride = 32, 4
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = nn.Conv2d(3, 32, kernel_size=4, stride=4)
        ...
        ...     def forward(self, image):
        ...         return self.embed(image)
        >>> isinstance(Patches(), Backbone)
        True
    """

    channels: int
    stride: int

    def __call__(self, image: Tensor) -> Tensor:
        """Returns the features of images."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        output: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return output


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al., 2016), with the stride in the first."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        output: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return output


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Residual network of stride 8, whose last two stages are dilated instead of strided (Chen et al., 2017).

    The dilation is 2 in layer3 and 4 in layer4. The max-pool rounds up: 1024x2048 gives 129x257.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: Number of blocks of each of the four stages.
        widths: Width of the blocks of each stage.
        output_norm: Whether a BatchNorm without ReLU follows, as in networks that are initialized with
            self-supervised weights ("bn_pretrain" in the authors' code).
        max_pool: Whether a max-pool follows the first convolution; without it the stride is 4.

    Attributes:
        channels: Output channels.
        stride: 8 or 4.

    Example:
        >>> import torch
        >>> ResNet(BasicBlock, (1, 1, 1, 1), (8, 8, 8, 8))(torch.zeros(1, 3, 64, 128)).shape
        torch.Size([1, 8, 9, 17])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        output_norm: bool = False,
        max_pool: bool = True,
    ) -> None:
        super().__init__()
        self.channels = widths[3] * block.expansion
        self.stride = 8 if max_pool else 4
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True) if max_pool else nn.Identity()
        inputs = widths[0]
        for number, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
            blocks = []
            for index in range(depths[number]):
                blocks.append(block(inputs, widths[number], 1 if index else stride, dilation))
                inputs = widths[number] * block.expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.output_norm = nn.BatchNorm2d(self.channels) if output_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Returns (B, channels, h, w) of normalized images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        output: Tensor = self.output_norm(x)
        return output

    if TYPE_CHECKING:
        __call__ = forward


def resnet101(output_norm: bool = False) -> ResNet:
    """Builds the backbone of the paper, with 2048 channels."""
    return ResNet(Bottleneck, (3, 4, 23, 3), output_norm=output_norm)


def resnet50(output_norm: bool = False) -> ResNet:
    """Builds a backbone of half the depth, with 2048 channels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), output_norm=output_norm)


def resnet18(output_norm: bool = False) -> ResNet:
    """Builds a small backbone, with 512 channels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), output_norm=output_norm)


def resnet_tiny(output_norm: bool = False, stride: int = 4) -> ResNet:
    """Builds a backbone that trains in minutes on a CPU, with 64 channels.

    An image of 256x128 requires 0.7 GFLOP at stride 4 and 0.2 GFLOP at stride 8 (2 FLOP per multiply-add).
    Stride 4 is the default, because poles and persons are only a few pixels wide in images this small.

    Raises:
        ValueError: The stride is neither 4 (without the max-pool) nor 8.

    Example:
        >>> import torch
        >>> resnet_tiny()(torch.zeros(1, 3, 32, 64)).shape
        torch.Size([1, 64, 8, 16])
    """
    if stride not in (4, 8):
        raise ValueError(f"the stride of resnet_tiny must be 4 or 8, got {stride}")
    return ResNet(BasicBlock, (1, 1, 1, 1), (16, 32, 64, 64), output_norm, max_pool=stride == 8)


BACKBONES = {"resnet101": resnet101, "resnet50": resnet50, "resnet18": resnet18, "resnet_tiny": resnet_tiny}


def load_backbone_weights(backbone: nn.Module, source: str | Path, name: str = "") -> None:
    """Loads pretrained weights into a backbone.

    torchvision's bottlenecks have the same entries, but the stride on the 3x3 convolution and no dilation:
    the weights are a good initialization, not the same function.

    Args:
        backbone: Module that receives the weights; classification layers of the source are ignored.
        source: "imagenet" for the weights IMAGENET1K_V1 of torchvision's network `name`, which are downloaded
            once; or a file with a state dictionary, plain or inside a checkpoint, also of a network around
            the backbone.
        name: torchvision's name of the backbone, required with "imagenet".

    Raises:
        FileNotFoundError: The file does not exist.
        ConnectionError: The weights cannot be downloaded.
        ValueError: `name` is missing or unknown, the file is not a state dictionary, or its entries are
            non-finite, missing or of other shapes.

    Example:
        >>> import tempfile
        >>> import torch
        >>> file = Path(tempfile.mkdtemp(), "weights.pt")
        >>> torch.save({"state_dict": resnet_tiny().state_dict()}, file)
        >>> load_backbone_weights(resnet_tiny(), file)
    """
    state = _imagenet(name) if str(source) == "imagenet" else read_weights(source)
    fit_weights(backbone, state, source, optional="output_norm")


def _imagenet(name: str) -> dict[str, Tensor]:
    if not name:
        raise ValueError('source "imagenet" needs the argument `name`, such as name="resnet101"')
    import torchvision  # a third of the start of every command: it imports the compiler of torch

    names = torchvision.models.list_models()
    known = torchvision.models.get_model_weights(name).__members__ if name in names else {}
    if "IMAGENET1K_V1" not in known:
        raise ValueError(f'torchvision has no ImageNet weights for the backbone "{name}"; pass a file')
    weights = known["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise ConnectionError(
            f"the ImageNet weights of {name} cannot be downloaded ({without_number(error)}); download "
            f"{weights.url} on another machine and pass the path of the file instead"
        ) from error
