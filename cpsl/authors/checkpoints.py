"""Checkpoints of the authors' code: read without running code from them, and written in the same format."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpsl._internal.files import SCALARS_AND_ARRAYS, load_safely, write_atomically
from cpsl.models.deeplab import DeepLabV2

# Prefixes of entries in the authors' code and here; the first match is used.
_PREFIXES = (
    ("layer5.conv2d_list.", "head.branches."),
    ("layer5.bottleneck.0.se.", "head.fuse.0.weigh."),
    ("layer5.bottleneck.", "head.fuse."),
    ("layer5.head.1.", "head.classify."),
    ("bn_pretrain.", "backbone.output_norm."),
    ("", "backbone."),
)


@dataclass(frozen=True)
class ReleaseCheckpoint:
    """Content of a checkpoint of the authors' code; entries that a file lacks are None.

    Attributes:
        model: State dictionary of the segmentation network, with the authors' names and order.
        discriminator: State dictionary of the discriminator.
        prototypes_ema: (K, D) moving average of the prototypes; all zeros in stages without prototypes.
        iter: Training iteration.
        best_iou: Best mIoU so far, 0...1, as the authors' code computes it.

    Example:
        >>> ReleaseCheckpoint({"conv1.weight": torch.zeros(1)}, iter=81_000)
        ReleaseCheckpoint(iter=81000, best_iou=None)
    """

    model: dict[str, Tensor] = field(repr=False)
    discriminator: dict[str, Tensor] | None = field(default=None, repr=False)
    prototypes_ema: Tensor | None = field(default=None, repr=False)
    iter: int | None = None
    best_iou: float | None = None


def read_release_checkpoint(path: str | Path) -> ReleaseCheckpoint:
    """Reads a `.pkl` file of the authors' code to the CPU, without running code from it.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged, would run code when loaded, or contains no segmentation network.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "stage1.pkl")  # such as "gta2citylabv2_stage1.pkl"
        >>> save_release_checkpoint(file, DeepLabV2(19, feature_dim=32), iteration=7)
        >>> checkpoint = read_release_checkpoint(file)
        >>> checkpoint.iter, checkpoint.prototypes_ema.shape
        (7, torch.Size([19, 32]))
    """
    content = _load_safely(Path(path))
    # One entry per network, {"ResNet101": {"model_state": ..., "prototypes_ema": ...}}, or a plain state.
    entries = [entry for entry in content.values() if isinstance(entry, dict)]
    networks = [entry for entry in entries if isinstance(entry.get("model_state"), dict)]
    model = discriminator = None
    prototypes = content.get("prototypes_ema")
    for network in networks or [{"model_state": content}]:
        state = {str(k).removeprefix("module."): v for k, v in network["model_state"].items()}
        if "conv1.weight" in state and any(key.startswith("layer5.") for key in state):
            model = state
            prototypes = network.get("prototypes_ema", prototypes)
        else:
            discriminator = state
    if model is None:
        found = ", ".join(map(str, list(content)[:8]))
        raise ValueError(f"{path} contains no segmentation network of the authors' code, but {found}")
    wrong = [key for key, value in model.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{path} has entries that are not tensors: {', '.join(map(repr, wrong[:3]))}")
    iteration, best_iou = content.get("iter"), content.get("best_iou")
    try:
        return ReleaseCheckpoint(
            model,
            discriminator,
            None if prototypes is None else torch.as_tensor(prototypes).detach().float(),
            None if iteration is None else int(iteration),
            None if best_iou is None else float(best_iou),
        )
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: prototypes_ema, iter or best_iou has another type: {error}") from error


def load_release_checkpoint(path: str | Path, num_classes: int | None = 19) -> DeepLabV2:
    """Builds the network of a checkpoint of the authors' code.

    Args:
        path: A `.pkl` file of any stage, with or without `bn_pretrain`.
        num_classes: Number of classes, 19, or 16 for SYNTHIA; None is that of the file.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read safely, or has another network or number of classes.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "stage1.pkl")  # such as "gta2citylabv2_stage1.pkl"
        >>> save_release_checkpoint(file, DeepLabV2(19, feature_dim=32))
        >>> model = load_release_checkpoint(file)
        >>> model(torch.rand(1, 3, 64, 128)).logits.shape
        torch.Size([1, 19, 9, 17])
    """
    state = read_release_checkpoint(path).model
    if "layer5.head.1.weight" not in state:
        raise ValueError(f"{path} has another head than the authors' code: no layer5.head.1.weight")
    classes, feature_dim, *_ = *state["layer5.head.1.weight"].shape, 0, 0
    if num_classes is not None and classes != num_classes:
        raise ValueError(f"{path} was trained for {classes} classes, not {num_classes}")
    model = DeepLabV2(classes, "resnet101", feature_dim, output_norm="bn_pretrain.weight" in state)
    missing, unexpected = _differences(state, _with_release_names(model))
    if missing or unexpected:
        raise ValueError(
            f"{path} is not the authors' ResNet-101: {len(missing)} entries are missing or of another "
            f"shape {missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}"
        )
    model.load_state_dict(from_release(state), strict=False)  # the file lacks mean and std
    return model.eval()


def from_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the entries of a network of the authors' code to those of `DeepLabV2`."""
    return {_rename(key, _PREFIXES): value for key, value in state.items()}


def to_release(model: DeepLabV2) -> dict[str, Tensor]:
    """Returns the state dictionary of a network with the names of the authors' code.

    Raises:
        ValueError: The network's mean is not 0, or its std is not 1.
    """
    if model.mean.any() or (model.std != 1).any():
        raise ValueError("the authors' code does not normalize images; mean must be 0 and std 1")
    return _with_release_names(model)


def save_release_checkpoint(
    path: str | Path,
    model: DeepLabV2,
    *,
    prototypes_ema: Tensor | None = None,
    iteration: int = 0,
    best_iou: float = 0.0,
) -> None:
    """Writes a checkpoint for the authors' code, atomically.

    The file has the format of PyTorch before 1.6, which all versions read.

    Args:
        path: File to write.
        model: Network with the backbone "resnet101"; the authors' code uses 256 feature channels.
        prototypes_ema: (K, D) moving average of the prototypes; None is zeros.
        iteration: Training iteration.
        best_iou: Best mIoU so far, 0...1.

    Raises:
        ValueError: The network has another architecture, or normalizes images.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "stage3.pkl")
        >>> save_release_checkpoint(file, DeepLabV2(19, feature_dim=32), iteration=7)
        >>> read_release_checkpoint(file).iter, load_release_checkpoint(file).feature_dim
        (7, 32)
    """
    state = to_release(model)
    normed = "bn_pretrain.weight" in state
    with torch.device("meta"):  # shapes without memory
        like = DeepLabV2(model.num_classes, "resnet101", model.feature_dim, output_norm=normed)
    missing, unexpected = _differences(state, _with_release_names(like))
    if differing := missing + unexpected:
        raise ValueError(f"the authors' network is a ResNet-101; this one differs, such as in {differing[0]}")
    if prototypes_ema is None:
        prototypes_ema = torch.zeros(model.num_classes, model.feature_dim)
    network = {"model_state": state, "prototypes_ema": prototypes_ema}
    content = {"ResNet101": network, "iter": iteration, "best_iou": best_iou}
    path = Path(path)
    write_atomically(path, lambda to: torch.save(content, to, _use_new_zipfile_serialization=False))


def _differences(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Returns the wanted entries that are missing or of another shape, and the unexpected entries."""
    missing = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    return missing, [key for key in state if key not in wanted]


def _with_release_names(model: DeepLabV2) -> dict[str, Tensor]:
    back = [(ours, theirs) for theirs, ours in _PREFIXES]
    state = model.state_dict().items()
    return {_rename(key, back): value for key, value in state if key not in ("mean", "std")}


def _rename(key: str, prefixes: Iterable[tuple[str, str]]) -> str:
    old, new = next(pair for pair in prefixes if key.startswith(pair[0]))
    return new + key.removeprefix(old)


def _load_safely(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(SCALARS_AND_ARRAYS):
        content = load_safely(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a {type(content).__name__}, not a checkpoint")
    return content
