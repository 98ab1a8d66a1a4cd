"""The protocol of a segmentation network, and the operations that depend on it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import unwrap
from cpsl.models.ema import ExponentialMovingAverage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""RGB mean and standard deviation of ImageNet for images in 0...1, as most pretrained weights require."""


class SegmentationOutput(NamedTuple):
    """Output of a segmentation network.

    Attributes:
        logits: (B, K, h, w).
        features: (B, D, h, w), the input of the linear classifier.
    """

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class NetworkSpec:
    """The name and arguments from which `build_network` rebuilds a network.

    Attributes:
        name: For example "timm:convnext_tiny".
        arguments: Plain values: numbers, strings, and lists and dictionaries of them.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class SegmentationNetwork(nn.Module, ABC):
    """Protocol of a segmentation network: four attributes, `forward` and `pretrained_layers`.

    Any nn.Module with these members is accepted; it need not inherit from this class. `from_timm`,
    `from_transformers`, `from_smp`, `from_torchvision` and `from_module` adapt other networks.

    Attributes:
        num_classes: Number of classes K.
        feature_dim: Channels D of the features.
        align_corners: How maps of the output are resized, as in `torch.nn.functional.interpolate`: False
            for half-pixel maps, whose samples are centers of equal cells; True for corner-aligned maps.
        input_size: An integer: both sides of an image must be multiples of it, 1 for any size; or the only
            accepted size (H, W). `segment` resizes other images.
        spec: Name and arguments for `build_network`, stored in saved models; None if it has no name.

    Example:
        >>> import torch
        >>> class Patches(nn.Module):
        ...     num_classes, feature_dim, align_corners, input_size = 3, 8, False, 4
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        ...         self.classify = nn.Conv2d(8, 3, kernel_size=1)
        ...
        ...     def forward(self, images):
        ...         features = self.embed(images)
        ...         return SegmentationOutput(self.classify(features), features)
        ...
        ...     def pretrained_layers(self):
        ...         return []
        >>> network = check_network(Patches())
        >>> segment(network, torch.rand(1, 3, 30, 50)).logits.shape
        torch.Size([1, 3, 8, 13])
    """

    num_classes: int
    feature_dim: int
    align_corners: bool
    input_size: int | tuple[int, int]
    spec: NetworkSpec | None = None

    @abstractmethod
    def forward(self, image: Tensor) -> SegmentationOutput:
        """Returns logits and features of images (B, 3, H, W), float in 0...1; normalizes colors itself."""

    if TYPE_CHECKING:
        __call__ = forward

    @abstractmethod
    def pretrained_layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Returns the pretrained parameters by layer, from input to output; all others are new."""


def check_network(network: nn.Module) -> SegmentationNetwork:
    """Returns the network without its wrappers, if it implements `SegmentationNetwork`.

    Wrappers are DistributedDataParallel, DataParallel, torch.compile and `ExponentialMovingAverage`.

    Raises:
        TypeError: Attributes are missing or of another type; the message lists them. Or it is no module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected an nn.Module that implements SegmentationNetwork, got {type(network).__name__}"
        )
    inner = network
    while (
        deeper := unwrap(inner.module if isinstance(inner, ExponentialMovingAverage) else inner)
    ) is not inner:
        inner = deeper
    size = getattr(inner, "input_size", None)
    fixed = isinstance(size, tuple) and len(size) == 2 and all(_is_count(extent) for extent in size)
    wrong = {
        "num_classes, an integer": not _is_count(getattr(inner, "num_classes", None)),
        "feature_dim, an integer": not _is_count(getattr(inner, "feature_dim", None)),
        "align_corners, a bool": not isinstance(getattr(inner, "align_corners", None), bool | np.bool_),
        "input_size, an integer or a size (H, W)": not (_is_count(size) or fixed),
        "pretrained_layers(), a method": not callable(getattr(inner, "pretrained_layers", None)),
    }
    if missing := [_with_value(inner, name) for name, absent in wrong.items() if absent]:
        raise TypeError(
            f"{type(inner).__name__} is not a SegmentationNetwork: it lacks {'; '.join(missing)}; "
            "add them, or adapt the network with cpsl.models.from_module or the adapter of its library"
        )
    return cast(SegmentationNetwork, inner)


def _is_count(value: object) -> bool:
    # Those of NumPy are no subclass of int.
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def _with_value(network: nn.Module, requirement: str) -> str:
    """Returns a requirement, and the value that does not fulfil it, if there is one."""
    value = getattr(network, requirement.partition(",")[0].removesuffix("()"), None)
    return requirement if value is None else f"{requirement} (got {value!r})"


def segment(network: nn.Module, images: Tensor) -> SegmentationOutput:
    """Calls a network, wrapped or not, with images in the size and precision that it accepts.

    Args:
        network: Implements `SegmentationNetwork`.
        images: (B, 3, H, W), float in 0...1, of any size.

    Returns:
        Logits and features that cover the whole images.

    Raises:
        TypeError: The network does not implement the protocol, or returns another type; or the images are
            integers.
        ValueError: The images or the outputs have the wrong shape.
    """
    inner = check_network(network)
    check_shape("images", images, "B", 3, "H", "W")
    if not images.is_floating_point():
        raise TypeError(f"images must be float in 0...1, got {images.dtype}; divide by 255")
    images = fit_input(images, inner.input_size)
    parameter = next(inner.parameters(), images)
    output = network(images.to(parameter.dtype) if parameter.is_floating_point() else images)
    parts = getattr(output, "logits", None), getattr(output, "features", None)
    if not all(isinstance(part, Tensor) for part in parts):
        parts_found = " and ".join(type(part).__name__ for part in parts)
        raise TypeError(
            "a network must return an object with tensors logits and features, such as "
            f"cpsl.models.SegmentationOutput, got {type(output).__name__} with {parts_found}"
        )
    check_shape("the network's logits", output.logits, images.shape[0], inner.num_classes, "h", "w")
    grid = output.logits.shape[2:]
    check_shape("the network's features", output.features, images.shape[0], inner.feature_dim, *grid)
    return SegmentationOutput(output.logits, output.features)


def fit_input(images: Tensor, input_size: int | tuple[int, int]) -> Tensor:
    """Resizes images (B, 3, H, W) to a size that `SegmentationNetwork.input_size` allows, bilinearly.

    Sides are enlarged to the next multiple, so that no detail is lost.

    Example:
        >>> import torch
        >>> fit_input(torch.rand(1, 3, 30, 56), 14).shape
        torch.Size([1, 3, 42, 56])
    """
    if input_size == 1:
        return images
    height, width = images.shape[2:]
    if isinstance(input_size, tuple):
        size = int(input_size[0]), int(input_size[1])
    else:
        multiple = int(input_size)  # maybe a scalar of NumPy, which torch refuses
        # ONNX rounds the quotient of a negative number up, so -(-height // multiple) is not a ceiling.
        more = multiple - 1
        size = (height + more) // multiple * multiple, (width + more) // multiple * multiple
    # An exported graph has no branches: it always resizes, even to the same size.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()  # new in torch 2.7
    if not exporting and (height, width) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def resize(maps: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Resizes a network's output (B, C, h, w) to (H, W), bilinearly in float32.

    Args:
        maps: Logits, probabilities or features.
        size: (H, W).
        align_corners: `SegmentationNetwork.align_corners` of the network.

    Example:
        >>> import torch
        >>> resize(torch.tensor([[[[0.0, 2.0]]]]), (1, 3), align_corners=True)
        tensor([[[[0., 1., 2.]]]])
    """
    return F.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=bool(align_corners))


def parameter_groups(
    network: nn.Module, learning_rate: float, *, head_multiplier: float = 10.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Returns parameter groups for an optimizer, with a larger learning rate for new layers.

    Frozen parameters (`requires_grad=False`) are omitted.

    Args:
        network: Implements `SegmentationNetwork`, wrapped or not.
        learning_rate: Learning rate of the last pretrained layer.
        head_multiplier: Learning rate of the new layers, relative to `learning_rate`.
        layer_decay: Learning rate of a pretrained layer relative to the next layer, 0...1; usual for
            transformers (Clark et al., 2020; Bao et al., 2022). 1 puts all of them into one group.

    Raises:
        TypeError: `pretrained_layers` returns no lists of parameters of the network, or one of them twice.

    Example:
        >>> from cpsl.models import DeepLabV2
        >>> groups = parameter_groups(DeepLabV2(3, "resnet_tiny", feature_dim=8), 1e-4)
        >>> tuple(group["lr"] for group in groups)
        (0.0001, 0.001)
    """
    inner = check_network(network)
    layers = _checked_layers(inner)
    pretrained: dict[float, list[nn.Parameter]] = {}
    for distance, layer in zip(reversed(range(len(layers))), layers, strict=True):
        trained = [parameter for parameter in layer if parameter.requires_grad]
        pretrained.setdefault(learning_rate * layer_decay**distance, []).extend(trained)
    known = {id(parameter) for layer in layers for parameter in layer}
    new = [p for p in inner.parameters() if id(p) not in known and p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": params, "lr": rate} for rate, params in pretrained.items()]
    return [*groups, {"params": new, "lr": learning_rate * head_multiplier}]


def _checked_layers(network: SegmentationNetwork) -> list[list[nn.Parameter]]:
    """Returns the pretrained layers; raises TypeError unless they partition parameters of the network."""
    layers: Any = network.pretrained_layers()
    own = {id(parameter) for parameter in network.parameters()}
    # Iterating over a parameter would yield its rows.
    lists = isinstance(layers, Iterable) and not any(isinstance(layer, Tensor) for layer in layers)
    layers = [list(layer) for layer in layers] if lists else []
    found = [id(parameter) for layer in layers for parameter in layer]
    if not lists or not own.issuperset(found) or len(set(found)) != len(found):
        raise TypeError(
            f"pretrained_layers() of {type(network).__name__} must return a list of lists of parameters of "
            "the network, each of them once"
        )
    return cast(list[list[nn.Parameter]], layers)


def layers_of(encoder: nn.Module, exclude: str = "?") -> list[list[nn.Parameter]]:
    """Returns the parameters of an encoder, one list per block, in the order of their definition.

    Args:
        encoder: Any module; blocks are recognized by the numbers in parameter names. Consecutive other
            parameters, such as those of the stem, form one layer.
        exclude: Prefix of parameter names to omit.

    Example:
        >>> encoder = nn.ModuleDict({"stem": nn.Linear(3, 4), "blocks": nn.Sequential(nn.Linear(4, 4))})
        >>> [len(layer) for layer in layers_of(encoder)]
        [2, 2]
    """
    layers: dict[str, list[nn.Parameter]] = {}
    last, others = None, 0
    for name, parameter in encoder.named_parameters():
        if name.startswith(exclude):
            continue
        block = _block(name)
        if block is None and last is not None:
            others += 1  # parameters between two blocks form a layer
        layers.setdefault(block or f"other {others}", []).append(parameter)
        last = block
    return list(layers.values())


def _block(name: str) -> str | None:
    """Returns the name of a parameter's block, including its number; None outside of blocks.

    >>> _block("blocks.3.mlp.0.weight"), _block("stages.2.blocks.5.conv.1.bias"), _block("layer3.4.bn1.bias")
    ('blocks.3', 'stages.2.blocks.5', 'layer3.4')
    >>> _block("patch_embed.proj.weight"), _block("conv1.weight")
    (None, None)
    """
    match = re.match(r"(.*?\.\d+(\.blocks)?(\.\d+)?)\.", name)
    return match.group(1) if match else None
