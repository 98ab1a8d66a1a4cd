"""Dilated residual networks, and the contract that any backbone obeys."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torchvision
from torch import Tensor, nn


@runtime_checkable
class Backbone(Protocol):
    """What `DeepLabV2` asks of an encoder: an nn.Module with two numbers.

    Attributes:
        channels: Channels C of the output.
        stride: Input pixels for each step of the output grid.

    Its forward takes normalised images (B, 3, H, W) and returns (B, C, h, w), h about H / stride.

    Example:
        An encoder of one's own:

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
        ...


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016).

    Args:
        inputs: Channels that come in.
        width: Channels that come out.
        stride: Of the first convolution.
        dilation: Of both.

    Example:
        >>> BasicBlock(8, 16, stride=2, dilation=1)(torch.zeros(2, 8, 6, 6)).shape
        torch.Size([2, 16, 3, 3])
    """

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
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al., 2016), with the stride on the first.

    Args:
        inputs: Channels that come in.
        width: Channels of the 3x3 convolution; four times as many come out.
        stride: Of the first convolution. (torchvision has it on the second; the weights fit both.)
        dilation: Of the 3x3 convolution.

    Example:
        >>> Bottleneck(8, 4, stride=1, dilation=2)(torch.zeros(2, 8, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

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
    """A residual network of stride 8: its last two stages are dilated instead of strided.

    Dilation 2 in all of layer3 and 4 in all of layer4; the max-pool rounds up, so that 1024x2048 gives
    129x257 (Chen et al., 2017).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: Blocks of each of the four stages.
        widths: Width of the blocks of each stage.
        output_norm: Whether the output passes through a BatchNorm without ReLU, as in networks that
            start from self-supervised weights ("bn_pretrain" of the release).
        max_pool: Whether a max-pool follows the first convolution; without it the stride is 4.

    Attributes:
        channels: Channels of the output.
        stride: 8 or 4.

    Example:
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
        """Returns (B, channels, h, w) of normalised images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        x = self.output_norm(x)
        assert isinstance(x, Tensor)
        return x


def resnet101(output_norm: bool = False) -> ResNet:
    """Returns the paper's backbone, 2048 channels.

    Example:
        >>> with torch.device("meta"):  # shapes without memory
        ...     backbone = resnet101()
        >>> backbone.channels, backbone.stride
        (2048, 8)
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), output_norm=output_norm)


def resnet50(output_norm: bool = False) -> ResNet:
    """Returns a backbone of half the depth, 2048 channels.

    Example:
        >>> with torch.device("meta"):  # shapes without memory
        ...     backbone = resnet50()
        >>> backbone.channels, backbone.stride
        (2048, 8)
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), output_norm=output_norm)


def resnet18(output_norm: bool = False) -> ResNet:
    """Returns a small backbone, 512 channels.

    Example:
        >>> with torch.device("meta"):  # shapes without memory
        ...     backbone = resnet18()
        >>> backbone.channels, backbone.stride
        (512, 8)
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), output_norm=output_norm)


def resnet_tiny(output_norm: bool = False, stride: int = 4) -> ResNet:
    """Returns a backbone that is trained in minutes on a CPU, 64 channels.

    An image of 256x128 takes 0.7 GFLOP at stride 4 and 0.2 at stride 8 (two a multiply-add). Stride 4 is the
    default: in images this small, poles and persons are only a few pixels wide.

    Args:
        output_norm: See `ResNet`.
        stride: 4, without the max-pool, or 8.

    Raises:
        ValueError: The stride is another.

    Example:
        >>> resnet_tiny()(torch.zeros(1, 3, 32, 64)).shape
        torch.Size([1, 64, 8, 16])
    """
    if stride not in (4, 8):
        raise ValueError(f"the stride of resnet_tiny must be 4 or 8, got {stride}")
    return ResNet(BasicBlock, (1, 1, 1, 1), (16, 32, 64, 64), output_norm, max_pool=stride == 8)


BACKBONES = {
    "resnet101": resnet101,
    "resnet50": resnet50,
    "resnet18": resnet18,
    "resnet_tiny": resnet_tiny,
}


def load_backbone_weights(backbone: nn.Module, source: str | Path, name: str = "") -> None:
    """Loads pretrained weights into a backbone.

    torchvision's bottlenecks have the same entries but were trained with the stride on the 3x3 and without
    dilation: the weights are a good start, not the same function.

    Args:
        backbone: Receives the weights; classification layers of the source are left out.
        source: "imagenet" for torchvision's weights of `name`, which are downloaded once (IMAGENET1K_V1, the
            recipe that the published results start from); or a file that holds a state dictionary, by
            itself or as its entry "state_dict" (as SimCLRv2 conversions do).
        name: Name of the backbone in torchvision.

    Raises:
        FileNotFoundError: There is no such file.
        ConnectionError: The weights cannot be downloaded; the message says how to do without.
        ValueError: torchvision has no such weights, the file holds something else or numbers that are not
            finite, or entries are missing.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "weights.pt")
        >>> torch.save({"state_dict": resnet_tiny().state_dict()}, file)
        >>> load_backbone_weights(resnet_tiny(), file)
    """
    state = _imagenet(name) if str(source) == "imagenet" else _read_state(Path(source))
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{source} holds numbers that are not finite, such as in {broken[0]}")
    own = backbone.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    missing = [key for key in own if key not in fitting and not key.startswith("output_norm")]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{source} does not fit this backbone: {len(missing)} of its {len(own)} entries are not "
            f"there or of another shape, such as {missing[0]}"
        )
    backbone.load_state_dict(fitting, strict=False)


def _imagenet(name: str) -> dict[str, Tensor]:
    names = torchvision.models.list_models()
    known = torchvision.models.get_model_weights(name).__members__ if name in names else {}
    if "IMAGENET1K_V1" not in known:
        raise ValueError(
            f'there are no ImageNet weights for the backbone "{name}": '
            'start from "random" or from a file'
        )
    weights = known["IMAGENET1K_V1"]
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ConnectionError(
            f"the ImageNet weights of {name} cannot be downloaded ({error}). Download {weights.url} on "
            "another machine and give the path of the file instead."
        ) from error
    return state


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no file of weights, or would run code: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state dictionary of tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}
