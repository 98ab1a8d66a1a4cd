"""Pretrained weights from files and from the Hugging Face hub."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpsl._internal.files import load_safely

NESTED = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "teacher",
)
"""Entries of training checkpoints that contain the weights."""

_scalar = np.float64(0).__reduce__()[0]  # its module differs between versions of NumPy
SCALARS = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
PLAIN: list[Any] = [Namespace, np.dtype, *SCALARS, _scalar]
"""Types beside the weights in training checkpoints: settings, and numbers of NumPy such as best_acc."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a state dict from a torch or safetensors file, without running code from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, has no tensors, or tensors with NaN.
    """
    tensors = _read(Path(path))
    if broken := [key for key, value in tensors.items() if value.isnan().any()]:
        raise ValueError(f"{path} has non-finite numbers, such as in {broken[0]}")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:  # safetensors raises errors of its own type
            raise ValueError(f"{path} cannot be read: {error}") from error
    with torch.serialization.safe_globals(PLAIN):
        content = load_safely(path)
    while isinstance(content, Mapping):
        nested = next((key for key in NESTED if isinstance(content.get(key), Mapping)), None)
        if nested is None:
            break
        content = content[nested]
    entries = content.items() if isinstance(content, Mapping) else ()
    if tensors := {str(key): value for key, value in entries if isinstance(value, Tensor)}:
        return tensors
    found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{path} contains no state dict, but {found}")


def load_weights(module: nn.Module, path: str | Path, encoder: str = "") -> None:
    """Loads weights from a file into a module or its encoder.

    Prefixes of the keys, such as "module." or "backbone.", are recognized. Layers outside of the encoder are
    loaded if the file contains all of them, except those of another shape, such as a classifier of other
    classes.

    Args:
        module: The network.
        path: File of a state dict, or of a checkpoint that contains one.
        encoder: Name of the submodule that the file must contain; "" for the whole module.

    Raises:
        ValueError: The encoder's entries are absent or have other shapes.
    """
    fit_weights(module, read_weights(path), path, encoder)


def fit_weights(
    module: nn.Module, weights: Mapping[str, Tensor], path: str | Path, encoder: str = "", optional: str = "?"
) -> None:
    """Loads weights that were read from a file; see `load_weights`.

    Args:
        module: The network.
        weights: Entries of the file.
        path: The file, which is named in errors.
        encoder: Name of the submodule that the weights must have; "" for the whole module.
        optional: Prefix of entries that may be absent.

    Raises:
        ValueError: The encoder's entries are absent or have other shapes.
    """
    target = module.state_dict()
    root = f"{encoder}." if encoder else ""
    counted = [key for key in target if not key.endswith("num_batches_tracked")]  # older files lack the rest
    required = {key for key in counted if key.startswith(root) and not key.startswith(optional)}

    def fitting(entries: Mapping[str, Tensor]) -> set[str]:
        return {key for key in required if key in entries and entries[key].shape == target[key].shape}

    def renamed(prefix: str, new: str) -> dict[str, Tensor]:
        entries = weights.items()
        return {new + key[len(prefix) :]: value for key, value in entries if key.startswith(prefix)}

    candidates = [renamed(prefix, new) for prefix in _prefixes(weights) for new in dict.fromkeys(["", root])]
    best = max(candidates, key=lambda entries: len(fitting(entries)))
    if missing := sorted(required - fitting(best)):
        expected = ", ".join(f"{key} {tuple(target[key].shape)}" for key in missing[:3])
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(weights.items())[:3])
        raise ValueError(
            f"{path} does not fit {type(module).__name__}{root and f' with its {encoder}'}: "
            f"{len(missing)} of {len(required)} entries are absent or have another shape, such as "
            f"{expected}; the file has {len(weights)} entries, such as {found}"
        )
    complete = all(key in best for key in counted)
    loaded = {
        key: value
        for key, value in best.items()
        if key in target and target[key].shape == value.shape and (complete or key.startswith(root))
    }
    module.load_state_dict(loaded, strict=False)


def _prefixes(keys: Iterable[str]) -> list[str]:
    """Returns the dotted prefixes of keys, with up to three names each.

    >>> _prefixes(["module.stem.weight", "module.bias"])
    ['', 'module.', 'module.stem.']
    """
    prefixes = {""}
    for key in keys:
        names = key.split(".")[:-1]
        prefixes |= {".".join(names[:depth]) + "." for depth in range(1, min(len(names), 3) + 1)}
    return sorted(prefixes)


def check_hub(repository: str, filename: str) -> None:
    """Raises ConnectionError unless a file of the Hugging Face hub is cached or reachable.

    Without a connection, the libraries retry for half a minute; this is a single request.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(try_to_load_from_cache(repository, filename), str):
        return
    url = hf_hub_url(repository, filename)
    try:
        get_hf_file_metadata(url, timeout=10)
    except Exception as error:  # of its HTTP library, which differs between versions
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise FileNotFoundError(f"the Hugging Face hub rejects {url}: {error}") from error
        raise ConnectionError(
            f"cannot download {url} ({type(error).__name__}: {error}); pass weights=, a file "
            'downloaded elsewhere, or weights="random"'
        ) from error
