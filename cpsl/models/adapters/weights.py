"""Pretrained weights from files and from the Hugging Face hub."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpsl._internal.file_kinds import describe_file, find_damage, is_safetensors
from cpsl._internal.files import SCALARS_AND_ARRAYS, is_passing, load_safely, without_number
from cpsl.models.adapters.fitting import fit_weights, is_average

_logger = logging.getLogger("cpsl")

NESTED = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "params_ema",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "module",
    "params",
    "weights",
    "student",
)
"""Entries of training checkpoints that contain the weights, in the order of preference."""

_PATHS = [
    f"{module}.{kind}" for module in ("pathlib", "pathlib._local") for kind in ("PosixPath", "WindowsPath")
]

OTHER_WEIGHTS = 'pass weights=, a file downloaded elsewhere, or weights="random"'
"""What to do without a connection, if only weights are missing."""

PLAIN: list[Any] = [Namespace, *((PurePath, name) for name in _PATHS), *SCALARS_AND_ARRAYS]
"""Types beside the weights in training checkpoints: settings, and numbers of NumPy such as best_acc."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a state dict from a torch or safetensors file, without running code from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, has no tensors, non-finite numbers, or zeros only.
        ModuleNotFoundError: The file is one of safetensors, which is not installed.
    """
    tensors = _read(Path(path))
    if broken := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{path} has non-finite numbers, such as in {broken[0]}")
    if not any(value.any() for value in tensors.values()):
        raise ValueError(f"{path} has zeros only: download or copy it again")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_file() and is_safetensors(path):
        return _read_safetensors(path)
    if path.is_file() and (reason := describe_file(path)):  # torch would recommend to run its code
        raise ValueError(f"{path} cannot be read: {reason}")
    with torch.serialization.safe_globals(PLAIN):
        content = load_safely(path)
    if not _tensors(content):  # beside tensors, arrays are histories and statistics
        content = _from_numpy(content)
    if damaged := find_damage(path):  # torch does not compare the checksums of the tensors
        raise ValueError(f"{path} is damaged: {damaged} does not match its checksum")
    while isinstance(content, Mapping):
        nested = [key for key in NESTED if isinstance(content.get(key), Mapping) and _tensors(content[key])]
        if not nested:
            break
        if len(nested) > 1:
            _logger.info(f"{path}: reads its entry {nested[0]}, not {' or '.join(nested[1:])}")
        content = _prefer_average(content, nested[0], path)
    inner = content.values() if isinstance(content, Mapping) else ()
    if any(isinstance(value, Mapping) and "model_state" in value for value in inner):
        raise ValueError(
            f"{path} is a checkpoint of the authors' code, a whole network: use it in place of a stage, for "
            f"example --init-from.warmup {path}"
        )
    if tensors := _tensors(content):
        return tensors
    found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{path} contains no state dict, but {found or 'nothing'}")


def _prefer_average(content: Mapping[Any, Any], name: str, path: Path) -> Mapping[Any, Any]:
    """Returns an entry of a checkpoint or, if there is one of the same tensors, its moving average."""
    chosen, shapes = name, _shapes(content[name])
    for other, value in content.items():
        twin = isinstance(other, str) and isinstance(value, Mapping) and other != name
        if twin and is_average(other) and not is_average(name) and _shapes(value) == shapes:
            _logger.info(f"{path}: reads its entry {other}, not {name}")
            chosen = other
            break
    found: Mapping[Any, Any] = content[chosen]
    return found


def _shapes(content: object) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in _tensors(content).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} requires safetensors: pip install safetensors") from error
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises errors of its own type
        if is_passing(error):
            error.add_note(f"This happened while reading {path}.")
            raise
        raise ValueError(f"{path} cannot be read: it is damaged or incomplete ({error})") from error


def _tensors(content: object) -> dict[str, Tensor]:
    """Returns the tensors of a state dict; those of several networks with the names of their networks.

    >>> list(_tensors({"encoder": {"fc.bias": torch.ones(1)}, "optim": {"lr": torch.ones(1)}, "epoch": 3}))
    ['encoder.fc.bias']
    """
    found: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            found[str(name)] = value
        elif isinstance(value, Mapping) and not str(name).startswith(("optim", "message_hub")):
            found |= {f"{name}.{key}": tensor for key, tensor in _tensors(value).items()}
    return found


def _from_numpy(content: Any) -> Any:
    """Returns the content of a file with tensors in place of arrays."""
    if isinstance(content, np.ndarray):
        return torch.from_numpy(content.astype(content.dtype.newbyteorder("=")))
    if isinstance(content, Mapping):
        return {name: _from_numpy(value) for name, value in content.items()}
    return content


def load_weights(module: nn.Module, path: str | Path, encoder: str = "") -> None:
    """Loads a file into a module or its encoder: `read_weights`, then `fit_weights`."""
    fit_weights(module, read_weights(path), path, encoder)


def check_hub(repository: str, filename: str, instead: str) -> None:
    """Raises ConnectionError unless a file of the Hugging Face hub is cached or reachable.

    Without a connection, the libraries retry for half a minute; this is a single request.

    Args:
        repository: Name of the repository.
        filename: Name of the file in it.
        instead: What to do without a connection; the end of the message.
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
            f"cannot download {url} ({type(error).__name__}: {without_number(error)}); {instead}"
        ) from error
