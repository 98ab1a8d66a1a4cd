"""Networks of a few parameters for the tests, which obey the protocol without inheriting from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl.models import SegmentationOutput


class Patches(nn.Module):
    """Classifies patches of 4x4 pixels; without dropout and BatchNorm, so that each pass gives the same."""

    def __init__(self, classes: int = 3, features: int = 8, align_corners: bool = True) -> None:
        super().__init__()
        self.num_classes, self.feature_dim = classes, features
        self.align_corners, self.input_size = align_corners, 4
        self.encode = nn.Conv2d(3, features, 4, stride=4)
        self.classify = nn.Conv2d(features, classes, 1)

    def forward(self, images: Tensor) -> SegmentationOutput:
        features = self.encode(images)
        return SegmentationOutput(self.classify(features), features)

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        return [list(self.encode.parameters())]


class Colors(nn.Module):
    """Classifies by color, at stride 4: the same for any size and for the mirrored image."""

    def __init__(self, classes: int, align_corners: bool = True) -> None:
        super().__init__()
        self.num_classes = self.feature_dim = classes
        self.align_corners, self.input_size = align_corners, 1
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(4 * torch.randn(classes, 3, 1, 1, generator=generator))

    def forward(self, images: Tensor) -> SegmentationOutput:
        small = F.interpolate(images, scale_factor=0.25, mode="area") - 0.5
        logits = F.conv2d(small, self.weight)
        return SegmentationOutput(logits, logits)

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        return []


class Overflowing(Colors):
    """Has infinite logits for bright pixels; a network of one's own, "small_networks:Overflowing"."""

    def forward(self, images: Tensor) -> SegmentationOutput:
        logits = super().forward(images).logits
        bright = F.interpolate(images, scale_factor=0.25, mode="area").mean(dim=1, keepdim=True) > 0.5
        return SegmentationOutput(logits.masked_fill(bright, torch.inf), logits)


def build_patches(num_classes: int, features: int = 8, align_corners: bool = False) -> Patches:
    """Builds a network of one's own, as `model.network = "small_networks:build_patches"`."""
    return Patches(num_classes, features, align_corners)
