"""From settings to networks: models, their files, their optimisers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, Distill, SelfLabel, WarmUp
from cpsl import ClassBalancedPrototypeClustering, Segmenter
from cpsl.engine import Optimization, RepeatedSGD, trainable
from cpsl.models import IMAGENET_MEAN, IMAGENET_STD, DeepLabV2, load_backbone_weights
from domains import label_space


def build_model(config: Config, weights: str | Path, output_norm: bool = False) -> DeepLabV2:
    """Builds the segmentation model.

    Args:
        config: Settings.
        weights: "imagenet", "random", or the name of a file of backbone weights; or the path of a whole
            model, see `load_model`.
        output_norm: Whether a BatchNorm follows the backbone, as it should behind self-supervised weights.
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
    return _channels_last(model)


def load_model(path: Path, classes: tuple[str, ...]) -> DeepLabV2:
    """Loads a whole model.

    Args:
        path: What `save_model` wrote, or a `.pkl` of the authors' release.
        classes: Names of the classes that it has to tell apart.

    Returns:
        The model on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, would run code, is of another network or other classes, or holds
            numbers that are not finite.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {path}: if a stage of a run writes it, that has to run first"
        )
    return _channels_last(Segmenter.load(path, classes).model)


def _channels_last(model: DeepLabV2) -> DeepLabV2:
    # Convolutions are faster with the channels innermost, on CPUs and GPUs alike.
    return model.to(memory_format=torch.channels_last)


def save_model(path: Path, model: DeepLabV2, config: Config) -> None:
    """Saves the network together with what it takes to use it."""
    Segmenter(model, label_space(config), config.views.full_size).save(path)


def build_clustering(
    settings: SelfLabel, num_classes: int, feature_dim: int
) -> ClassBalancedPrototypeClustering:
    """Builds the clustering that self-labeling learns its prototypes by.

    Args:
        settings: Those of the stage.
        num_classes: K.
        feature_dim: D of the network's features.
    """
    return ClassBalancedPrototypeClustering(
        num_classes,
        feature_dim,
        bank_size=settings.bank_size,
        samples_per_image=settings.samples_per_image,
        temperature=settings.temperature,
        epsilon=settings.epsilon,
        sinkhorn_iterations=settings.sinkhorn_iterations,
        sampling=settings.sampling,
        distribution_momentum=settings.distribution_momentum,
        assignment=settings.assignment,
        bank_scores=settings.bank_scores,
        logit_assignments=settings.logit_assignments,
    )


def build_optimization(
    config: Config,
    settings: WarmUp | SelfLabel | Distill,
    model: DeepLabV2,
    *more: dict[str, Any],
) -> Optimization:
    """Builds the optimiser and its schedule; the head learns faster than the backbone.

    A BatchNorm behind a pretrained backbone is as new as the head, and learns with it.

    Args:
        config: Settings.
        settings: Those of the stage.
        model: Whose parameters are trained.
        more: Further groups of parameters, as torch's optimisers take them.
    """
    head_rate = settings.learning_rate * settings.head_multiplier
    new = [*model.head.parameters()]
    pretrained: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.backbone.named_parameters():
        if name.startswith("output_norm."):
            new.append(parameter)
        else:
            # A name has a dot for each module around the parameter but the backbone itself.
            steps = name.count(".") if settings.repeat_backbone_steps else 1
            pretrained.setdefault(steps, []).append(parameter)
    groups: list[dict[str, Any]] = [
        *({"params": trainable(part), "steps": steps} for steps, part in pretrained.items()),
        {"params": trainable(new), "lr": head_rate},
        *more,
    ]
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    # One kernel for all parameters instead of hundreds.
    fused = model.mean.device.type == "cuda" and not settings.repeat_backbone_steps
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            groups, rate, (momentum, 0.999), weight_decay=decay, fused=fused
        )
    else:
        optimizer = RepeatedSGD(groups, rate, momentum, decay, fused)
    return Optimization(
        optimizer,
        settings.iterations,
        precision=config.precision,
        accumulate=config.accumulate,
        module=model,
    )


def compile_networks(config: Config, *networks: nn.Module) -> None:
    """Compiles networks in place, if the settings say so; they are then compiled at their first use."""
    if config.compile:
        for network in networks:
            network.compile()


def to_unit(image: Tensor) -> Tensor:
    """Turns uint8 images into what the models take: float in 0...1."""
    return image.float() / 255


def resize(scores: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resizes a network's output: bilinear, corners aligned."""
    return F.interpolate(scores.float(), size, mode="bilinear", align_corners=True)
