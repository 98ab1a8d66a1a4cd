"""From settings to networks: models, their files, their optimisers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, Distill, SelfLabel, WarmUp
from cpsl.engine import Optimization, load, save, trainable
from cpsl.models import IMAGENET_MEAN, IMAGENET_STD, DeepLabV2, load_backbone_weights
from domains import label_space


def build_model(config: Config, weights: str | Path, output_norm: bool = False) -> DeepLabV2:
    """Builds the segmentation model.

    Args:
        config: Settings.
        weights: "imagenet", "random", the name of a file of backbone weights, or the path of what
            `save_model` wrote.
        output_norm: Whether a BatchNorm follows the backbone, as it should behind self-supervised weights.
    """
    saved = load(weights) if isinstance(weights, Path) else None
    # The release's weights take images as they are, torchvision's take them normalised.
    imagenet = weights == "imagenet"
    model = DeepLabV2(
        len(label_space(config)),
        config.model.backbone,
        config.model.feature_dim,
        output_norm=saved["output_norm"] if saved else output_norm,
        mean=IMAGENET_MEAN if imagenet else (0.0, 0.0, 0.0),
        std=IMAGENET_STD if imagenet else (1.0, 1.0, 1.0),
    )
    if saved:
        model.load_state_dict(saved["model"])
    elif imagenet and config.model.imagenet_file:
        load_backbone_weights(model.backbone, config.model.imagenet_file)
    elif weights != "random":
        load_backbone_weights(model.backbone, weights, config.model.backbone)
    # Convolutions are faster with the channels innermost, on CPUs and GPUs alike.
    return model.to(memory_format=torch.channels_last)


def save_model(path: Path, model: nn.Module, config: Config) -> None:
    """Saves the weights together with what it takes to use them."""
    classes, state = label_space(config), model.state_dict()
    save(
        path,
        {
            "model": state,
            "backbone": config.model.backbone,
            "feature_dim": config.model.feature_dim,
            "output_norm": "backbone.output_norm.weight" in state,
            "classes": list(classes.names),
            "palette": [list(color) for color in classes.palette],
        },
    )


def build_optimization(
    config: Config,
    settings: WarmUp | SelfLabel | Distill,
    model: DeepLabV2,
    *more: dict[str, Any],
) -> Optimization:
    """Builds the optimiser and its schedule; the head learns faster than the backbone.

    Args:
        config: Settings.
        settings: Those of the stage.
        model: Whose parameters are trained.
        more: Further groups of parameters, as torch's optimisers take them.
    """
    head_rate = settings.learning_rate * settings.head_multiplier
    groups: list[dict[str, Any]] = [
        {"params": trainable(model.backbone.parameters())},
        {"params": trainable(model.head.parameters()), "lr": head_rate},
        *more,
    ]
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, rate, (momentum, 0.999), weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(groups, rate, momentum, weight_decay=decay)
    return Optimization(
        optimizer,
        settings.iterations,
        precision=config.precision,
        accumulate=config.accumulate,
    )


def to_unit(image: Tensor) -> Tensor:
    """Turns uint8 images into what the models take: float in 0...1."""
    return image.float() / 255


def resize(scores: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resizes a network's output: bilinear, corners aligned."""
    return F.interpolate(scores.float(), size, mode="bilinear", align_corners=True)
