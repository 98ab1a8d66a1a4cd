"""Networks by name, such as "timm:convnext_tiny"."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpsl.models.adapters.fitting import fit_weights
from cpsl.models.adapters.weights import read_weights
from cpsl.models.deeplab import DeepLabV2
from cpsl.models.network import IMAGENET_MEAN, IMAGENET_STD, NetworkSpec, SegmentationNetwork, check_network
from cpsl.models.resnet import load_backbone_weights

LIBRARIES = ("deeplabv2", "timm", "transformers", "smp", "torchvision")
"""Libraries that a network name can begin with."""

Builder = Callable[..., nn.Module]
"""Builds a custom network from the number of classes and its arguments."""


def build_network(
    name: str, num_classes: int, *, weights: str | Path = "pretrained", **arguments: Any
) -> SegmentationNetwork:
    """Builds a network from its name.

    Args:
        name: "LIBRARY:NETWORK", such as "deeplabv2:resnet101", "timm:convnext_tiny", "smp:Unet/resnet34",
            "transformers:nvidia/mit-b0" or "torchvision:deeplabv3_resnet50"; or "lite0".
        num_classes: Number of classes K.
        weights: "pretrained" for the weights published by the library, "random", or a file.
        **arguments: Further arguments of the library's adapter, such as `feature_dim` of `from_timm`.

    Raises:
        ValueError: The name is unknown, or the file does not fit.
        TypeError: The network does not accept an argument.
        ModuleNotFoundError: The library is not installed.
        ConnectionError: The pretrained weights cannot be downloaded.
        FileNotFoundError: There is no such file.

    Example:
        >>> network = build_network("deeplabv2:resnet_tiny", 3, weights="random", feature_dim=16)
        >>> network.num_classes, network.feature_dim, network.spec.name
        (3, 16, 'deeplabv2:resnet_tiny')
    """
    library, _, network = name.partition(":")
    if name == "lite0":
        lite0: SegmentationNetwork = _call(_adapter("lite0"), name, num_classes, weights=weights, **arguments)
        return lite0
    if library not in LIBRARIES or not network:
        raise ValueError(
            f'the network {name!r} is unknown: expected "lite0" or "LIBRARY:NETWORK", where LIBRARY is one '
            f"of {', '.join(LIBRARIES)}"
        )
    build = _deeplabv2 if library == "deeplabv2" else _adapter(library)
    built: SegmentationNetwork = _call(build, name, network, num_classes, weights=weights, **arguments)
    return built


def is_named(name: str) -> bool:
    """Returns whether `build_network` builds networks of this name."""
    return name == "lite0" or name.partition(":")[0] in LIBRARIES


def check_offline(name: str) -> None:
    """Raises ValueError if a network of random weights would be downloaded, as no saved model needs.

    The description of a network of transformers may be on a hub or in a folder; that of the model in a file
    is in its arguments.
    """
    library, _, network = name.partition(":")
    if library == "transformers" and find_spec(library) and not _module(library).is_architecture(network):
        raise ValueError(
            f"a saved model names a model type of transformers, such as segformer, not {network}"
        )


def call_builder(
    build: Builder, name: str | None, num_classes: int, weights: str | Path, arguments: Mapping[str, Any]
) -> SegmentationNetwork:
    """Builds a custom network, and gives it the name under which it is saved, unless that is None.

    `weights` is passed only if the builder has such a parameter; otherwise the builder chooses the weights.

    Raises:
        TypeError: The builder does not accept an argument, or the result is not a `SegmentationNetwork`.
        ValueError: `weights` is a file, but the builder has no such parameter; or the number of classes
            differs.
    """
    options = dict(arguments)
    if "weights" in inspect.signature(build).parameters:
        options["weights"] = weights
    elif weights not in ("pretrained", "random"):
        raise ValueError(f"{name} has no parameter `weights`, so it cannot read the file {weights}")
    network = check_network(_call(build, name or "of the builder", num_classes, **options))
    if network.num_classes != num_classes:
        raise ValueError(
            f"{name or 'the network'} has {network.num_classes} classes instead of {num_classes}"
        )
    network.spec = None if name is None else NetworkSpec(name, dict(arguments))
    return network


def check_rebuilds(network: SegmentationNetwork, build: Builder | None = None) -> SegmentationNetwork:
    """Rebuilds a network from its name and arguments, with random weights, and compares the state dicts.

    Args:
        network: Has a `spec`.
        build: Builder of a custom network; None for `build_network`.

    Raises:
        ValueError: The network has no name, or the state dicts differ in keys or shapes.
    """
    spec = getattr(network, "spec", None)
    if spec is None:
        raise ValueError(f"a {type(network).__name__} without a name cannot be rebuilt: set its `spec`")
    with torch.random.fork_rng(devices=[]):  # initial weights draw random numbers
        if build is None:
            again = build_network(spec.name, network.num_classes, weights="random", **spec.arguments)
        else:
            again = call_builder(build, spec.name, network.num_classes, "random", spec.arguments)
    old, new = state_dict_of(network), again.state_dict()
    wrong = [key for key in old if key not in new or new[key].shape != old[key].shape]
    wrong += [key for key in new if key not in old]
    # Attributes that were changed afterwards would be lost.
    attributes = ("num_classes", "feature_dim", "align_corners", "input_size")
    wrong += [name for name in attributes if getattr(network, name) != getattr(again, name)]
    if wrong:
        raise ValueError(
            f"the network {spec.name} cannot be saved: a network rebuilt from its name and arguments differs "
            f"in {len(wrong)} entries, such as {wrong[0]}"
        )
    return again


def state_dict_of(network: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict of a network with the names that it has without torch.compile of submodules.

    Example:
        >>> list(state_dict_of(nn.Sequential(torch.compile(nn.Linear(2, 3)))))
        ['0.weight', '0.bias']
    """
    return {key.replace("_orig_mod.", ""): value for key, value in network.state_dict().items()}


def _module(library: str) -> Any:
    return import_module(f"cpsl.models.adapters.{library}")


def _adapter(library: str) -> Callable[..., SegmentationNetwork]:
    function: Callable[..., SegmentationNetwork] = getattr(_module(library), f"from_{library}")
    return function


def _call(build: Callable[..., Any], name: str, *values: Any, **options: Any) -> Any:
    """Calls a builder; the error for an unknown argument names the network."""
    parameters = inspect.signature(build).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = list(parameters)[len(values) :]
    if unknown := [key for key in options if key not in known and (key in parameters or not takes_any)]:
        known = [key for key in known if key != "weights"]
        raise TypeError(
            f"the network {name} has no argument {', '.join(unknown)}; "
            f"its arguments are {', '.join(known) or 'none'}"
        )
    return build(*values, **options)


def _deeplabv2(
    backbone: str,
    num_classes: int,
    *,
    weights: str | Path,
    feature_dim: int = 256,
    dropout: float = 0.1,
    output_norm: bool = False,
    dilations: tuple[int, ...] = (6, 12, 18, 24),
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> DeepLabV2:
    network = DeepLabV2(
        num_classes,
        backbone,
        feature_dim,
        dropout=dropout,
        output_norm=output_norm,
        dilations=dilations,
        mean=mean,
        std=std,
    )
    if weights == "pretrained":
        load_backbone_weights(network.backbone, "imagenet", backbone)
    elif weights != "random":
        fit_weights(network, read_weights(weights), weights, "backbone", optional="backbone.output_norm")
    return network
