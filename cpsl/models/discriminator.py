"""The discriminator of the output space."""

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cpsl._internal.checking import check_shape


class Discriminator(nn.Module):
    """Classifies maps of class probabilities as source or target (Tsai et al., 2018).

    Four 3x3 convolutions with stride 2 (64, 128, 256 and 512 channels), followed by ReLU, the last one by
    leaky ReLU (0.2), and a 1x1 convolution.

    Args:
        num_classes: Number of classes K.
        width: Channels of the first convolution; each further convolution has twice as many.

    Example:
        >>> import torch
        >>> Discriminator(num_classes=19)(torch.rand(1, 19, 64, 128)).shape
        torch.Size([1, 1, 4, 8])
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = [num_classes, *(width * 2**number for number in range(4))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.LeakyReLU(0.2), nn.Conv2d(channels[-1], 1, 1))

    def forward(self, probabilities: Tensor) -> Tensor:
        """Classifies probabilities (B, K, H, W) by numbers (B, 1, ⌈H / 16⌉, ⌈W / 16⌉) of any size.

        Raises:
            ValueError: The shape differs.
        """
        check_shape("probabilities", probabilities, "B", self.num_classes, "H", "W")
        decision: Tensor = self.layers(probabilities.to(next(self.parameters()).dtype))
        return decision

    if TYPE_CHECKING:
        __call__ = forward
