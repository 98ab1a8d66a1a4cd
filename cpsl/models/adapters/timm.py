"""Encoders of timm with a decoder of this library."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl._internal.files import without_number
from cpsl.models.adapters.adapted import AdaptedNetwork, plain_copy
from cpsl.models.adapters.fitting import find_entries, log_filled, refuse_integers, without_wrappers
from cpsl.models.adapters.weights import read_weights
from cpsl.models.decoders import DAFormerDecoder, LightDecoder
from cpsl.models.network import NetworkSpec, SegmentationOutput

DECODERS = {"light": LightDecoder, "daformer": DAFormerDecoder}

RESERVED = {"features_only", "out_indices", "feature_cls", "num_classes", "in_chans", "pretrained_model_args"}
"""Options that contradict the use as an encoder; options about weights are rejected as well."""


def from_timm(
    encoder: str | nn.Module,
    num_classes: int,
    *,
    weights: str | Path = "pretrained",
    feature_dim: int = 256,
    decoder: Literal["light", "daformer"] = "light",
    **options: Any,
) -> AdaptedNetwork:
    """Builds a segmentation network from an encoder of timm and a decoder of this library.

    The decoder receives the last maps of strides 4, 8, 16 and 32 of a hierarchical encoder, such as a CNN or
    Swin, or the normalized outputs of four evenly spaced blocks of a plain vision transformer. Parts that do
    not contribute to them are removed. The output has the stride of the finest level, usually 4; strides
    above 8 are reduced to at most 8 by integer upsampling.

    Args:
        encoder: Name of an architecture, with or without the tag of its weights, such as "convnext_tiny" or
            "vit_small_patch14_dinov2.lvd142m"; see `timm.list_models()`. Or a network from
            `timm.create_model`, which is modified in place and keeps its weights.
        num_classes: Number of classes K.
        weights: "pretrained" (downloaded once by timm), "random", or a file with a state dict of the
            encoder. timm interpolates position embeddings of other image sizes.
        feature_dim: Channels D of the features.
        decoder: "light" or "daformer"; see `LightDecoder` and `DAFormerDecoder`.
        **options: Arguments of the architecture, as for `timm.create_model`: `drop_path_rate=0.1`, and
            `img_size=(512, 1024)` if the size is fixed.

    Returns:
        The network. Its `input_size` is determined by a trial pass: the largest stride if possible, otherwise
        the nominal size as a divisor or as the only size. Its `spec` is None if an option is not a plain
        value or the encoder was passed as a network. With dynamic sizes, torch.export needs minutes for
        windowed transformers and rejects DINOv3.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: The name, tag or decoder is unknown, the encoder has no feature maps or no pretrained
            weights, or a file does not contain all weights of the encoder.
        TypeError: The architecture does not accept an option.
        ConnectionError: The pretrained weights cannot be downloaded.
        FileNotFoundError: There is no file of this name.

    Example:
        >>> network = from_timm("resnet10t", num_classes=19, weights="random", feature_dim=64).eval()
        >>> output = network(torch.rand(1, 3, 70, 110))  # enlarged to 96x128
        >>> network.input_size, output.logits.shape, output.features.shape
        (32, torch.Size([1, 19, 24, 32]), torch.Size([1, 64, 24, 32]))
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}")
    if isinstance(encoder, str):
        model, loaded = _create(encoder, weights, options)
        spec = _spec(encoder, {"feature_dim": feature_dim, "decoder": decoder, **options})
    else:
        if options or weights != "pretrained":
            raise TypeError("a network that is already built accepts neither weights nor options")
        model, loaded, spec = encoder, None, None
    name = encoder if isinstance(encoder, str) else type(encoder).__name__
    if not (hasattr(model, "forward_intermediates") and hasattr(model, "feature_info")):
        raise ValueError(
            f"{name} offers no feature maps (forward_intermediates) in this version of timm: use a network "
            "of another family, such as convnext_tiny, efficientnet_b0, swinv2_tiny_window8_256 or "
            "vit_small_patch14_dinov2.lvd142m; build it without features_only=True"
        )
    levels, norm = _levels([info["reduction"] for info in model.feature_info])
    strides = [model.feature_info[level]["reduction"] for level in levels]
    if hasattr(model, "prune_intermediate_layers"):
        levels = tuple(model.prune_intermediate_layers(list(levels), prune_norm=not norm))
    if hasattr(model, "head"):
        model.head = nn.Identity()  # versions before 1.0.31 keep the norm of some networks
    if loaded is not None:
        _check_complete(model, loaded, weights)
    body = _EncoderDecoder(model, levels, norm)
    input_size, channels = _trial(body, name, strides, options.get("img_size"))
    if isinstance(input_size, int) and input_size % max(strides) == 0:
        _fix_padding(model)
    body.decoder = DECODERS[decoder](channels, strides, num_classes, feature_dim)
    return AdaptedNetwork(
        body,
        num_classes=num_classes,
        feature_dim=feature_dim,
        align_corners=False,
        input_size=input_size,
        encoder="encoder",
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
        spec=spec,
    )


class _EncoderDecoder(nn.Module):
    """Calls a decoder with the selected feature maps of a network of timm."""

    decoder: nn.Module

    def __init__(self, encoder: Any, levels: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.levels = list(levels)
        self.norm = norm

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps (B, C, h, w) of the levels."""
        maps: list[Tensor] = self.encoder.forward_intermediates(
            images, indices=self.levels, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Returns logits and features of normalized images (B, 3, H, W)."""
        output: SegmentationOutput = self.decoder(self.encode(images))
        return output


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding "same", for sides that are multiples of its stride."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output, of size H / stride."""
        sides: list[int] = []
        for kernel, dilation, stride in zip(self.kernel_size, self.dilation, self.stride, strict=True):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            sides = [total // 2, total - total // 2, *sides]  # F.pad begins with the last dimension
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _fix_padding(model: nn.Module) -> None:
    """Replaces paddings that timm computes from the image size: torch.export needs minutes for them."""
    from timm.layers import Conv2dSame

    for module in model.modules():
        if type(module) is Conv2dSame:
            module.__class__ = _SameConv2d  # a convolution with the same parameters


def _levels(strides: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Returns the indices of the maps to use, and whether the network's last norm is applied to all of them.

    >>> _levels([2, 4, 8, 16, 32]), _levels([14] * 12)
    (((1, 2, 3, 4), False), ((2, 5, 8, 11), True))
    """
    if len(set(strides)) == 1:  # a plain transformer: its blocks return the residual stream without norm
        count = min(4, len(strides))
        return tuple(len(strides) * (i + 1) // count - 1 for i in range(count)), True
    last = {stride: level for level, stride in enumerate(strides)}
    chosen = [level for stride, level in last.items() if 4 <= stride <= 32]
    return tuple(sorted(chosen)) or (len(strides) - 1,), False


def _trial(
    body: _EncoderDecoder, name: str, strides: Sequence[int], size: int | Sequence[int] | None
) -> tuple[int | tuple[int, int], list[int]]:
    """Determines the accepted input size and the channels of the maps, by passing zeros."""
    size = size or getattr(getattr(body.encoder, "patch_embed", None), "img_size", None)
    size = size or body.encoder.pretrained_cfg["input_size"][1:]
    height, width = (size, size) if isinstance(size, int) else size
    multiple = max(strides)
    two, three = 2 * multiple, 3 * multiple
    # Multiples of the stride; multiples of the nominal size, as windows may require; only this size.
    trials: list[tuple[int | tuple[int, int], tuple[int, int]]] = [
        (multiple, (three, two) if (height, width) == (two, three) else (two, three)),
        *([(height, (height, 2 * height))] if height == width else []),
        ((height, width), (height, width)),
    ]
    parameter = next(body.encoder.parameters())
    training = body.training
    body.eval()
    failures: list[Exception] = []
    for input_size, shape in trials:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                maps = body.encode(parameter.new_zeros(1, 3, *shape))
            for level, stride in zip(maps, strides, strict=True):
                check_shape(
                    f"maps of stride {stride}", level, 1, "C", *(-(-side // stride) for side in shape)
                )
            body.train(training)
            return input_size, [level.shape[1] for level in maps]
        except Exception as error:  # networks reject sizes with errors of many types
            failures.append(error)
    raise ValueError(
        f"{name} returns no maps that cover an image of {height}x{width} ({failures[-1]}): use another "
        "encoder, such as convnext_tiny"
    ) from failures[-1]


def _create(name: str, weights: str | Path, options: dict[str, Any]) -> tuple[Any, dict[str, Tensor] | None]:
    """Returns a network of timm, and the entries of the file that was loaded, if any."""
    timm = _import_timm()
    config = _config(timm, name)
    if refused := sorted(options.keys() & (RESERVED | _create_arguments(timm))):
        raise TypeError(f"{', '.join(refused)} cannot be passed: options are those of the architecture")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    state = None
    if weights == "pretrained":
        if not config.has_weights:
            known = timm.list_pretrained(f"{config.architecture}.*")
            advice = f"use one of {', '.join(known)}, or " if known else ""
            raise ValueError(
                f'timm has no pretrained weights of {name}: {advice}pass weights="random" or a file'
            )
        if cached := _reach(name, config):
            weights = cached
    if weights not in ("pretrained", "random"):
        state = read_weights(weights)
    # Options with which windowed and plain transformers accept other sizes.
    flexible: list[dict[str, bool]] = [{"strict_img_size": False}, {"dynamic_img_size": True}]
    for sizing in [*flexible, {}] if config.fixed_input_size else [{}]:
        try:
            arguments = {**sizing, **options}
            model = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0, **arguments)
            break
        except TypeError as error:
            if not any(word in str(error) and word not in options for word in sizing):
                raise TypeError(f"timm's {name} does not accept these options ({error})") from error
        except OSError as error:
            raise ConnectionError(_unreachable(name, config, error)) from error
    return model, state and _load(model, state, weights)


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("from_timm requires timm: pip install timm") from error
    return timm


def _config(timm: Any, name: str) -> Any:
    """Returns timm's configuration of the pretrained weights of a name."""
    if any(character in name for character in ":/\\"):
        raise ValueError(
            f"{name!r} is not the name of an architecture: pass one of timm.list_models(), and weights=file "
            "for your own weights, so that the network can be rebuilt without a download"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all names"
        raise ValueError(f"timm has no network {architecture!r}; {hint}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{architecture}.*"))
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; it has {known}") from error
    if config is None:
        raise ValueError(f"{architecture!r} is an old name: use the current one, see timm.list_models()")
    return config


def _create_arguments(timm: Any) -> set[str]:
    code = timm.create_model.__code__
    return set(code.co_varnames[: code.co_argcount])


def _reach(name: str, config: Any) -> Path | None:
    """Returns the cached file of the weights; if there is none, checks that the hub is reachable.

    Without a connection, the hub's own client retries for 45 seconds.
    """
    if not config.hf_hub_id:
        return None
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache

    repository, _, revision = config.hf_hub_id.partition("@")
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str) and not config.custom_load:
            return Path(cached)
    try:
        get_session().head(hf_hub_url(repository, files[0], revision=revision or None), timeout=5)
    except Exception as error:  # of the installed HTTP client
        raise ConnectionError(_unreachable(name, config, error)) from error
    return None


def _unreachable(name: str, config: Any, error: Exception) -> str:
    place = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    return (
        f"the pretrained weights of {name} cannot be downloaded ({without_number(error)}); download {place} "
        "on another machine and pass weights=file (model.safetensors), or pass weights='random'"
    )


def _load(model: nn.Module, state: dict[str, Tensor], weights: str | Path) -> dict[str, Tensor]:
    """Loads matching entries into a network of timm, and returns all entries with the names of timm."""
    own = model.state_dict()
    entries, _ = find_entries(state, dict.fromkeys(own), weights)
    if 2 * len(own.keys() & entries.keys()) > len(own):
        state = entries
    else:  # names that timm may be able to convert, perhaps in wrappers
        state = without_wrappers(state)
        if inside := {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}:
            state = without_wrappers(inside)
    # In most families of timm, this function converts other names and position embeddings.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(dict(state), model)
        except Exception as error:  # for example weights of another network
            found = ", ".join(list(state)[:3])
            raise ValueError(
                f"timm cannot convert {weights}, with entries such as {found} ({error}): pass weights of "
                f"{type(model).__name__}"
            ) from error
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    refuse_integers(fitting, own, weights)
    model.load_state_dict(fitting, strict=False)
    return state


def _check_complete(model: nn.Module, state: dict[str, Tensor], weights: str | Path) -> None:
    """Raises ValueError unless a file has all entries of an encoder."""
    own = {key: v.shape for key, v in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    if missing := [key for key, shape in own.items() if key not in state or state[key].shape != shape]:
        expected, found = ", ".join(missing[:3]), ", ".join(list(state)[:3])
        raise ValueError(
            f"{weights} does not fit {type(model).__name__}: {len(missing)} of {len(own)} entries are "
            f"missing or of another shape, such as {expected}; the file has {len(state)}, such as {found}"
        )
    log_filled(weights, type(model).__name__, own, own, "")


def _spec(name: str, arguments: dict[str, Any]) -> NetworkSpec | None:
    try:
        return NetworkSpec(f"timm:{name}", plain_copy(arguments))
    except TypeError:  # such as the class of a layer
        return None
