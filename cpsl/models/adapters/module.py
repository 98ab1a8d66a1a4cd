"""Any module with a per-pixel linear classifier as a `SegmentationNetwork`."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl.models.adapters.adapted import AdaptedNetwork
from cpsl.models.network import IMAGENET_MEAN, IMAGENET_STD, NetworkSpec, SegmentationOutput

ENCODERS = ("encoder", "backbone", "trunk", "feature_extractor")
"""Usual names of the pretrained part of a network."""
MASK_CLASSIFICATION = (
    "predicts masks with one class per mask (mask classification): no layer classifies pixels, so there "
    "are no features to cluster; use a network with a per-pixel classifier, such as SegFormer, UperNet or "
    "DPT, possibly with the same encoder"
)


class ModuleBody(nn.Module):
    """Calls a module, and returns the output and input of its classifier.

    Args:
        module: Called with images (B, 3, H, W). Its own output is discarded.
        classifier: Name of its per-pixel linear classifier: an nn.Conv2d, or an nn.Linear of (B, h, w, D).
    """

    def __init__(self, module: nn.Module, classifier: str) -> None:
        super().__init__()
        self.module = module
        self.classifier = classifier
        self.training = module.training
        layer: Any = module.get_submodule(classifier)
        # A hook keeps the names of the parameters, unlike a module around the layer. The hook is a function
        # without state: copies and replicas of the layer store their own maps.
        if _store not in layer._forward_hooks.values():
            layer.register_forward_hook(_store)
        layer._stored = None

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of images."""
        layer: Any = self.module.get_submodule(self.classifier)
        layer._stored = ()
        self.module(images)
        features, logits = layer._stored
        layer._stored = None
        if isinstance(layer, nn.Linear):
            features, logits = features.permute(0, 3, 1, 2), logits.permute(0, 3, 1, 2)
        return SegmentationOutput(logits, features)


def _store(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    # Only during a call of `ModuleBody`: gradient checkpointing calls the layer again in the backward pass.
    if layer._stored is not None:
        layer._stored = inputs[0], output


def from_module(
    module: nn.Module,
    classifier: str | None = None,
    *,
    align_corners: bool | None = None,
    input_size: int | tuple[int, int] = 1,
    encoder: str | Sequence[str] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> AdaptedNetwork:
    """Adapts a module with a per-pixel linear classifier.

    The network calls the module and returns the input and output of its classifier, before any resizing.
    Trial passes on random images in evaluation mode detect the classifier and how its output is resized; they
    preserve modes and random state. Parameters that do not influence the logits, such as auxiliary heads, are
    frozen, because DistributedDataParallel would reject them. The module itself remains usable.

    Args:
        module: Called with images (B, 3, H, W). Returns logits, a dictionary with "out" or "logits", a
            sequence that begins with the logits, or an object with an attribute `logits`.
        classifier: Name of the classifier, such as "decode_head.classifier": an nn.Conv2d, or an nn.Linear
            applied to (B, h, w, D). None detects the last layer whose resized output is the module's output.
        align_corners: How maps are resized, see `SegmentationNetwork`. None detects how the module does it.
        input_size: An integer: both sides of an image must be multiples of it; or the only size (H, W).
        encoder: Names of the pretrained submodules. None selects the submodule "encoder", "backbone",
            "trunk" or "feature_extractor", or else all but the classifier.
        mean: RGB mean of normalization, for images in 0...1.
        std: RGB standard deviation of normalization.

    Returns:
        The network. Its `spec` is None: to load a saved model, pass `build` to `Segmenter.load`.

    Raises:
        ValueError: There is no such layer, it is not called exactly once, or layer or resizing cannot be
            detected.
        TypeError: The layer is not a Conv2d or Linear, or the module returns no logits.

    Example:
        >>> fully_convolutional = nn.Sequential(
        ...     nn.Conv2d(3, 8, kernel_size=3, stride=4, padding=1),
        ...     nn.ReLU(),
        ...     nn.Conv2d(8, 5, kernel_size=1),
        ...     nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True),
        ... )
        >>> network = from_module(fully_convolutional, input_size=4)
        >>> network.num_classes, network.feature_dim, network.align_corners
        (5, 8, True)
        >>> network(torch.rand(1, 3, 32, 64)).logits.shape
        torch.Size([1, 5, 8, 16])
    """
    images = trial_images(module, input_size)
    with evaluation(module), torch.no_grad():
        if classifier is None:
            classifier = _find_classifier(module, images)
        _check_layer(module, classifier)
        conventions = _conventions(module, classifier, images)
    if align_corners is None:
        if not conventions:
            raise ValueError(
                f"align_corners cannot be detected, because the module's output is not the bilinearly "
                f"resized output of {classifier}: pass align_corners"
            )
        align_corners = conventions[0]
    if encoder is None:
        children = dict(module.named_children())
        names = [name for name in ENCODERS if name in children and not classifier.startswith(f"{name}.")]
        encoder = names[:1] or _all_but(module, classifier)
    return adapt(
        ModuleBody(module, classifier),
        align_corners=align_corners,
        input_size=input_size,
        encoder=[f"module.{name}" for name in ([encoder] if isinstance(encoder, str) else encoder)],
        mean=mean,
        std=std,
    )


def adapt(
    body: nn.Module,
    *,
    align_corners: bool,
    input_size: int | tuple[int, int],
    encoder: str | Sequence[str],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    spec: NetworkSpec | None = None,
) -> AdaptedNetwork:
    """Builds the network of a body, and freezes parameters that do not influence the output.

    Args:
        body: Returns a `SegmentationOutput`.
        align_corners: See `AdaptedNetwork`.
        input_size: See `AdaptedNetwork`.
        encoder: See `AdaptedNetwork`.
        mean: See `AdaptedNetwork`.
        std: See `AdaptedNetwork`.
        spec: See `AdaptedNetwork`.
    """
    images = trial_images(body, input_size)
    parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
    with evaluation(body), torch.enable_grad():
        output = body(images)
        total = output.logits.float().sum() + output.features.float().sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True) if total.requires_grad else ()
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.requires_grad_(gradient is not None)
    network = AdaptedNetwork(
        body,
        num_classes=output.logits.shape[1],
        feature_dim=output.features.shape[1],
        align_corners=align_corners,
        input_size=input_size,
        encoder=encoder,
        mean=mean,
        std=std,
        spec=spec,
    )
    network.mean, network.std = network.mean.to(images), network.std.to(images)
    network.training = body.training
    return network


def trial_images(module: nn.Module, input_size: int | tuple[int, int]) -> Tensor:
    """Returns random images (1, 3, H, W) on the module's device and in its precision."""
    if isinstance(input_size, int):
        # Large enough for two samples at stride 64; not square, so that swapped sides are detected.
        input_size = -(-128 // input_size) * input_size, (-(-128 // input_size) + 1) * input_size
    parameter = next((value for value in module.parameters() if value.is_floating_point()), torch.empty(0))
    noise = torch.rand(1, 3, *input_size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Sets a module to evaluation mode, and restores mode and random state afterwards."""
    modes = {layer: layer.training for layer in module.modules()}
    devices = {value.device for value in module.parameters() if value.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            module.eval()
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _logits_of(output: Any) -> Tensor:
    """Extracts the logits (B, K, H, W) from a module's output."""
    if hasattr(output, "class_queries_logits") or hasattr(output, "masks_queries_logits"):
        raise TypeError(f"this network {MASK_CLASSIFICATION}")
    got = type(output).__name__
    if isinstance(output, Mapping):
        got = f"a dictionary of {', '.join(map(str, output))}"
        output = next((output[key] for key in ("out", "logits") if key in output), None)
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    elif hasattr(output, "logits"):
        output = output.logits
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
        raise TypeError(
            "the module must return logits (B, K, H, W), a dictionary with out or logits, a sequence that "
            f"begins with the logits, or an object with logits; got {got}{shape}"
        )
    return output


def _call(module: nn.Module, images: Tensor) -> Tensor:
    try:
        return _logits_of(module(images))
    except Exception as error:
        size = tuple(images.shape[2:])
        error.add_note(f"Raised in a trial pass with images of size {size}: pass input_size to change it.")
        raise


def _find_classifier(module: nn.Module, images: Tensor) -> str:
    """Returns the name of the last layer whose resized output is the module's output."""
    called: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        num_classes = _call(module, images).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: _sizes(module.get_submodule(name)) for name in called}
    candidates = [name for name in dict.fromkeys(reversed(called)) if sizes[name][1] == num_classes]
    for name in candidates:
        if called.count(name) == 1 and _conventions(module, name, images, check=False):
            return name
    layers = ", ".join(f"{name} ({sizes[name][0]} to {sizes[name][1]})" for name in called[-6:])
    raise ValueError(
        f"the classifier cannot be detected, because no layer's bilinearly resized output is the module's "
        f"output with {num_classes} channels: pass align_corners and classifier, one of "
        f"{', '.join(candidates) or layers}"
    )


def _conventions(module: nn.Module, name: str, images: Tensor, check: bool = True) -> list[bool]:
    """Returns the values of `align_corners` with which the module resizes the output of a layer.

    The layer's output is replaced by noise, so that the result does not depend on the weights.
    """
    calls: list[tuple[Tensor, Tensor]] = []

    def replace(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(len(calls))
        calls.append((inputs[0], torch.randn(output.shape, generator=generator).to(output)))
        return calls[-1][1]

    layer = module.get_submodule(name)
    hook = layer.register_forward_hook(replace)
    try:
        result = _call(module, images).float()
    finally:
        hook.remove()
    if check:
        _check_calls(name, layer, calls)
    maps = calls[0][1].float()
    if isinstance(layer, nn.Linear):
        maps = maps.permute(0, 3, 1, 2) if maps.ndim == 4 else maps[..., None, None]
    if maps.shape[:2] != result.shape[:2]:
        return []
    tolerance = 1e-3 if images.dtype == torch.float32 else 0.05  # the noise has standard deviation 1
    return [
        align_corners
        for align_corners in (False, True)
        if torch.allclose(
            F.interpolate(maps, result.shape[2:], mode="bilinear", align_corners=align_corners),
            result,
            atol=tolerance,
        )
    ]


def _check_calls(name: str, layer: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> None:
    """Raises ValueError unless a layer was called once, as a per-pixel linear classifier."""
    if len(calls) != 1:
        raise ValueError(f"the classifier {name} must be called once per pass, got {len(calls)} calls")
    before, after = (tuple(maps.shape) for maps in calls[0])
    if isinstance(layer, nn.Linear) and len(before) != 4:
        raise ValueError(
            f"the classifier {name} is applied to a sequence {before}, whose height and width are unknown: "
            "reshape its input to (B, h, w, D), or replace it by an nn.Conv2d with kernel_size=1"
        )
    if isinstance(layer, nn.Conv2d) and before[2:] != after[2:]:
        raise ValueError(f"the classifier {name} must keep height and width, got {before} and {after}")


def _check_layer(module: nn.Module, name: str) -> None:
    """Raises ValueError if there is no such layer, TypeError unless it is a Conv2d or Linear."""
    layers = dict(module.named_modules())
    linear = [path for path, layer in layers.items() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    if name not in layers:
        last = name.rpartition(".")[2]
        similar = [path for path in linear if last in path] or difflib.get_close_matches(name, linear, n=5)
        raise ValueError(f"there is no layer {name}; similar ones are {', '.join((similar or linear)[-5:])}")
    layer = layers[name]
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        inside = [path for path in linear if path.startswith(f"{name}.")]
        hint = f"; it contains {', '.join(inside[-5:])}" if inside else ""
        raise TypeError(f"the classifier {name} must be a Conv2d or Linear, got {type(layer).__name__}{hint}")
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise TypeError(f"the classifier {name} must be one linear map, got {layer.groups} groups")


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Returns the channels of the input and the output of a Conv2d or Linear."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def _all_but(module: nn.Module, classifier: str) -> list[str]:
    """Returns the names of the largest submodules and parameters that exclude the classifier.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)))
    >>> _all_but(network, "1.1")
    ['0', '1.0']
    """
    first, _, rest = classifier.partition(".")
    names = [name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        if name != first:
            names += [name] if next(child.parameters(), None) is not None else []
        elif rest:
            names += [f"{name}.{inner}" for inner in _all_but(child, rest)]
    return names
