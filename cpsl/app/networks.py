"""Networks, clustering and optimizers, built from the settings; files of models."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cpsl.app.config import Authors, Config, Optimizer
from cpsl.app.datasets import label_space
from cpsl.authors import AuthorsClustering, RepeatedSGD
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.inference import Segmenter
from cpsl.models import IMAGENET_MEAN, IMAGENET_STD, DeepLabV2, load_backbone_weights
from cpsl.training import trainable


def build_model(config: Config, weights: str | Path, output_norm: bool = False) -> DeepLabV2:
    """Builds the segmentation model.

    The weights are "imagenet", "random", or the name of a file with those of a backbone; a `Path` is the file
    of a whole model. A backbone with self-supervised weights needs the `output_norm` behind it.
    """
    if isinstance(weights, Path):
        return load_model(weights, label_space(config).names)
    normalized = weights == "imagenet" and config.model.imagenet_colors
    model = DeepLabV2(
        len(label_space(config)),
        config.model.backbone,
        config.model.feature_dim,
        output_norm=output_norm,
        mean=IMAGENET_MEAN if normalized else (0.0, 0.0, 0.0),
        std=IMAGENET_STD if normalized else (1.0, 1.0, 1.0),
    )
    if weights == "imagenet" and config.model.imagenet_file:
        load_backbone_weights(model.backbone, config.model.imagenet_file)
    elif weights != "random":
        load_backbone_weights(model.backbone, weights, config.model.backbone)
    return model.to(memory_format=torch.channels_last)  # faster convolutions, on CPUs and GPUs alike


def load_model(path: Path, classes: tuple[str, ...]) -> DeepLabV2:
    """Loads a whole model to the CPU: a file of `save_model`, or a `.pkl` of the authors."""
    return Segmenter.load(path, classes).model.to(memory_format=torch.channels_last)


def save_model(path: Path, model: DeepLabV2, config: Config) -> None:
    """Saves a network with its classes and the size of its images."""
    Segmenter(model, label_space(config), config.views.full_size).save(path)


def build_clustering(config: Config, num_classes: int, feature_dim: int) -> ClassBalancedPrototypeClustering:
    """Builds the clustering of self-labeling."""
    settings, authors = config.self_label, config.authors
    build: Callable[..., ClassBalancedPrototypeClustering] = ClassBalancedPrototypeClustering
    if authors != Authors():
        build = partial(
            AuthorsClustering,
            image_by_image=authors.image_by_image,
            dot_product_bank_scores=authors.dot_product_bank_scores,
            logit_assignments=authors.logit_assignments,
        )
    return build(
        num_classes,
        feature_dim,
        bank_size=settings.bank_size,
        samples_per_image=settings.samples_per_image,
        temperature=settings.temperature,
        epsilon=settings.epsilon,
        sinkhorn_iterations=settings.sinkhorn_iterations,
        sampling=settings.sampling,
        distribution_momentum=settings.distribution_momentum,
    )


def build_optimizer(
    config: Config, settings: Optimizer, model: DeepLabV2, *groups: dict[str, Any]
) -> torch.optim.Optimizer:
    """Builds the optimizer of a network and of further parameter groups.

    The head, and a BatchNorm behind the backbone, have the head's learning rate.
    """
    new = [*model.head.parameters()]
    pretrained: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.backbone.named_parameters():
        if name.startswith("output_norm."):
            new.append(parameter)
        else:
            # The authors' code steps once for each module that encloses the parameter: one per dot.
            steps = name.count(".") if config.authors.repeat_backbone_steps else 1
            pretrained.setdefault(steps, []).append(parameter)
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    parameters: list[dict[str, Any]] = [
        *({"params": trainable(part), "steps": steps} for steps, part in pretrained.items()),
        {"params": trainable(new), "lr": rate * settings.head_multiplier},
        *groups,
    ]
    fused = model.mean.device.type == "cuda"  # one kernel for all parameters
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, rate, (momentum, 0.999), weight_decay=decay, fused=fused)
    return RepeatedSGD(parameters, rate, momentum, decay, fused)


def compile_networks(config: Config, *networks: nn.Module | None) -> None:
    """Compiles networks in place if the settings ask for it; they are compiled at their first call."""
    for network in networks if config.compile else ():
        if network is not None:
            network.compile()
