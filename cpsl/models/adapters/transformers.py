"""Networks of Hugging Face transformers as `SegmentationNetwork`s."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpsl._internal.files import without_number
from cpsl.models.adapters.adapted import AdaptedNetwork
from cpsl.models.adapters.fitting import log_filled, refuse_integers, without_wrappers
from cpsl.models.adapters.module import MASK_CLASSIFICATION, ModuleBody, evaluation, from_module, trial_images
from cpsl.models.adapters.weights import OTHER_WEIGHTS, check_hub, read_weights
from cpsl.models.network import IMAGENET_MEAN, IMAGENET_STD, NetworkSpec, SegmentationOutput

BLUE_FIRST = ("mobilevit", "mobilevitv2")
"""Architectures whose images are BGR in 0...1, without normalization."""
CENTERED = ("beit", "data2vec-vision", "dpt", "mobilenet_v2")
"""Architectures whose images are in -1...1."""
NEW_ENTRIES = ("hidden_states_norms", "mask_token", "relative_position_index")
"""Entries of an encoder that a checkpoint of another task lacks."""
LABELS = ("num_labels", "id2label", "label2id")
"""Entries of a configuration that num_classes determines."""
REMOTE = ("trust_remote_code", "auto_map", "use_pretrained_backbone")
UNSAFE = (*LABELS, *REMOTE, "backbone")
"""Options that would contradict num_classes, download, or execute code of others."""
OMITTED = (*LABELS, *REMOTE, "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Entries of a configuration that are not part of the architecture."""
OTHER_NAME = (
    "in place of the name, use a folder of save_pretrained; or a model type, such as segformer, with its "
    'options and weights="random" or a file'
)
"""What to do without a connection, if the configuration is missing, which weights do not replace."""


class BGRBody(ModuleBody):
    """Calls a module that was trained on BGR images."""

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of RGB images."""
        return super().forward(images.flip(1))


def from_transformers(
    model: str | Path | nn.Module,
    num_classes: int | None = None,
    *,
    weights: str | Path = "pretrained",
    **options: Any,
) -> AdaptedNetwork:
    """Builds or adapts a semantic segmentation network of transformers.

    Supported are the classes of `AutoModelForSemanticSegmentation`, such as SegFormer, UperNet, DPT, BEiT,
    Data2VecVision, MobileViT and MobileNetV2. Auxiliary heads are removed, also from a network that is
    passed. Code from the hub is never executed.

    Args:
        model: Name on the Hugging Face hub, such as "nvidia/mit-b0", or folder of `save_pretrained`; or a
            model type, such as "segformer"; or a network of transformers.
        num_classes: Number of classes K; required with a name.
        weights: "pretrained" for the weights of that name; the encoder must be complete, other layers that
            are missing or have other classes are new. "random"; a file with the state dict of the encoder
            or of the whole network; or a folder of `save_pretrained`. Ignored if a network is passed.
        **options: Changes to the configuration, such as depths.

    Returns:
        The network. Its `spec` is None if a network of a class outside of transformers is passed.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: The network classifies masks instead of pixels, num_classes is missing, or the weights
            do not fit.
        ConnectionError: The name is not cached and cannot be downloaded.
        TypeError: An option is unknown or not allowed.

    Example:
        >>> network = from_transformers(
        ...     "segformer", 19, weights="random", hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=48
        ... )
        >>> network.feature_dim, network.input_size, network.align_corners
        (48, 32, False)
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "from_transformers requires transformers: pip install transformers"
        ) from error

    module: Any = model
    source = None
    if isinstance(model, (str, Path)):
        if num_classes is None:
            raise ValueError(f"num_classes is required to build {model}")
        module, source = _build(str(model), num_classes, weights, options)
    elif not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"{type(model).__name__} is not a network of transformers; use from_module instead")
    config = module.config
    _check_type(config)
    if getattr(module, "auxiliary_head", None) is not None:
        module.auxiliary_head = None
        config.use_auxiliary_head = False
    mean, std = _colors(config.model_type, source)
    network = from_module(
        module, input_size=_input_size(module), encoder=_encoder(module), mean=mean, std=std
    )
    if config.model_type in BLUE_FIRST:
        network.body = BGRBody(module, str(network.body.classifier))
    if type(module) is transformers.AutoModelForSemanticSegmentation._model_mapping[type(config)]:
        network.spec = NetworkSpec(f"transformers:{config.model_type}", _arguments(config))
    return network


def _build(
    name: str, num_classes: int, weights: str | Path, options: dict[str, Any]
) -> tuple[nn.Module, str | None]:
    """Builds a network, and returns it with the name or folder of its weights."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSemanticSegmentation

    _check_options(options)
    is_type = name in CONFIG_MAPPING
    if is_type:
        known = AutoConfig.for_model(name)
    else:
        known = _load(name, partial(AutoConfig.from_pretrained, name, trust_remote_code=False), OTHER_NAME)
    _check_type(known)
    if unknown := sorted(option for option in options if not hasattr(known, option)):
        names = ", ".join(sorted(known.to_dict()))
        raise TypeError(f"{known.model_type} has no options {', '.join(unknown)}, only {names}")
    options = {**options, "num_labels": num_classes}
    if hasattr(known, "use_auxiliary_head"):
        options["use_auxiliary_head"] = False
    if is_type:
        config = AutoConfig.for_model(name, **options)
    else:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False, **options)

    if weights == "pretrained":
        if is_type:
            raise ValueError(
                f"{name} is an architecture without weights: use a model on the hub or a folder instead, "
                'or pass weights="random" or a file'
            )
        return _load_pretrained(name, config), name
    if weights == "random":
        module: nn.Module = AutoModelForSemanticSegmentation.from_config(config).float()
        return module, None if is_type else name
    if Path(weights).is_dir():
        return _load_pretrained(str(weights), config), str(weights)
    return _load_pretrained(str(weights), config, read_weights(weights)), None if is_type else name


def is_architecture(name: str) -> bool:
    """Returns whether a name is a model type of transformers, which needs no file and no download."""
    from transformers import CONFIG_MAPPING

    return name in CONFIG_MAPPING


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises TypeError if options, or those of a backbone inside, would download or execute something."""
    inside = options.get("backbone_config")
    backbone = dict(inside) if isinstance(inside, Mapping) else {}
    unsafe = set(UNSAFE) & set(options)
    # Of a backbone's configuration, transformers itself stores names of classes and architectures.
    unsafe |= {name for name in REMOTE if backbone.get(name)}
    if unsafe:
        raise TypeError(
            f"{', '.join(sorted(unsafe))} cannot be given: num_classes is the number of classes, "
            "backbone_config describes a backbone, and nothing else is downloaded or executed"
        )
    for name, value in [*options.items(), *backbone.items()]:
        # An architecture of timm, and the implementation of attention, may be repositories as well.
        if (name == "backbone" or "attn_implementation" in name) and re.search(r"[:/\\]", str(value)):
            raise TypeError(
                f"{name} must be the name of an architecture, got {value!r}: nothing is downloaded"
            )


def _load_pretrained(name: str, config: Any, entries: dict[str, Tensor] | None = None) -> nn.Module:
    """Loads the weights of a network or its backbone from the hub, a folder, or the entries of a file.

    Raises:
        ValueError: Entries of the encoder are missing or have another shape.
    """
    from transformers import AutoBackbone, AutoConfig, AutoModelForSemanticSegmentation

    backbone_config = getattr(config, "backbone_config", None)
    if entries is not None:
        entries = without_wrappers(entries)
        only_backbone = backbone_config is not None and not any(
            key.startswith("backbone.") for key in entries
        )
    else:
        read = partial(AutoConfig.from_pretrained, name, trust_remote_code=False)
        stored = _load(name, read, OTHER_WEIGHTS).model_type
        only_backbone = stored != config.model_type
        if only_backbone and stored != getattr(backbone_config, "model_type", None):
            raise ValueError(f"{name} has weights of {stored}, not of {config.model_type}")
    chosen = backbone_config if only_backbone else config
    kind = (AutoBackbone if only_backbone else AutoModelForSemanticSegmentation)._model_mapping[type(chosen)]
    # Used for entries as well, because it converts the names of older versions.
    arguments = {"config": chosen, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if entries is not None:
        loaded, info = kind.from_pretrained(None, state_dict=entries, **arguments)
    else:
        loaded, info = _load(
            name, lambda **where: kind.from_pretrained(name, **arguments, **where), OTHER_WEIGHTS
        )
    prefix = "" if only_backbone else f"{_encoder(loaded)}."
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
    absent = [
        key
        for key in [*info["missing_keys"], *mismatched]
        if key.startswith(prefix) and not any(part in key for part in NEW_ENTRIES)
    ]
    if absent:
        found = f"; it has {', '.join(sorted(entries)[:3])}" if entries is not None else ""
        raise ValueError(
            f"{name} does not fit {config.model_type}: {len(absent)} entries of the encoder are missing or "
            f"have another shape, such as {', '.join(sorted(absent)[:3])}{found}; set the options as in "
            "its configuration"
        )
    state = loaded.state_dict()
    refuse_integers(entries or {}, state, name)
    encoder = [key for key in state if key.startswith(prefix)]
    log_filled(name, config.model_type, encoder, encoder, "")
    module: Any = loaded
    if only_backbone:
        module = AutoModelForSemanticSegmentation.from_config(config)
        module.backbone = loaded
    result: nn.Module = module.float().train()
    return result


def _load(name: str, load: Callable[..., Any], instead: str) -> Any:
    """Loads from a folder or the cache, otherwise from the hub, whose client retries for long when offline.

    Raises:
        ConnectionError: The hub cannot be reached; the message ends with what to do instead.
    """
    try:
        return load(local_files_only=True)
    except OSError:
        if Path(name).is_dir():
            raise
        check_hub(name, "config.json", instead)
        try:
            return load(local_files_only=False)
        except OSError as error:
            reason = without_number(error).rstrip(".")
            raise ConnectionError(
                f"cannot download {name} from the Hugging Face hub: {reason}; {instead}"
            ) from error


def _check_type(config: Any) -> None:
    """Raises ValueError unless a configuration is one of a network with a per-pixel classifier."""
    from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

    kinds = AutoModelForSemanticSegmentation._model_mapping
    if type(config) in kinds:
        return
    if type(config) in AutoModelForUniversalSegmentation._model_mapping or config.model_type == "maskformer":
        raise ValueError(f"{config.model_type} {MASK_CLASSIFICATION}")
    names = ", ".join(sorted(kind.model_type for kind in kinds))
    raise ValueError(
        f"{config.model_type} is not a semantic segmentation network of transformers, those are {names}; "
        "use an encoder as backbone_config of upernet, or with from_timm"
    )


def _encoder(module: Any) -> str:
    """Returns the name of the pretrained part."""
    prefix: str = module.base_model_prefix
    return prefix if prefix and hasattr(module, prefix) else "backbone"


def _input_size(module: Any) -> int | tuple[int, int]:
    """Returns the accepted sizes of images for which the maps cover the whole image."""
    configs: list[Any] = [getattr(module.config, "backbone_config", None), module.config]
    # Behind a CNN as its backbone, DPT has patches of its own.
    config = next((found for found in configs if hasattr(found, "patch_size")), module.config)
    patch = getattr(config, "patch_size", 1)
    patch = patch if isinstance(patch, int) else math.lcm(*patch)
    if patch <= 4:
        return 32  # hierarchical encoders: patches of at most 4 pixels, last stride 32
    try:
        with evaluation(module), torch.no_grad():
            module(trial_images(module, patch))
    except (RuntimeError, ValueError):  # for example DPT, which reshapes its tokens to a square
        size = config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])
    return patch


def _colors(model_type: str, source: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the mean and standard deviation of the image processor, or else of the architecture."""
    from transformers.image_processing_base import ImageProcessingMixin

    settings: dict[str, Any] = {}
    if source is not None:
        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except OSError:  # there is no such file
            settings = {}
    if model_type in BLUE_FIRST or settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.get("image_mean") and settings.get("image_std"):
        return settings["image_mean"], settings["image_std"]
    return ((0.5,) * 3, (0.5,) * 3) if model_type in CENTERED else (IMAGENET_MEAN, IMAGENET_STD)


def _arguments(config: Any) -> dict[str, Any]:
    """Returns the options from which `from_transformers` rebuilds the architecture without a download."""
    content = config.to_diff_dict()
    del content["model_type"]
    plain: dict[str, Any] = json.loads(json.dumps(_architecture(content)))
    return plain


def _architecture(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a configuration that describe the architecture, recursively."""
    return {
        key: _architecture(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if key not in OMITTED
    }
