"""All settings of a run, with the paper's numbers as defaults: a TOML file, then the command line."""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import tomli_w
import tyro

from cpsl.engine import Precision
from settings_file import plain, read_options


class Range(NamedTuple):
    """Numbers that a setting may be, or each of them where it holds several.

    Attributes:
        low: The smallest.
        high: The largest.
    """

    low: float
    high: float = math.inf

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, int | float)
            and math.isfinite(value)
            and self.low <= value <= self.high
        )

    def __str__(self) -> str:
        if self.low == SMALLEST:
            return "above 0"
        return f"{self.low} or more" if self.high == math.inf else f"{self.low} to {self.high}"


SMALLEST = 1e-12  # stands for "above 0"

Amount = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Size = Annotated[
    tuple[int, int], Range(16)
]  # the networks halve a view three times, and look around
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(SMALLEST)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Domain:
    """Images of one domain, and their labels where there are any."""

    dataset: Literal["gta5", "synthia", "cityscapes", "folder"] = "folder"
    """Layout of the files."""
    root: Path | None = None
    """Folder of gta5, synthia or cityscapes as they are unpacked."""
    split: str = "train"
    """Split of cityscapes: train, val or test."""
    images: Path | None = None
    """Folder of images (dataset "folder"), searched with all its subfolders."""
    labels: Path | None = None
    """Folder of label images (dataset "folder"), named like the images; none if they have no labels."""
    ids: dict[int, int] = field(default_factory=dict)
    """Stored label value to class index (dataset "folder"), 255 to ignore; empty if they are the same."""
    limit: Amount = 0
    """Use only this many of the images, evenly spaced; 0 uses all."""
    streets: Amount = 0
    """Draw this many generated street scenes into `root` first (gta5 and cityscapes); 0 draws none."""
    streets_size: tuple[int, int] = (128, 256)
    """Height and width of the generated scenes, in pixels."""
    streets_seed: int = 0
    """Other scenes; the seed of the run does not change them."""

    @property
    def given(self) -> bool:
        """Whether the domain is described at all."""
        return self.root is not None or self.images is not None


@dataclass(frozen=True)
class Views:
    """Which part of an image is trained on; all sizes in pixels, height before width."""

    full_size: Size = (1024, 2048)
    """Size at which a target image is seen whole."""
    source_size: Size | None = None
    """Size a source image is brought to before scaling, which settles its aspect; `full_size` if None."""
    evaluation_size: Size | None = None
    """Size at which predictions are compared with labels; that of each image if left out."""
    crop: Size = (512, 896)
    """Size of a training crop."""
    width: Count = 2200
    """Width of an image before it is cropped, times a random scale."""
    scale: Annotated[tuple[float, float], Range(SMALLEST)] = (0.5, 1.5)
    """Range of the random scale."""
    color_transfer: bool = True
    """Whether source images take the LAB mean and deviation of a random target image."""
    strong_order: Literal["drawn", "fixed"] = "drawn"
    """Labels follow a strong view as drawn, or in fixed order, of each kind the last: the release."""
    strong_translation: Literal["exact", "stretched"] = "exact"
    """How far labels follow a horizontal move: as far as the image, or W/H times as far: the release."""
    on_device: bool = False
    """Whether the device, not the loader's workers, computes strong views and the colour transfer."""


@dataclass(frozen=True)
class Model:
    """DeepLabV2 and its backbone."""

    backbone: Literal["resnet101", "resnet50", "resnet18", "resnet_tiny"] = "resnet101"
    """The encoder."""
    feature_dim: Count = 256
    """Channels of the features that are clustered."""
    imagenet_file: Path | None = None
    """torchvision's ImageNet weights as a file, where they cannot be downloaded."""
    imagenet_colors: bool = True
    """Whether ImageNet weights see normalised colours, as they are used to; as published: RGB in 0...1."""


@dataclass(frozen=True)
class WarmUp:
    """Stage 0: adversarial alignment of the output space (AdaptSegNet). Its length is our choice."""

    start: str = "imagenet"
    """Weights to start from: imagenet (torchvision's), random, source_only (that model), or a file."""
    iterations: Count = 90_000
    """Optimiser steps."""
    batch_size: Count = 4
    """Images of each domain a step, over all processes."""
    learning_rate: Positive = 2.5e-4
    """Of the backbone."""
    head_multiplier: Weight = 10.0
    """Learning rate of the head, in multiples of the backbone's."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD is the paper's; AdamW learns faster from random weights."""
    repeat_backbone_steps: bool = False
    """Whether a parameter of the backbone takes one step of SGD for each module around it: the release."""
    momentum: Share = 0.9
    """Of SGD; AdamW takes it as its first beta."""
    weight_decay: Weight = 2e-4
    """Of the optimiser."""
    adversarial_weight: Weight = 0.01
    """Weight of the adversarial loss; 0 trains on the source only."""
    discriminator_width: Count = 64
    """Channels of the discriminator's first convolution."""
    discriminator_learning_rate: Positive = 1e-4
    """Of Adam, betas 0.9 and 0.99."""
    freeze_batch_norm: bool = True
    """Whether BatchNorm keeps the statistics it starts with; unwise from random weights."""


@dataclass(frozen=True)
class SelfLabel:
    """Stage 1: class-balanced pixel-level self-labeling."""

    iterations: Count = 90_000
    """Optimiser steps."""
    batch_size: Count = 4
    """Images of each domain a step, over all processes."""
    learning_rate: Positive = 1e-4
    """Of the backbone."""
    head_multiplier: Weight = 5.0
    """Learning rate of the head, in multiples of the backbone's."""
    prototype_multiplier: Weight = 5.0
    """Learning rate of the prototypes, in multiples of the backbone's."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD is the paper's; AdamW learns faster from random weights."""
    repeat_backbone_steps: bool = False
    """Whether a parameter of the backbone takes one step of SGD for each module around it: the release."""
    momentum: Share = 0.9
    """Of SGD; AdamW takes it as its first beta."""
    weight_decay: Weight = 2e-4
    """Of the optimiser."""
    temperature: Positive = 0.08
    """Of the softmax over cosines."""
    epsilon: Positive = 0.05
    """Entropy of the assignment."""
    sinkhorn_iterations: Count = 3
    """Scalings of the assignment."""
    bank_size: Count = 65_536
    """Pixels that are assigned together with a batch, over all processes."""
    samples_per_image: Count = 256
    """Pixels of an image that are assigned."""
    sampling: Literal["class_proportional", "uniform"] = "class_proportional"
    """How these pixels are drawn: so that no class is missed, or uniformly: the release."""
    distribution_momentum: Share = 0.99
    """Of the class distribution's moving average; 1 keeps that of the warm-up: the release."""
    assignment: Literal["joint", "image_by_image"] = "joint"
    """A batch is assigned at once, or image by image, with the bank once it is full: the release."""
    bank_scores: Literal["cosine", "dot_product"] = "cosine"
    """Scores of the bank's pixels: by normalised prototypes, or by prototypes as they are: the release."""
    bank_labels: Literal["own", "crop"] = "own"
    """Labels beside the bank's pixels: their own, or those of other places in the crop: the release."""
    logit_assignments: bool = False
    """Whether a second clustering loss takes its assignments from the teacher's logits: the release."""
    contrast_weight: Weight = 0.0
    """Weight of a contrast of pixels with the bank, in images without CutMix; 0.001: the release."""
    teacher_mode: Literal["evaluation", "training"] = "evaluation"
    """Mode of the teacher: with dropout and the statistics of each batch in training mode: the release."""
    rectify: Literal["similarity", "features"] = "similarity"
    """Carried into the crop before rectification: similarities, or enlarged features: the release."""
    confidence_threshold: Share = 0.0
    """Rectified pseudo labels below this confidence are ignored."""
    cutmix_probability: Share = 0.5
    """How often a rectangle of the source, half the crop's area, is pasted into the target."""
    ce_weight: Weight = 0.1
    """Weight of cross-entropy in the symmetric cross-entropy on the target."""
    rce_weight: Weight = 1.0
    """Weight of reverse cross-entropy in it."""
    self_label_weight: Weight = 0.1
    """Weight of the clustering loss."""
    consistency_weight: Weight = 5.0
    """Weight of the prototype consistency between weak and strong view."""
    teacher_momentum: Share = 0.999
    """Of the moving averages: teacher and prototypes."""


@dataclass(frozen=True)
class Distill:
    """Stages 2 and 3: distillation of the previous stage's model into a fresh student."""

    iterations: Count = 90_000
    """Optimiser steps."""
    batch_size: Count = 4
    """Images of each domain a step, over all processes."""
    learning_rate: Positive = 6e-4
    """Of the backbone."""
    head_multiplier: Weight = 10.0
    """Learning rate of the head, in multiples of the backbone's."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD is the paper's; AdamW learns faster from random weights."""
    repeat_backbone_steps: bool = False
    """Whether a parameter of the backbone takes one step of SGD for each module around it: the release."""
    momentum: Share = 0.9
    """Of SGD; AdamW takes it as its first beta."""
    weight_decay: Weight = 2e-4
    """Of the optimiser."""
    confidence_threshold: Share = 0.95
    """Pseudo labels below this confidence are ignored."""
    distillation_weight: Weight = 1.0
    """Weight of KL(teacher, student)."""
    student_term: Literal["log_probabilities", "probabilities"] = "log_probabilities"
    """The student in KL(teacher, student): its log-probabilities, or its probabilities: the release."""
    student: str = "previous"
    """Start of the student: previous (the stage before), imagenet, random, or a file of weights."""
    output_norm: bool = True
    """Whether a BatchNorm follows the backbone of a student that does not start from the stage before."""
    void_index: Annotated[int, Range(1, 255)] = 255
    """Number of ignored pixels in the stored pseudo labels; 250: the release."""


@dataclass(frozen=True)
class Given:
    """Models that are taken from a file instead of being trained.

    A `model.pt` of a run, or a `.pkl` of the authors' release. The stages before the last of them are left
    out.
    """

    source_only: Path | None = None
    """The model of the source alone."""
    warmup: Path | None = None
    """The warm-up model, from which self-labeling starts."""
    self_label: Path | None = None
    """The self-labeled model, which teaches the first distillation."""
    distill_1: Path | None = None
    """The first distilled model, which teaches the second distillation."""
    distill_2: Path | None = None
    """The second distilled model: nothing is left to train, it is evaluated."""


@dataclass(frozen=True)
class Config:
    """Adapts a segmentation model from a labelled source domain to an unlabelled target domain.

    Begin with a file: --config examples/configs/my_folders.toml for images of your own,
    gta5_to_cityscapes.toml for the paper's experiment, demo.toml to see it work. Most runs set little
    besides: --output, --seed, --device, --precision, --accumulate, --check. The defaults are the paper's;
    "the release" is the authors' code, of which docs/fidelity.md explains each option.
    """

    output: Path
    """Folder of everything this run writes."""
    source: Domain
    """Labelled images."""
    target: Domain
    """Unlabelled images to adapt to; labels are not looked at."""
    evaluation: Domain = field(default_factory=Domain)
    """Labelled images of the target domain; without them there is no IoU, and `target` is looked at."""
    classes: tuple[str, ...] = ("cityscapes-19",)
    """Names of the classes in order, or cityscapes-19 or cityscapes-16 (those that SYNTHIA has)."""
    palette: Annotated[tuple[tuple[int, int, int], ...], Range(0, 255)] = ()
    """Colour of each class, red green blue in 0...255; chosen for you if empty."""
    views: Views = field(default_factory=Views)
    model: Model = field(default_factory=Model)
    source_only: WarmUp = field(default_factory=lambda: WarmUp(adversarial_weight=0))
    """The model without adaptation, for comparison: a warm-up with adversarial weight 0."""
    warmup: WarmUp = field(default_factory=WarmUp)
    self_label: SelfLabel = field(default_factory=SelfLabel)
    distill: Distill = field(default_factory=Distill)
    given: Given = field(default_factory=Given)
    evaluate_every: Amount = 0
    """Steps between evaluations of the student while it trains; 0 evaluates at the end alone."""
    hand_on: Literal["last", "best"] = "last"
    """Weights a stage ends with: the last, or the best by target labels: the release."""
    seed: int = 0
    """Another seed is another run; the same seed gives the same result on the same machine."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "float32"
    """Of the networks: float32, bfloat16 or float16 (mixed precision)."""
    compile: bool = False
    """Whether the networks are compiled (torch.compile): minutes at the start, faster afterwards on a GPU."""
    accumulate: Count = 1
    """Split each batch into this many: less memory, same result but for BatchNorm and means over pixels."""
    workers: Amount = 4
    """Processes that load images, for each process that trains."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints; a stopped run goes on from the last one."""
    check: bool = False
    """Only read all images and labels, rehearse each stage, list all problems and say what the run takes."""
    debug: bool = False
    """Show where in the code an error was raised."""


C = TypeVar("C")


def parse(kind: type[C], arguments: list[str] | None = None) -> C:
    """Reads settings: those of `--config FILE`, one file after the other, then those of the command line.

    The keys of the file are the options of the command line: `[self_label] iterations = 5` is
    `--self-label.iterations 5`.

    Args:
        kind: A dataclass such as `Config`.
        arguments: Command line; that of the program if None.

    Returns:
        The settings.

    Raises:
        SystemExit: Some settings are unknown, of another type or out of range; all of the latter are named.
    """
    file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file.add_argument("--config", type=Path, metavar="FILE", action="append", default=[])
    known, others = file.parse_known_args(arguments)
    paths: list[Path] = known.config
    options = [option for path in paths for option in read_options(path, kind)]
    description = (
        f"{cleandoc(kind.__doc__ or '')}\n\n--config FILE reads a TOML file first. It may be given "
        "several times: what a later file or the command line says wins."
    )
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"  # tyro knows this word only
    try:
        settings = tyro.cli(
            kind,
            args=options + others,
            description=description,
            config=(tyro.conf.FlagConversionOff,),
        )
        if wrong := list(_out_of_range(settings)):
            print("\n".join(wrong), file=sys.stderr)
            raise SystemExit(2)
        return settings
    except SystemExit as error:
        if error.code and paths:
            read = ", ".join(map(str, paths))
            print(f"(settings were read from {read} and the command line)", file=sys.stderr)
        raise


def _out_of_range(settings: Any, prefix: str = "") -> Iterator[str]:
    """Says which settings are out of the range that stands beside their type."""
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            # The settings of a run are not named again among a program's arguments.
            inner = prefix if isinstance(value, Config) else f"{prefix}{name}."
            yield from _out_of_range(value, inner)
        for part in (kind, *get_args(kind)):
            for allowed in getattr(part, "__metadata__", ()):
                if isinstance(allowed, Range):
                    wrong = [number for number in _numbers(value) if number not in allowed]
                    if wrong:
                        yield f"{prefix}{name} must be {allowed}, got {', '.join(map(str, wrong))}"


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif value is not None:
        yield value


def to_toml(config: Any) -> str:
    """Writes settings as a file that `--config` reads."""
    return tomli_w.dumps(plain(asdict(config)))
