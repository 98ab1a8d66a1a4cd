"""Networks of segmentation_models_pytorch (SMP) as `SegmentationNetwork`s."""

import inspect
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cpsl.models.adapters.adapted import AdaptedNetwork, plain_copy
from cpsl.models.adapters.module import adapt
from cpsl.models.adapters.weights import OTHER_WEIGHTS, check_hub, load_weights
from cpsl.models.network import IMAGENET_MEAN, IMAGENET_STD, NetworkSpec, SegmentationOutput

Colors = tuple[list[float], list[float]]
RESERVED = ("classes", "in_channels", "encoder_name", "encoder_weights", "aux_params", "activation")
"""Arguments of SMP's networks that `from_smp` sets itself."""
FORMER = ("decoder_use_batchnorm", "psp_use_batchnorm", "upscale_mode")
"""Former names of arguments, which SMP still accepts."""


class SMPBody(nn.Module):
    """Calls encoder and decoder of a network of SMP, and the head up to its classifier.

    Upsampling and activation after the classifier are omitted.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        module.classification_head = None
        self.module = module
        self.training = module.training

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of images."""
        features = self.module.encoder(images)
        # The encoder of DPT also returns the prefix tokens.
        maps = (
            self.module.decoder(*features) if isinstance(features, tuple) else self.module.decoder(features)
        )
        *layers, classifier = _head(self.module)
        for layer in layers:
            maps = layer(maps)
        return SegmentationOutput(classifier(maps), maps)


def from_smp(
    model: str | nn.Module,
    num_classes: int | None = None,
    *,
    weights: str | Path = "pretrained",
    **options: Any,
) -> AdaptedNetwork:
    """Builds or adapts a network of segmentation_models_pytorch (SMP).

    The classification head is removed, also from a network that is passed.

    Args:
        model: Architecture and encoder, such as "Unet/resnet34" or "DPT/tu-vit_base_patch16_224"; or a
            network of SMP.
        num_classes: Number of classes K; required with a name.
        weights: "pretrained" downloads encoder weights, those of ImageNet if available; "random"; or a file
            with the state dict of the encoder or of the whole network. Ignored if a network is passed.
        **options: Further arguments of the architecture, such as decoder_channels.

    Raises:
        ModuleNotFoundError: SMP is not installed.
        ValueError: There is no such network, num_classes is missing, or the file does not fit.
        ConnectionError: The weights cannot be downloaded.
        TypeError: The network is not one of SMP, or an option is unknown or set by `from_smp`.

    Example:
        >>> network = from_smp("FPN/resnet18", 19, weights="random")
        >>> network.feature_dim, network.align_corners, network.input_size
        (128, True, 32)
    """
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as error:
        message = "from_smp requires segmentation_models_pytorch: pip install segmentation-models-pytorch"
        raise ModuleNotFoundError(message) from error

    module: Any = model
    colors: Colors = list(IMAGENET_MEAN), list(IMAGENET_STD)
    if isinstance(model, str):
        if num_classes is None:
            raise ValueError(f"num_classes is required to build {model}")
        architecture, _, encoder = model.partition("/")
        module = _build(architecture, encoder, num_classes, weights, options)
        colors = _colors(encoder, weights == "pretrained")
    elif not isinstance(model, smp.base.SegmentationModel):
        raise TypeError(f"{type(model).__name__} is no network of SMP; use from_module instead")
    body = SMPBody(module)
    upsampling = [layer for layer in module.segmentation_head.modules() if isinstance(layer, nn.Upsample)]
    corners = isinstance(module, smp.DPT) or any(layer.align_corners for layer in upsampling)
    return adapt(
        body,
        align_corners=corners,
        input_size=_input_size(module),
        encoder="module.encoder",
        mean=colors[0],
        std=colors[1],
        spec=_spec(module),
    )


def _build(
    architecture: str, encoder: str, num_classes: int, weights: str | Path, options: dict[str, Any]
) -> nn.Module:
    """Builds a network, and loads weights into its encoder."""
    import segmentation_models_pytorch as smp

    names = {kind.__name__.lower(): kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture.lower() not in names or not encoder:
        raise ValueError(
            f'SMP has no network "{architecture}/{encoder}": pass an architecture '
            f'({", ".join(names.values())}) and an encoder, such as "Unet/resnet34"'
        )
    _check_encoder(encoder)
    _check_options(names[architecture.lower()], encoder, options)
    encoder_weights = None
    if weights == "pretrained":
        repository, file, encoder_weights = _pretrained(encoder)
        check_hub(repository, file, OTHER_WEIGHTS)
    if architecture.lower() == "dpt":
        options = {"dynamic_img_size": True, **options}
    module: nn.Module = smp.create_model(
        architecture, encoder, encoder_weights, classes=num_classes, **options
    )
    if weights not in ("pretrained", "random"):
        load_weights(module, weights, "encoder")
    return module


def _check_encoder(encoder: str) -> None:
    """Raises ValueError unless SMP, or timm for tu-NAME, has an architecture of this name."""
    import segmentation_models_pytorch as smp
    import timm

    known = timm.is_model(encoder[3:].partition(".")[0]) if encoder.startswith("tu-") else False
    # Other names of timm are repositories and folders.
    if re.search(r"[:/\\]", encoder) or not (known or encoder in smp.encoders.encoders):
        names = ", ".join(smp.encoders.encoders)
        raise ValueError(f"SMP has no encoder {encoder}, only {names}, and tu-NAME for encoders of timm")


def _check_options(architecture: str, encoder: str, options: dict[str, Any]) -> None:
    """Raises TypeError for options that `from_smp` sets, or that nothing would read."""
    import segmentation_models_pytorch as smp
    import timm

    create = timm.create_model.__code__
    refused = {*RESERVED, *create.co_varnames[: create.co_argcount]}
    if reserved := sorted(refused & set(options)):
        raise TypeError(f"{', '.join(reserved)} cannot be passed: from_smp sets them")
    parameters = inspect.signature(getattr(smp, architecture)).parameters
    known = [name for name in parameters if name not in {*refused, "kwargs"}]
    unknown = sorted(set(options) - {*known, *FORMER})
    # Of other encoders SMP ignores them; timm has its own check.
    if unknown and not encoder.startswith(("tu-", "timm-")):
        raise TypeError(f"{architecture} of SMP has no options {', '.join(unknown)}, only {', '.join(known)}")


def _pretrained(encoder: str) -> tuple[str, str, str]:
    """Returns the hub repository and file of an encoder's pretrained weights, and their name in SMP.

    Raises:
        ValueError: There is no such encoder, or it has no pretrained weights.
    """
    import segmentation_models_pytorch as smp
    import timm

    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder[3:])
        if config is None or not config.hf_hub_id:
            raise ValueError(f"timm has no pretrained weights for {encoder[3:]}")
        return config.hf_hub_id, "model.safetensors", "imagenet"
    names = smp.encoders.encoders
    settings = names[encoder]["pretrained_settings"]
    name = "imagenet" if "imagenet" in settings else next(iter(settings))
    return settings[name]["repo_id"], "model.safetensors", name


def _colors(encoder: str, downloaded: bool) -> Colors:
    """Returns the mean and standard deviation of an encoder's normalization, for images in 0...1.

    Those of SMP's own encoders are on the hub: without a download those of ImageNet, as for most encoders.
    """
    import segmentation_models_pytorch as smp
    import timm

    known = timm.models.is_model_pretrained(encoder[3:]) if encoder.startswith("tu-") else downloaded
    if not known:
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    name = "imagenet" if encoder.startswith("tu-") else _pretrained(encoder)[2]
    parameters = smp.encoders.get_preprocessing_params(encoder, name)
    top = max(parameters["input_range"])
    return [value / top for value in parameters["mean"]], [value / top for value in parameters["std"]]


def _head(module: Any) -> list[nn.Module]:
    """Returns the layers of the head up to its classifier."""
    head = module.segmentation_head
    layers = list(head.head) if hasattr(head, "head") else [head[0]]
    if not isinstance(layers[-1], nn.Conv2d):
        raise TypeError(f"the head of {type(module).__name__} was replaced; use from_module instead")
    return layers


def _input_size(module: Any) -> int | tuple[int, int]:
    """Returns the stride of the network, or the only size of a vision transformer of fixed size."""
    stride = int(module.encoder.output_stride)
    patches: Any = getattr(getattr(module.encoder, "model", None), "patch_embed", None)
    if getattr(patches, "strict_img_size", False):
        height, width = patches.img_size
        return height, width
    # DPT's decoder downsamples and upsamples the grid of patches by 2.
    return 2 * stride if type(module).__name__ == "DPT" else stride


def _spec(module: Any) -> NetworkSpec | None:
    """Returns architecture, encoder and options of a network; None if they are not plain values."""
    config = module.config
    arguments = {key: value for key, value in config.items() if key not in RESERVED and key[0] != "_"}
    try:
        arguments = plain_copy(arguments)
    except TypeError:  # such as an activation function
        return None
    return NetworkSpec(f"smp:{type(module).__name__}/{config['encoder_name']}", arguments)
