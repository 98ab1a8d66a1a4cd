"""The network that all adapters return."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl.models.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkSpec,
    SegmentationNetwork,
    SegmentationOutput,
    fit_input,
    layers_of,
)


class AdaptedNetwork(SegmentationNetwork):
    """A `SegmentationNetwork` that normalizes colors, resizes images, and calls another module.

    Args:
        body: Called with normalized images (B, 3, H, W), returns a `SegmentationOutput`.
        num_classes: Number of classes K.
        feature_dim: Channels D of the features.
        align_corners: Whether the body's maps are corner-aligned; False for half-pixel maps.
        input_size: See `SegmentationNetwork`.
        encoder: Names of the pretrained submodules or parameters of `body`, "" for all; others are new.
        mean: RGB mean for images in 0...1.
        std: RGB standard deviation.
        spec: Name and arguments for `build_network`; None if it cannot be built by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        num_classes: int,
        feature_dim: int,
        align_corners: bool,
        input_size: int | tuple[int, int],
        encoder: str | Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        spec: NetworkSpec | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.align_corners = align_corners
        self.input_size = input_size
        self.encoder = (encoder,) if isinstance(encoder, str) else tuple(encoder)
        self.spec = spec
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Segments images (B, 3, H, W) of any size, float in 0...1.

        Raises:
            ValueError: The images have the wrong shape.
            TypeError: The images are not floating point.
        """
        check_shape("images", image, "B", 3, "H", "W")
        if not image.is_floating_point():
            raise TypeError(f"images must be float in 0...1, got {image.dtype}; divide by 255")
        image = fit_input((image - self.mean) / self.std, self.input_size)
        output: SegmentationOutput = self.body(image)
        return output

    if TYPE_CHECKING:
        __call__ = forward

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        """Returns the parameters of the encoder, one list per block, in the order of their definition."""
        parameters = dict(self.body.named_parameters())
        layers: list[list[nn.Parameter]] = []
        for name in self.encoder:
            single = name in parameters  # a parameter outside of submodules
            layers += [[parameters[name]]] if single else layers_of(self.body.get_submodule(name))
        return layers


def plain_copy(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments as plain values, those of NumPy as Python's.

    Raises:
        TypeError: One is of another type, such as a class or a function.

    Example:
        >>> plain_copy({"feature_dim": np.int64(64), "out": (1, 2)})
        {'feature_dim': 64, 'out': [1, 2]}
    """

    def convert(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is not a plain value")

    copied: dict[str, Any] = json.loads(json.dumps(arguments, default=convert))
    return copied
