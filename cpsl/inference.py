"""A trained network with what it takes to use it, as one file and one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl.data.labels import CITYSCAPES_16, CITYSCAPES_19, LabelSpace, distinct_palette
from cpsl.data.reading import read_image
from cpsl.data.training import whole_image
from cpsl.files import check_sums, write_atomically
from cpsl.models.deeplab import DeepLabV2
from cpsl.models.release import load_release_checkpoint

VERSION = 1
"""Of the file's format. Files before it, which do not say a version, have no `full_size`."""

RELEASE_SIZE = (1024, 2048)  # at which the authors' release sees images


class Prediction(NamedTuple):
    """What a network says of one image; on the network's device.

    Attributes:
        scores: (K, H, W) float32, log-probabilities of the classes up to a constant of each pixel: the
            upsampled logits where the image was seen once, else the logarithm of the mean over the views of
            the upsampled probabilities.
        grid_confidence: Scalar, the mean over the network's own grid of the largest probability, 0...1.
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
    def confidence(self) -> Tensor:
        """The probability of the most probable class, (H, W) float32 in 0...1."""
        return self.probabilities.amax(dim=0)


@dataclass(frozen=True)
class Segmenter:
    """A network, its classes, and the size at which it sees images.

    Attributes:
        model: The network; in evaluation mode when it predicts.
        classes: Names and colours of its classes.
        full_size: (H, W) in pixels that a whole image is brought to before the network sees it, whatever its
            aspect, as in training; None if that is not known.

    Raises:
        ValueError: There are not as many classes as the network tells apart, or the size is not positive.

    Example:
        The file goes with you; the package's core dependencies are enough to use it.

        >>> import tempfile
        >>> network = DeepLabV2(num_classes=2, backbone="resnet_tiny", feature_dim=8)
        >>> path = Path(tempfile.mkdtemp(), "model.pt")
        >>> classes = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
        >>> Segmenter(network, classes, full_size=(32, 64)).save(path)

        >>> segmenter = Segmenter.load(path)
        >>> prediction = segmenter.predict(torch.zeros(3, 48, 80, dtype=torch.uint8))
        >>> prediction.labels.shape, segmenter.classes.names
        (torch.Size([48, 80]), ('road', 'sky'))
    """

    model: DeepLabV2
    classes: LabelSpace
    full_size: tuple[int, int] | None

    def __post_init__(self) -> None:
        channels = getattr(self.model, "num_classes", len(self.classes))
        if channels != len(self.classes):
            raise ValueError(
                f"the network tells {channels} classes apart, but {len(self.classes)} are named"
            )
        if self.full_size is not None:
            _require_size(self.full_size, "full_size")

    @classmethod
    def load(
        cls,
        path: str | Path,
        classes: LabelSpace | Sequence[str] | None = None,
        *,
        full_size: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Segmenter":
        """Loads what `save` wrote, or a checkpoint of the authors' release; no code in the file is run.

        Args:
            path: A `model.pt`, or a `.pkl` of the release.
            classes: The classes that it has to tell apart. If None, those of the file; a `.pkl` does not say
                them: with 19 they are Cityscapes', with 16 those that SYNTHIA has.
            full_size: Replaces what the file says; for a `.pkl` that is (1024, 2048). The first files of this
                package said nothing.
            device: Where the network shall be.

        Returns:
            The network in evaluation mode, and what belongs to it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, would run code, is no model, is of other classes, holds numbers
                that are not finite, or was written by a later version of this package.
        """
        path = Path(path)
        if classes is not None and not isinstance(classes, LabelSpace):
            classes = LabelSpace(tuple(classes), distinct_palette(len(classes)))
        if path.suffix == ".pkl":
            model, classes = _load_release(path, classes)
            full_size = full_size or RELEASE_SIZE
        else:
            saved = _load_model(path, classes)
            model, classes, full_size = saved.model, saved.classes, full_size or saved.full_size
        wrong = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
        if wrong:
            raise ValueError(f"{path} holds numbers that are not finite, such as in {wrong[0]}")
        return cls(model.to(device).eval(), classes, full_size)

    def save(self, path: str | Path) -> None:
        """Writes the network and all that `load` needs, as a whole or not at all.

        Raises:
            ValueError: The backbone came as a module, so that a file cannot say how to build it.
        """
        model = self.model
        if model.backbone_name is None:
            raise ValueError(
                f"the backbone is a {type(model.backbone).__name__} of your own, which a file cannot name; "
                "save model.state_dict() and build the network yourself"
            )
        state = model.state_dict()
        content = {
            "version": VERSION,
            "model": state,
            "backbone": model.backbone_name,
            "feature_dim": model.feature_dim,
            "output_norm": "backbone.output_norm.weight" in state,
            "dilations": list(model.head.dilations),
            "classes": list(self.classes.names),
            "palette": [list(color) for color in self.classes.palette],
            "full_size": None if self.full_size is None else list(self.full_size),
        }
        write_atomically(Path(path), lambda partial: torch.save(content, partial), durable=True)

    @torch.no_grad()  # what inference_mode returns could not be changed in place
    def predict(
        self,
        image: Tensor | str | Path,
        *,
        size: tuple[int, int] | torch.Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> Prediction:
        """Segments one image.

        For mixed precision call it under `torch.autocast`. An array of another library becomes a tensor by
        `torch.from_numpy(array).permute(2, 0, 1)`; OpenCV's channels are to be reversed first.

        Args:
            image: (3, H, W) uint8 RGB; or the path of a picture, which is turned as its EXIF data say.
            size: (H', W') of the result; that of the image if None.
            scales: Sizes at which the image is seen, as multiples of `full_size`.
            flip: Whether its mirror image is seen as well.

        Raises:
            FileNotFoundError: There is no such picture.
            TypeError: The image is not uint8.
            ValueError: The shape is another, the picture is damaged, a scale is not positive, the network is
                in training mode, or `full_size` is not known.
        """
        if self.full_size is None:
            raise ValueError(
                "at which size the network has to see images is not known: its file is of a cpsl that did "
                "not store it; load it with full_size=(height, width), the run's setting views.full_size"
            )
        if self.model.training:
            raise ValueError("the network is in training mode; call model.eval() first")
        if not scales or not all(scale > 0 for scale in scales):
            raise ValueError(f"scales must be positive numbers, got {tuple(scales)}")
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        if not isinstance(image, Tensor):
            raise TypeError(
                f"an image must be a path or a tensor (3, H, W), got {type(image).__name__}; of an array "
                "take torch.from_numpy(array).permute(2, 0, 1)"
            )
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"an image must be (3, H, W), got shape {tuple(image.shape)}")
        if image.dtype != torch.uint8:
            raise TypeError(f"an image must be uint8, 0...255, got {image.dtype}")
        size = size or image.shape[1:]
        device = next(self.model.parameters()).device
        views = len(scales) * (1 + flip)
        total: Tensor | None = None
        confidence = torch.zeros((), device=device)
        for scale in scales:
            height, width = (max(round(scale * extent), 1) for extent in self.full_size)
            whole = whole_image(image.cpu(), (height, width))[None].to(device).float() / 255
            # Convolutions are faster with the channels innermost, on CPUs and GPUs alike.
            whole = whole.contiguous(memory_format=torch.channels_last)
            for mirrored in (False, True) if flip else (False,):
                logits = self.model(whole.flip(-1) if mirrored else whole).logits.float()
                probabilities = logits.softmax(dim=1)
                confidence = confidence + probabilities.amax(dim=1).mean() / views
                scores = logits if views == 1 else probabilities / views
                # So are upsampling and comparing, on CPUs several times.
                scores = scores.contiguous(memory_format=torch.channels_last)
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=True)
                scores = scores.flip(-1) if mirrored else scores
                total = scores if total is None else total + scores
        assert total is not None
        return Prediction((total if views == 1 else total.log())[0], confidence)


def _load_release(path: Path, classes: LabelSpace | None) -> tuple[DeepLabV2, LabelSpace]:
    model = load_release_checkpoint(path, None if classes is None else len(classes))
    if classes is None:
        known = {len(space): space for space in (CITYSCAPES_19, CITYSCAPES_16)}
        if model.num_classes not in known:
            raise ValueError(
                f"{path} tells {model.num_classes} classes apart and does not say which; give their names"
            )
        classes = known[model.num_classes]
    return model, classes


def _load_model(path: Path, wanted: LabelSpace | None) -> Segmenter:
    content = _read(path)
    version = content.get("version", 0)
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version} of the format, this cpsl reads up to {VERSION}; "
            "install a newer one"
        )
    entries = ("model", "classes", "palette", "backbone", "feature_dim", "output_norm")
    missing = [entry for entry in entries if entry not in content]
    if missing or not isinstance(content["classes"], list):
        raise ValueError(
            f"{path} is no model of cpsl: it has no {', no '.join(missing or ['list of classes'])}; "
            f"its entries are {', '.join(map(str, list(content)[:5]))}"
        )
    if wanted is not None and list(wanted.names) != content["classes"]:
        raise ValueError(
            f"{path} tells the classes {', '.join(map(str, content['classes']))} apart, "
            f"asked for are {', '.join(wanted.names)}"
        )
    more = {"dilations": content["dilations"]} if "dilations" in content else {}
    try:
        names = tuple(map(str, content["classes"]))
        model = DeepLabV2(
            len(names),
            content["backbone"],
            content["feature_dim"],
            output_norm=content["output_norm"],
            **more,
        )
        model.load_state_dict(content["model"])
        classes = LabelSpace(names, tuple((r, g, b) for r, g, b in content["palette"]))
        size = content.get("full_size")
        return Segmenter(model, classes, None if size is None else (size[0], size[1]))
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the network that it describes: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no model at {path}") from None
    except Exception as error:  # torch raises nearly anything on broken bytes
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder; of a run give the model, such as {path / 'distill_2' / 'model.pt'}"
            ) from None
        reason = str(error).partition(". ")[0]  # torch goes on with how to run the file's code
        raise ValueError(
            f"{path} cannot be read: it is damaged or no model of cpsl ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a model of cpsl")
    return content


def _require_size(size: Sequence[int], name: str) -> None:
    if len(size) != 2 or not all(extent > 0 for extent in size):
        raise ValueError(f"{name} must be a height and a width in pixels, got {tuple(size)}")
