"""Networks and optimizers built from the settings; model files."""

import os
import sys
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import nn

from cpsl.app.config import Config, Optimizer
from cpsl.app.datasets import label_space
from cpsl.authors import RepeatedSGD
from cpsl.inference import Segmenter
from cpsl.models import SegmentationNetwork, build_network, segment
from cpsl.models.build import LIBRARIES, Builder, call_builder, check_rebuilds, is_named
from cpsl.models.network import fit_input, parameter_groups
from cpsl.training import Process


def build_model(config: Config, weights: str | Path, output_norm: bool = False) -> SegmentationNetwork:
    """Builds the segmentation network of the settings.

    `weights` is "pretrained", "random", or a file with the weights of the pretrained layers as a string; a
    `Path` is the file of a whole model.
    """
    if isinstance(weights, Path):
        return load_model(config, weights)
    settings, classes = config.model, len(label_space(config))
    arguments = dict(settings.arguments)
    # `build_network` has parameters of these names.
    if elsewhere := [name for name in ("name", "num_classes", "weights") if name in arguments]:
        raise ValueError(
            f"model.arguments: {', '.join(elsewhere)} cannot be an argument of a network; the settings are "
            "model.network, classes and model.weights"
        )
    dim = settings.feature_dim
    if dim is not None and arguments.setdefault("feature_dim", dim) != dim:
        raise ValueError("model.feature_dim and model.arguments set feature_dim to different numbers")
    if output_norm and settings.network.startswith("deeplabv2:"):
        arguments["output_norm"] = True
    source = settings.weights if weights == "pretrained" and settings.weights else weights
    build = custom_builder(settings.network)
    if build is None:
        network = build_network(settings.network, classes, weights=source, **arguments)
    else:
        network = call_builder(build, settings.network, classes, source, arguments)
    check_rebuilds(network, build)  # fails now rather than when the stage is saved
    return network.to(memory_format=torch.channels_last)  # faster convolutions, on CPUs and GPUs alike


def custom_builder(name: str | None) -> Builder | None:
    """Imports the function "MODULE:FUNCTION" that builds a custom network; None for other names.

    Raises:
        ValueError: The function cannot be imported.
    """
    if name is None or is_named(name):
        return None
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for a file in the current folder
    try:
        build: Builder = getattr(import_module(module), function)
        if not callable(build):
            raise ValueError(f"{function} is no function")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the network {name!r} cannot be imported ({error}): expected lite0, LIBRARY:NETWORK "
            f"(libraries: {', '.join(LIBRARIES)}), or MODULE:FUNCTION for a custom network"
        ) from error
    except Exception as error:  # of any kind, in the file itself
        raise ValueError(f"the network {name!r} cannot be imported: {_describe_import(error)}") from error
    return build


def _describe_import(error: Exception) -> str:
    """Returns file, line and text of an error in a module that is imported."""
    last = extract_tb(error.__traceback__)[-1]
    file, line, text = last.filename, last.lineno, str(error)
    if isinstance(error, SyntaxError):  # the module did not run: the last line is one of Python's own
        file, line, text = error.filename or file, error.lineno or line, error.msg
    return f"{file}, line {line}: {type(error).__name__}: {text}"


def builder_option(name: str | None) -> Builder | None:
    """Imports the function that --network names.

    Raises:
        ValueError: It cannot be imported, or is the name of a library's network.
    """
    if name is not None and is_named(name):
        raise ValueError(
            f"--network {name}: expected MODULE:FUNCTION; the file itself names networks of libraries"
        )
    return custom_builder(name)


@torch.inference_mode()
def describe_network(config: Config, process: Process) -> str:
    """Returns a line that describes the network: parameters, features, stride and accepted sizes."""
    network = build_model(config, "random").to(process.device).eval()
    total = sum(parameter.numel() for parameter in network.parameters())
    pretrained = sum(p.numel() for layer in network.pretrained_layers() for p in layer)
    height, width = config.views.crop
    size = network.input_size
    crop = fit_input(torch.zeros(1, 3, height, width, device=process.device), size)
    grid, fitted = segment(network, crop).features.shape[2:], tuple(crop.shape[2:])
    resized = f", resized to {fitted[0]}x{fitted[1]}" if fitted != (height, width) else ""
    accepted = f"the size {size[0]}x{size[1]}" if isinstance(size, tuple) else f"multiples of {size}"
    return (
        f"network: {config.model.network}, {total / 1e6:.1f} M parameters ({pretrained / 1e6:.1f} M in "
        f"pretrained layers); {network.feature_dim} feature channels on a {grid[0]}x{grid[1]} grid for crops "
        f"of {height}x{width}{resized} (stride {fitted[0] / grid[0]:.3g}), "
        f"{'corner-aligned' if network.align_corners else 'half-pixel'}"
        f"{'' if size == 1 else f'; images are resized to {accepted}'}"
    )


def load_model(config: Config, path: Path) -> SegmentationNetwork:
    """Loads a whole model to the CPU: a file of `save_model`, or a `.pkl` of the authors."""
    build = custom_builder(config.model.network)
    return for_inference(Segmenter.load(path, label_space(config).names, build=build))


def for_inference(segmenter: Segmenter) -> SegmentationNetwork:
    """Returns the network of a segmenter in the memory format that is fast."""
    return segmenter.network.to(memory_format=torch.channels_last)


def save_model(path: Path, model: SegmentationNetwork, config: Config) -> None:
    """Saves a network with its classes, and the size and the range of values of the target's images."""
    segmenter = Segmenter(model, label_space(config), config.views.full_size, config.target.value_range)
    segmenter.save(path)


def build_optimizer(
    config: Config, settings: Optimizer, network: SegmentationNetwork, *groups: dict[str, Any]
) -> torch.optim.Optimizer:
    """Builds the optimizer of a network and of further parameter groups.

    New layers have the learning rate of the head. With `layer_decay`, that of pretrained layers decreases
    towards the input.
    """
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    parameters = parameter_groups(
        network, rate, head_multiplier=settings.head_multiplier, layer_decay=settings.layer_decay
    )
    if config.authors.repeat_backbone_steps:
        parameters = [*_by_steps(network, parameters[:-1]), parameters[-1]]
    parameters += groups
    fused = next(network.parameters()).device.type == "cuda"  # one kernel for all parameters
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, rate, (momentum, 0.999), weight_decay=decay, fused=fused)
    return RepeatedSGD(parameters, rate, momentum, decay, fused)


def _by_steps(network: SegmentationNetwork, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Splits groups of the backbone: the authors' code steps once for each module around a parameter."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    split: dict[tuple[float, int], list[nn.Parameter]] = {}
    for group in groups:
        for parameter in group["params"]:
            steps = names[id(parameter)].count(".") - 1  # without the name of the backbone
            split.setdefault((group["lr"], steps), []).append(parameter)
    return [{"params": params, "lr": rate, "steps": steps} for (rate, steps), params in split.items()]


def compile_networks(config: Config, *networks: nn.Module | None) -> None:
    """Compiles networks in place if the settings enable it; compilation runs at the first call."""
    for network in networks if config.compile else ():
        if network is not None:
            network.compile()
