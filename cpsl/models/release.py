"""Checkpoints of the authors' release: read without running their code, and written for it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpsl.files import write_atomically
from cpsl.models.deeplab import DeepLabV2

# Beginnings of names in the release and here; the first that fits counts.
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
    """What a checkpoint of the release holds.

    Attributes:
        model: State of the segmentation network, in the release's names and order.
        discriminator: State of the discriminator, where there is one.
        prototypes_ema: (K, D) moving average of the prototypes, where there is one; all zeros in a file of
            a stage that has no prototypes.
        iter: Training iteration, where it is said.
        best_iou: Best mIoU so far, as the release counts it, where it is said.

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
    """Reads a `.pkl` of the authors' release without running code from it.

    Args:
        path: The file.

    Returns:
        Its contents, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, would run code when loaded, or holds no segmentation network.

    Example:
        >>> checkpoint = read_release_checkpoint("gta2citylabv2_stage1.pkl")  # doctest: +SKIP
        >>> checkpoint.prototypes_ema.shape  # doctest: +SKIP
        torch.Size([19, 256])
    """
    content = _load_safely(Path(path))
    # One entry a network, {"ResNet101": {"model_state": ..., "prototypes_ema": ...}}, or a bare state.
    networks = [
        v
        for v in content.values()
        if isinstance(v, dict) and isinstance(v.get("model_state"), dict)
    ]
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
        raise ValueError(
            f"{path} holds no segmentation network of the release; its entries are "
            f"{', '.join(map(str, list(content)[:8]))}"
        )
    wrong = [key for key, value in model.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{path} holds no tensor at {', '.join(map(repr, wrong[:3]))}")
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
        raise ValueError(
            f"{path}: prototypes_ema, iter or best_iou is of another kind: {error}"
        ) from error


def load_release_checkpoint(path: str | Path, num_classes: int | None = 19) -> DeepLabV2:
    """Builds the network of a checkpoint of the authors' release.

    Args:
        path: A `.pkl` of any stage, with or without `bn_pretrain`.
        num_classes: Classes that the checkpoint was trained for: 19, or 16 for SYNTHIA; None takes as many
            as the file has.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read safely, or is of another network or number of classes.

    Example:
        >>> model = load_release_checkpoint("gta2citylabv2_stage1.pkl")  # doctest: +SKIP
        >>> model(images).logits.shape  # images (1, 3, 1024, 2048) in 0...1  # doctest: +SKIP
        torch.Size([1, 19, 129, 257])
    """
    state = read_release_checkpoint(path).model
    if "layer5.head.1.weight" not in state:
        raise ValueError(f"{path} has another head than the release: no layer5.head.1.weight in it")
    classes, feature_dim, *_ = *state["layer5.head.1.weight"].shape, 0, 0
    if num_classes is not None and classes != num_classes:
        raise ValueError(f"{path} was trained for {classes} classes, not {num_classes}")
    model = DeepLabV2(classes, "resnet101", feature_dim, output_norm="bn_pretrain.weight" in state)
    own = to_release(model)
    missing = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    unexpected = [k for k in state if k not in own]
    if missing or unexpected:
        raise ValueError(
            f"{path} is not the release's ResNet-101: {len(missing)} entries are missing or of another "
            f"shape {missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}"
        )
    model.load_state_dict(from_release(state), strict=False)  # mean and std are not in the file
    return model.eval()


def from_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the entries of a release network's state to those of `DeepLabV2`."""
    return {_rename(key, _PREFIXES): value for key, value in state.items()}


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
    return _with_release_names(state)


def save_release_checkpoint(
    path: str | Path,
    model: DeepLabV2,
    *,
    prototypes_ema: Tensor | None = None,
    iteration: int = 0,
    best_iou: float = 0.0,
) -> None:
    """Writes a checkpoint that the release's code can load, as a whole or not at all.

    The file has the format of PyTorch before 1.6, which any version reads.

    Args:
        path: File to write.
        model: Network with the backbone "resnet101", `output_norm` or not; the release's has 256 features.
        prototypes_ema: (K, D) moving average of the prototypes; zeros where there are none.
        iteration: Training iteration.
        best_iou: Best mIoU so far, 0...1 as the release counts it.

    Raises:
        ValueError: The network is of another architecture, or shifts or scales colours.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "stage3.pkl")
        >>> save_release_checkpoint(file, DeepLabV2(19, feature_dim=32), iteration=7)
        >>> read_release_checkpoint(file).iter, load_release_checkpoint(file).feature_dim
        (7, 32)
    """
    state = to_release(model)
    with torch.device("meta"):  # shapes without memory
        normed = "bn_pretrain.weight" in state
        like = DeepLabV2(model.num_classes, "resnet101", model.feature_dim, output_norm=normed)
    shapes = {k: v for k, v in like.state_dict().items() if k not in ("mean", "std")}
    wanted = _with_release_names(shapes)
    wrong = [k for k in wanted if k not in state or state[k].shape != wanted[k].shape]
    if wrong or len(state) != len(wanted):
        raise ValueError(
            f"the release's network is a ResNet-101; this one differs from it, such as in "
            f"{(wrong or [k for k in state if k not in wanted])[0]}"
        )
    if prototypes_ema is None:
        prototypes_ema = torch.zeros(model.num_classes, model.feature_dim)
    content = {
        "ResNet101": {"model_state": state, "prototypes_ema": prototypes_ema},
        "iter": iteration,
        "best_iou": best_iou,
    }
    write_atomically(
        Path(path),
        lambda partial: torch.save(content, partial, _use_new_zipfile_serialization=False),
    )


def _with_release_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    back = [(ours, theirs) for theirs, ours in _PREFIXES]
    return {_rename(key, back): value for key, value in state.items()}


def _rename(key: str, prefixes: Iterable[tuple[str, str]]) -> str:
    old, new = next(pair for pair in prefixes if key.startswith(pair[0]))
    return new + key.removeprefix(old)


def _load_safely(path: Path) -> dict[str, Any]:
    # Scalars and arrays of numpy are plain numbers; files name their makers as numpy 1 or as numpy 2 did.
    harmless: list[Any] = [np.dtype, np.ndarray]
    harmless += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")]
    for example, name in ((np.float64(0), "scalar"), (np.zeros(0), "_reconstruct")):
        maker: Any = example.__reduce__()[0]
        harmless += [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
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
