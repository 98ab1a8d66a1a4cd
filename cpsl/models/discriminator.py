"""The discriminator of the output space."""

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Tells from a map of class probabilities which domain it belongs to (Tsai et al., 2018).

    Four 3x3 convolutions of stride 2 and padding 1 (64, 128, 256, 512 channels), which halve the grid and
    round up; ReLU after three of them, leaky ReLU (0.2) after the last; and a 1x1.

    Args:
        num_classes: Number of classes K.
        width: Channels of the first convolution; each further one has twice as many.

    Example:
        >>> import torch
        >>> Discriminator(num_classes=19)(torch.rand(1, 19, 64, 128)).shape
        torch.Size([1, 1, 4, 8])
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        inputs = num_classes
        for number in range(4):
            outputs = width * 2**number
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))
            layers.append(nn.ReLU() if number < 3 else nn.LeakyReLU(0.2))
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 1, 1))

    def forward(self, probabilities: Tensor) -> Tensor:
        """Judges maps.

        Args:
            probabilities: (B, K, H, W) softmax of a segmentation network.

        Returns:
            (B, 1, ⌈H / 16⌉, ⌈W / 16⌉) unbounded; the loss decides which value stands for which domain.

        Raises:
            ValueError: The shape is another.
        """
        if probabilities.ndim != 4 or probabilities.shape[1] != self.num_classes:
            raise ValueError(
                f"probabilities must be (B, {self.num_classes}, H, W), got {tuple(probabilities.shape)}"
            )
        decision: Tensor = self.layers(probabilities)
        return decision
