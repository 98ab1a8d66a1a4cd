"""From settings to networks: models, their files, their optimisers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, Distill, SelfLabel, WarmUp
from cpsl.engine import Optimization, RepeatedSGD, load, save, trainable
from cpsl.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DeepLabV2,
    load_backbone_weights,
    load_release_checkpoint,
)
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
    if path.suffix == ".pkl":
        model = load_release_checkpoint(path, len(classes))
    else:
        saved = load(path)
        known = classes_of(path, saved)
        if known != classes:
            raise ValueError(
                f"{path} tells the classes {', '.join(known)} apart, "
                f"these settings have {', '.join(classes)}"
            )
        try:
            model = DeepLabV2(
                len(classes),
                saved["backbone"],
                saved["feature_dim"],
                output_norm=saved["output_norm"],
            )
            model.load_state_dict(saved["model"])
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} holds another network than it says: {error}") from error
    wrong = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise ValueError(f"{path} holds numbers that are not finite, such as in {wrong[0]}")
    return _channels_last(model)


def classes_of(path: Path, saved: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the classes that a saved model tells apart.

    Raises:
        ValueError: The file holds something else than `save_model` writes.
    """
    missing = {"model", "backbone", "feature_dim", "output_norm", "classes"} - saved.keys()
    if missing:
        raise ValueError(
            f"{path} is no model.pt of a run: it has no {', '.join(sorted(missing))}; "
            f"its entries are {', '.join(map(str, list(saved)[:5]))}"
        )
    return tuple(map(str, saved["classes"]))


def _channels_last(model: DeepLabV2) -> DeepLabV2:
    # Convolutions are faster with the channels innermost, on CPUs and GPUs alike.
    return model.to(memory_format=torch.channels_last)


def save_model(path: Path, model: DeepLabV2, config: Config) -> None:
    """Saves the weights together with what it takes to use them."""
    classes, state = label_space(config), model.state_dict()
    save(
        path,
        {
            "model": state,
            "backbone": model.backbone_name,
            "feature_dim": model.feature_dim,
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
