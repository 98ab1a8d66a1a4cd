"""Checkpoints of the authors' release: read without running their code, and written for it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpsl.models.deeplab import DeepLabV2

# How our names of the entries differ from the release's, in the order of the rules.
_RENAMES = (
    (r"layer5\.conv2d_list\.", "head.branches."),
    (r"layer5\.bottleneck\.0\.se\.", "head.fuse.0.weigh."),
    (r"layer5\.bottleneck\.", "head.fuse."),
    (r"layer5\.head\.1\.", "head.classify."),
    (r"bn_pretrain\.", "backbone.output_norm."),
    (r"", "backbone."),
)


@dataclass(frozen=True)
class ReleaseCheckpoint:
    """What a checkpoint of the release holds.

    Attributes:
        model: State of the segmentation network, in the release's names and order.
        discriminator: State of the discriminator, where there is one.
        prototypes_ema: (K, D) moving average of the prototypes, where there is one.
        iter: Training iteration, where it is said.
        best_iou: Best mIoU so far, as the release counts it, where it is said.
    """

    model: dict[str, Tensor] = field(repr=False)
    discriminator: dict[str, Tensor] | None = field(default=None, repr=False)
    prototypes_ema: Tensor | None = field(default=None, repr=False)
    iter: int | None = None
    best_iou: float | None = None


def read_release_checkpoint(path: str | Path) -> ReleaseCheckpoint:
    """Reads a `.pkl` of the authors' release without running code from it.

    Args:
        path: The file.

    Returns:
        Its contents, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, would run code when loaded, or holds no segmentation network.
    """
    content = _load_safely(Path(path))
    states = {
        name: entry["model_state"]
        for name, entry in content.items()
        if isinstance(entry, dict) and "model_state" in entry
    }
    if not states and any(key.endswith("conv1.weight") for key in content):
        states = {"model": content}
    model = discriminator = None
    for state in states.values():
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
        if "conv1.weight" in state and any(key.startswith("layer5.") for key in state):
            model = state
        else:
            discriminator = state
    if model is None:
        raise ValueError(
            f"{path} holds no segmentation network of the release; its entries are "
            f"{', '.join(map(str, list(content)[:8]))}"
        )
    prototypes = content.get("prototypes_ema")
    iteration, best_iou = content.get("iter"), content.get("best_iou")
    return ReleaseCheckpoint(
        model,
        discriminator,
        None if prototypes is None else torch.as_tensor(np.asarray(prototypes)).float(),
        None if iteration is None else int(iteration),
        None if best_iou is None else float(best_iou),
    )


def load_release_checkpoint(path: str | Path, num_classes: int = 19) -> DeepLabV2:
    """Builds the network of a checkpoint of the authors' release.

    Args:
        path: A `.pkl` of any stage, with or without `bn_pretrain`.
        num_classes: Classes that the checkpoint was trained for: 19, or 16 for SYNTHIA.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read safely, or is of another network or number of classes.
    """
    state = from_release(read_release_checkpoint(path).model)
    classes, feature_dim = state["head.classify.weight"].shape[:2]
    if classes != num_classes:
        raise ValueError(f"{path} was trained for {classes} classes, not {num_classes}")
    model = DeepLabV2(
        num_classes,
        "resnet101",
        feature_dim,
        output_norm="backbone.output_norm.weight" in state,
    )
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if key not in ("mean", "std")]
    if missing or unexpected:
        raise ValueError(
            f"{path} is not the release's ResNet-101: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    return model.eval()


def from_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the entries of a release network's state to those of `DeepLabV2`."""
    return {_rename(key): value for key, value in state.items()}


def to_release(model: DeepLabV2) -> dict[str, Tensor]:
    """Returns the state of a network with the release's names.

    Args:
        model: Its colours must be neither shifted nor scaled: the release has no place for that.

    Raises:
        ValueError: The model has a mean or deviation of its own.
    """
    state = model.state_dict()
    if state.pop("mean").any() or (state.pop("std") != 1).any():
        raise ValueError("the release's networks take images as they are; mean must be 0 and std 1")
    back = [(re.escape(ours), theirs.replace("\\", "")) for theirs, ours in _RENAMES]
    renamed = {}
    for key, value in state.items():
        for ours, theirs in back:
            if re.match(ours, key):
                renamed[re.sub(f"^{ours}", theirs, key)] = value
                break
    return renamed


def save_release_checkpoint(
    path: str | Path, model: DeepLabV2, *, iteration: int = 0, best_iou: float = 0.0
) -> None:
    """Writes a checkpoint that the release's code can load.

    Args:
        path: File to write.
        model: Network of the release's architecture.
        iteration: Training iteration.
        best_iou: Best mIoU so far.
    """
    torch.save(
        {
            "ResNet101": {"model_state": to_release(model)},
            "iter": iteration,
            "best_iou": best_iou,
        },
        path,
    )


def _rename(key: str) -> str:
    for theirs, ours in _RENAMES:
        if re.match(theirs, key):
            return re.sub(f"^{theirs}", ours, key)
    raise AssertionError("the last rule fits every key")


def _load_safely(path: Path) -> dict[str, Any]:
    # Scalars and arrays of numpy are plain numbers; under numpy 1 and 2 they are made by other names.
    harmless: list[Any] = [np.dtype, np.ndarray]
    harmless += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")]
    multiarray: Any = getattr(np, "_core", None) or np.core
    multiarray = multiarray.multiarray
    for name in ("scalar", "_reconstruct"):
        function = getattr(multiarray, name)
        harmless += [(function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or would run code when it is loaded, and was not: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content
