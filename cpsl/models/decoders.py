"""Decoders, from feature maps of several scales to logits and the features that are clustered."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl.models.network import SegmentationOutput

COARSEST_OUTPUT = 8
"""If the finest maps have a larger stride (plain vision transformers), they are upsampled by an integer."""


def _check_positive(num_classes: int, feature_dim: int) -> None:
    if min(num_classes, feature_dim) < 1:
        raise ValueError(f"num_classes, feature_dim must be positive, got {num_classes}, {feature_dim}")


def _norm(channels: int) -> nn.GroupNorm:
    # Unlike BatchNorm it does not depend on the batch, and the two domains share it.
    return nn.GroupNorm(math.gcd(32, channels), channels)


class _Decoder(nn.Module):
    """Projects each level by a 1x1 convolution, resizes all to one grid, fuses and classifies them."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        feature_dim: int,
        dropout: float,
        fuse: nn.Module,
    ) -> None:
        super().__init__()
        if not len(channels) == len(strides) > 0:
            raise ValueError(
                f"channels and strides must have the same length, got {list(channels)} and {list(strides)}"
            )
        self.scale = math.ceil(min(strides) / COARSEST_OUTPUT)
        self.finest = list(strides).index(min(strides))
        self.embed = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, feature_dim, 1, bias=False), _norm(feature_dim)) for c in channels]
        )
        self.fuse = fuse
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(feature_dim, num_classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.classify.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> SegmentationOutput:
        """Returns logits and features of maps (B, C, h, w), in the order of `channels`."""
        height, width = maps[self.finest].shape[2:]
        size = height * self.scale, width * self.scale
        levels = []
        for embed, level in zip(self.embed, maps, strict=True):
            level = embed(level)
            if level.shape[2:] != size:
                level = F.interpolate(level, size, mode="bilinear", align_corners=False)
            levels.append(level)
        features = self.dropout(self.fuse(levels))
        return SegmentationOutput(self.classify(features), features)

    if TYPE_CHECKING:
        __call__ = forward


class LightDecoder(_Decoder):
    """Sums 1x1 projections of all levels, and mixes them by a depthwise separable 3x3 convolution.

    Without the normalization of each level, the sum equals the fusion of SegFormer (Xie et al., 2021):
    concatenation and a linear layer, which merges with the projections into one linear map.

    Args:
        channels: Channels of each level.
        strides: Input pixels per step of each level's grid.
        num_classes: Number of classes K.
        feature_dim: Channels D of the features. GroupNorm has gcd(32, D) groups.
        dropout: Probability that a channel of the features is dropped during training.

    Raises:
        ValueError: `channels` and `strides` differ in length, or a number is not positive.

    Example:
        >>> decoder = LightDecoder((24, 40, 112), (4, 8, 16), num_classes=19, feature_dim=64)
        >>> output = decoder([torch.rand(1, 24, 16, 32), torch.rand(1, 40, 8, 16), torch.rand(1, 112, 4, 8)])
        >>> output.logits.shape, output.features.shape
        (torch.Size([1, 19, 16, 32]), torch.Size([1, 64, 16, 32]))

        If all maps have stride 14 or 16, they are upsampled to twice their size:

        >>> LightDecoder((48,), (16,), 19)([torch.rand(1, 48, 4, 8)]).features.shape
        torch.Size([1, 256, 8, 16])
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        feature_dim: int = 256,
        *,
        dropout: float = 0.1,
    ) -> None:
        _check_positive(num_classes, feature_dim)
        fuse = nn.Sequential(
            _Sum(),
            nn.ReLU(),
            nn.Conv2d(feature_dim, feature_dim, 3, padding=1, groups=feature_dim, bias=False),
            nn.Conv2d(feature_dim, feature_dim, 1, bias=False),
            _norm(feature_dim),
        )
        super().__init__(channels, strides, num_classes, feature_dim, dropout, fuse)


class DAFormerDecoder(_Decoder):
    """Concatenates all levels, and fuses them by parallel dilated convolutions (Hoyer et al., 2022).

    As in DAFormer, the convolutions are depthwise separable with dilations 1 (a 1x1 convolution), 6, 12 and
    18, and a 3x3 convolution follows; GroupNorm replaces BatchNorm, and no ReLU follows the last convolution.

    Args:
        channels: Channels of each level.
        strides: Input pixels per step of each level's grid.
        num_classes: Number of classes K.
        feature_dim: Channels D of the features and of all inner maps.
        dropout: Probability that a channel of the features is dropped during training.
        dilations: Dilations of the parallel convolutions.

    Raises:
        ValueError: `channels` and `strides` differ in length, or a number is not positive.

    Example:
        >>> decoder = DAFormerDecoder((24, 40), (4, 8), num_classes=19, feature_dim=32)
        >>> decoder([torch.rand(1, 24, 16, 32), torch.rand(1, 40, 8, 16)]).logits.shape
        torch.Size([1, 19, 16, 32])
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        feature_dim: int = 256,
        *,
        dropout: float = 0.1,
        dilations: Sequence[int] = (1, 6, 12, 18),
    ) -> None:
        _check_positive(num_classes, feature_dim)
        branches = [_branch(len(channels) * feature_dim, feature_dim, dilation) for dilation in dilations]
        fuse = nn.Sequential(
            _Parallel(branches),
            nn.Conv2d(len(branches) * feature_dim, feature_dim, 3, padding=1, bias=False),
            _norm(feature_dim),
        )
        super().__init__(channels, strides, num_classes, feature_dim, dropout, fuse)


class _Sum(nn.Module):
    """Sums the levels."""

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Returns the sum (B, C, h, w)."""
        together = levels[0]
        for level in levels[1:]:
            together = together + level
        return together


class _Parallel(nn.ModuleList):
    """Applies parallel modules to the concatenated levels, and concatenates their outputs."""

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Returns the concatenated channels."""
        together = torch.cat(levels, dim=1)
        return torch.cat([branch(together) for branch in self], dim=1)


def _branch(inputs: int, outputs: int, dilation: int) -> nn.Sequential:
    """Returns a depthwise separable dilated convolution, or a 1x1 convolution if the dilation is 1."""
    pointwise = [nn.Conv2d(inputs, outputs, 1, bias=False), _norm(outputs), nn.ReLU()]
    if dilation == 1:
        return nn.Sequential(*pointwise)
    depthwise = nn.Conv2d(inputs, inputs, 3, 1, dilation, dilation, groups=inputs, bias=False)
    return nn.Sequential(depthwise, _norm(inputs), nn.ReLU(), *pointwise)
