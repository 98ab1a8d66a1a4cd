"""A trained network with its classes and input size: one file, and one call to segment an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cpsl._internal.checking import check_shape
from cpsl._internal.files import read_tensors, write_atomically
from cpsl._internal.plain_values import is_stored, plain
from cpsl.authors.checkpoints import load_release_checkpoint
from cpsl.data.labels import CITYSCAPES_16, CITYSCAPES_19, LabelSpace, check_names
from cpsl.data.palette import class_colors
from cpsl.data.pictures import read_image
from cpsl.data.training import whole_image
from cpsl.models.adapters.fitting import refuse_integers
from cpsl.models.build import (
    Builder,
    build_network,
    call_builder,
    check_offline,
    check_rebuilds,
    is_named,
    state_dict_of,
)
from cpsl.models.network import SegmentationNetwork, check_network, resize, segment

VERSION = 2
"""Version of the file format. Version 0 had no `full_size`, version 1 a backbone instead of a network."""

AUTHORS_SIZE = (1024, 2048)
"""Input size of the networks that the authors trained."""

MAX_PIXELS = 2**28
"""Most pixels of an input; larger images are not read from files either."""


class Prediction(NamedTuple):
    """Prediction for one image, on the network's device.

    Attributes:
        scores: (K, H, W) float32, log-probabilities up to a constant per pixel: the upsampled logits of a
            single view, or the logarithm of the mean of the upsampled probabilities of several.
        grid_confidence: Scalar in 0...1, mean over the network's output grid of the largest probability.
    """

    scores: Tensor
    grid_confidence: Tensor

    @property
    def labels(self) -> Tensor:
        """The most probable classes, (H, W) uint8."""
        return self.scores.argmax(dim=0).to(torch.uint8)

    @property
    def probabilities(self) -> Tensor:
        """Probabilities of the classes, (K, H, W) float32, which sum to 1 over the classes."""
        return self.scores.softmax(dim=0)

    @property
    def non_finite(self) -> Tensor:
        """Number of pixels with NaN or infinite scores, whose class is arbitrary; a scalar."""
        # The score of a class may be -inf, if its probability is 0.
        return (~self.scores.amax(dim=0).isfinite()).sum()

    @property
    def confidence(self) -> Tensor:
        """The probability of the most probable class, (H, W) float32 in 0...1."""
        return self.probabilities.amax(dim=0)


@dataclass(frozen=True)
class Segmenter:
    """A network, its classes and its input size.

    Attributes:
        model: The network, a `cpsl.models.SegmentationNetwork`; must be in evaluation mode to predict.
        classes: Names and colors of its classes.
        full_size: (H, W) to which each image is resized, whatever its aspect ratio; None if unknown.
        value_range: Stored values that mean black and white in files of gray images of more than 8 bits; None
            is the whole range of 16 bits, see `cpsl.data.SegmentationFolder`.

    Raises:
        TypeError: The network is not a `SegmentationNetwork`.
        ValueError: The network has a different number of classes, the size is not positive, or the values of
            the range do not increase.

    Example:
        A DeepLabV2 is loaded and used with the core dependencies of the package only.

        >>> import tempfile
        >>> from cpsl.models import DeepLabV2
        >>> network = DeepLabV2(num_classes=2, backbone="resnet_tiny", feature_dim=8)
        >>> path = Path(tempfile.mkdtemp(), "model.pt")
        >>> classes = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
        >>> Segmenter(network, classes, full_size=(32, 64)).save(path)

        >>> segmenter = Segmenter.load(path)
        >>> prediction = segmenter.predict(torch.zeros(3, 48, 80, dtype=torch.uint8))
        >>> prediction.labels.shape, segmenter.classes.names
        (torch.Size([48, 80]), ('road', 'sky'))
    """

    model: nn.Module
    classes: LabelSpace
    full_size: tuple[int, int] | None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        channels = self.network.num_classes
        if channels != len(self.classes):
            raise ValueError(f"the network has {channels} classes, but {len(self.classes)} are named")
        size = self.full_size
        if size is not None and (len(size) != 2 or not all(map(_is_extent, size))):
            raise ValueError(f"full_size must be a height and a width in pixels, got {tuple(size)}")
        limits = self.value_range
        if limits is not None and not (len(limits) == 2 and -math.inf < limits[0] < limits[1] < math.inf):
            raise ValueError(f"value_range must be two increasing numbers, got {tuple(limits)}")

    @property
    def network(self) -> SegmentationNetwork:
        """The network without its wrappers."""
        return check_network(self.model)

    @classmethod
    def load(
        cls,
        path: str | Path,
        classes: LabelSpace | Sequence[str] | None = None,
        *,
        full_size: tuple[int, int] | None = None,
        value_range: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
        build: Builder | None = None,
    ) -> "Segmenter":
        """Loads the result of `save`, or a checkpoint of the authors, without running code from the file.

        Networks of `cpsl.models.build_network` are rebuilt from their names. For a custom network, pass the
        function that builds it: modules named in a file are never imported.

        Args:
            path: A `model.pt`, or a `.pkl` of the authors.
            classes: Classes that the file must have; None accepts any. A `.pkl` has no names: with None, 19
                classes are those of Cityscapes, and 16 those shared with SYNTHIA.
            full_size: Input size; None uses that of the file, or (1024, 2048) for a `.pkl`.
            value_range: Stored values of black and white; None uses those of the file.
            device: Device of the network, which is in evaluation mode.
            build: Builds a custom network; called with the number of classes and the arguments stored in
                the file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, contains code, is not a model, has other classes or non-finite
                values, was written by a later version of this package, or needs `build`.
            ModuleNotFoundError: The library of the network is not installed.
        """
        path = Path(path)
        if classes is not None and not isinstance(classes, LabelSpace):
            check_names(classes)
            classes = LabelSpace(tuple(classes), class_colors(classes))
        saved = _load_release(path, classes) if path.suffix == ".pkl" else _load_model(path, classes, build)
        _check_parameters(path, saved.model)
        network = saved.model.to(device).eval()
        return cls(network, saved.classes, full_size or saved.full_size, value_range or saved.value_range)

    def save(self, path: str | Path) -> None:
        """Writes the segmenter to a file, atomically, and verifies that `load` reads it.

        For a custom network, `load` needs the function that builds it.

        Raises:
            ValueError: The network cannot be rebuilt from its name and arguments, these cannot be stored, or
                it has non-finite values.
        """
        network = self.network
        _check_parameters("the network", network)
        spec = getattr(network, "spec", None)
        content = {
            "version": VERSION,
            "model": state_dict_of(network),
            "network": None if spec is None else str(spec.name),
            "arguments": {} if spec is None else plain(dict(spec.arguments)),
            "classes": [str(name) for name in self.classes.names],
            "palette": plain(self.classes.palette),
            "full_size": plain(self.full_size),
            "value_range": plain(self.value_range),
        }

        def write(partial: Path) -> None:
            torch.save(content, partial)
            _verify(partial, network, content)

        write_atomically(Path(path), write, durable=True)

    @torch.no_grad()  # tensors of inference_mode could not be changed in place
    def predict(
        self,
        image: Tensor | str | Path,
        *,
        size: tuple[int, int] | torch.Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        allow_non_finite: bool = False,
    ) -> Prediction:
        """Segments one image.

        For mixed precision call it under `torch.autocast`. Convert a NumPy array (H, W, 3) with
        `torch.from_numpy(array).permute(2, 0, 1)`; arrays from OpenCV are BGR and must be reversed first.

        Args:
            image: (3, H, W) uint8 RGB; or the path of an image file, rotated according to its EXIF data.
            size: (H', W') of the result; None is the size of the image.
            scales: Input sizes as multiples of `full_size`; the probabilities of several are averaged.
            flip: Whether to average with the prediction for the mirrored image.
            allow_non_finite: Whether scores may be NaN or infinite; see `Prediction.non_finite`.

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: The image is not uint8.
            ValueError: The shape is wrong, the file is damaged, a scale or size is not positive or too large,
                the network is in training mode, `full_size` is unknown, or scores are not finite.
        """
        if self.full_size is None:
            raise ValueError(
                "the input size is unknown, since an early version of cpsl wrote the file: load it with "
                "full_size=(height, width), the setting views.full_size of the run"
            )
        if self.model.training:
            raise ValueError("the network is in training mode; call model.eval() first")
        inputs = _input_sizes(self.full_size, scales)
        if size is not None and (len(size) != 2 or not all(map(_is_extent, size))):
            raise ValueError(f"size must be a height and a width in pixels, got {tuple(size)}")
        if isinstance(image, str | Path):
            image = read_image(Path(image), self.value_range)
        if not isinstance(image, Tensor):
            raise TypeError(
                f"an image must be a path or a tensor (3, H, W), got {type(image).__name__}; convert "
                "an array by torch.from_numpy(array).permute(2, 0, 1)"
            )
        check_shape("an image", image, 3, "H", "W")
        if image.dtype != torch.uint8:
            raise TypeError(f"an image must be uint8, 0...255, got {image.dtype}")
        size = image.shape[1:] if size is None else size
        device = next(self.model.parameters()).device
        views = len(scales) * (1 + flip)
        total: Tensor | None = None
        confidence = torch.zeros((), device=device)
        for input_size in inputs:
            whole = whole_image(image.cpu(), input_size)[None].to(device).float() / 255
            # Convolutions are faster with the channels innermost, on CPUs and GPUs alike.
            whole = whole.contiguous(memory_format=torch.channels_last)
            for mirrored in (False, True) if flip else (False,):
                logits = segment(self.model, whole.flip(-1) if mirrored else whole).logits.float()
                probabilities = logits.softmax(dim=1)
                confidence = confidence + probabilities.amax(dim=1).mean() / views
                scores = logits if views == 1 else probabilities / views
                # So are upsampling and argmax, several times on CPUs.
                scores = scores.contiguous(memory_format=torch.channels_last)
                scores = resize(scores, size, self.network.align_corners)
                scores = scores.flip(-1) if mirrored else scores
                total = scores if total is None else total + scores
        assert total is not None
        prediction = Prediction((total if views == 1 else total.log())[0], confidence)
        if not allow_non_finite and (wrong := int(prediction.non_finite)):
            raise ValueError(
                f"the scores of {wrong} of {size[0] * size[1]} pixels are not finite: predict in float32, "
                "without torch.autocast; if it was float32, the network is damaged or its training diverged"
            )
        return prediction


def _input_sizes(full_size: tuple[int, int], scales: Sequence[float]) -> list[tuple[int, int]]:
    """Returns the sizes of an image for the network; raises ValueError if one is empty or too large."""
    sizes = []
    for scale in scales:
        height, width = (scale * extent if 0 < scale < math.inf else 0 for extent in full_size)
        if not (min(height, width) > 0.5 and height * width <= MAX_PIXELS):
            raise ValueError(
                f"scales must be positive numbers that give 1 to {MAX_PIXELS} pixels, got {scale} of "
                f"{full_size[0]}x{full_size[1]}"
            )
        sizes.append((round(height), round(width)))
    if not sizes:
        raise ValueError("scales must be one or more positive numbers, got none")
    return sizes


def _pair(stored: Any) -> tuple[Any, Any] | None:
    return None if stored is None else (stored[0], stored[1])


def _is_extent(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value > 0)


def _load_release(path: Path, classes: LabelSpace | None) -> Segmenter:
    model = load_release_checkpoint(path, None if classes is None else len(classes))
    if classes is None:
        known = {len(space): space for space in (CITYSCAPES_19, CITYSCAPES_16)}
        if model.num_classes not in known:
            raise ValueError(f"{path} has {model.num_classes} classes without names; pass classes=[...]")
        classes = known[model.num_classes]
    return Segmenter(model, classes, AUTHORS_SIZE)


def _load_model(path: Path, wanted: LabelSpace | None, build: Builder | None) -> Segmenter:
    try:
        content = read_tensors(path)
    except ValueError as error:
        if path.is_dir():
            error.add_note(f"Pass a model, for example {path / 'model.pt'} of a run.")
        raise
    version = content.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{path} has format version {version!r}, later than {VERSION}: install a later cpsl")
    if version < 2:
        content = _upgrade(content)
    entries = ("model", "classes", "palette", "network", "arguments")
    missing = [entry for entry in entries if entry not in content]
    if missing or not isinstance(content["classes"], list):
        raise ValueError(
            f"{path} is not a model of cpsl: it has no {', no '.join(missing or ['list of classes'])}; "
            f"its entries are {', '.join(map(str, list(content)[:5]))}"
        )
    names = tuple(map(str, content["classes"]))
    if wanted is not None and wanted.names != names:
        raise ValueError(f"{path} has the classes {', '.join(names)}, expected {', '.join(wanted.names)}")
    name = content["network"]
    named = isinstance(name, str) and is_named(name)
    if build is None and not named:
        raise ValueError(
            f"{path} contains a custom network{f' ({name})' if name else ''}: pass the function that builds "
            "it, Segmenter.load(path, build=...) or --network MODULE:FUNCTION"
        )
    try:
        if build is None or named:
            check_offline(name)
            model = build_network(name, len(names), weights="random", **content["arguments"])
        else:
            model = call_builder(build, name and str(name), len(names), "random", content["arguments"])
        refuse_integers(content["model"], model.state_dict(), path)
        model.load_state_dict(content["model"])
        classes = LabelSpace(names, tuple((r, g, b) for r, g, b in content["palette"]))
        size, limits = (content.get(entry) for entry in ("full_size", "value_range"))
        return Segmenter(model, classes, _pair(size), _pair(limits))
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the network that it describes: {error}") from error


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Converts the content of a file of version 0 or 1, always a DeepLabV2, to the current format."""
    if "backbone" not in content:
        return content
    arguments = {
        name: content[name] for name in ("feature_dim", "output_norm", "dilations") if name in content
    }
    return {**content, "network": f"deeplabv2:{content['backbone']}", "arguments": arguments}


def _check_parameters(owner: object, model: nn.Module) -> None:
    """Raises ValueError if a parameter is not finite, or all are zero."""
    wrong = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    # Buffers may be infinite on purpose, such as the masks of attention.
    wrong += [key for key, value in model.named_buffers() if value.isnan().any()]
    if wrong:
        raise ValueError(f"{owner} contains non-finite values, for example in {wrong[0]}")
    parameters = list(model.parameters())
    if parameters and not any(value.any() for value in parameters):
        raise ValueError(f"{owner} contains zeros only")


def _verify(path: Path, network: SegmentationNetwork, content: dict[str, Any]) -> None:
    """Raises ValueError unless a file contains what was written, and the network can be rebuilt."""
    spec = getattr(network, "spec", None)
    if spec is not None and is_named(spec.name):
        check_rebuilds(network)
    stored = read_tensors(path)
    different = [key for key in content if not is_stored(content[key], stored.get(key))]
    if different:
        raise ValueError(f"the file does not hold what was written, for example as {different[0]}")
