"""All settings of a run; the defaults of the paper's stages are the numbers of the paper."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field, with_config

from cpsl.app.domain import Domain
from cpsl.app.ranges import Amount, Byte, Count, Json, Location, Positive, Range, Share, Size, Start, Weight
from cpsl.training import Precision

METHODS = {
    "online": ("source_only", "online"),
    "paper": ("source_only", "warmup", "self_label", "distill_1", "distill_2"),
}
"""The stages of each method in order; each has a folder of its name in a run."""

STAGES = tuple(dict.fromkeys(stage for stages in METHODS.values() for stage in stages))
"""All stages."""

PREVIOUS = {"distill_1": "self_label", "distill_2": "distill_1"}
"""The stage whose network teaches a distillation."""


@dataclass(frozen=True)
class Views:
    """Crops and sizes of training images; all sizes in pixels, height before width."""

    full_size: Size = (1024, 2048)
    """Size of whole target images; folders of images keep their own if omitted."""
    pixels: Count = 524_288
    """Most pixels of a whole image without `full_size`."""
    source_size: Size | None = None
    """Size to which source images are resized before scaling; `full_size` if omitted."""
    evaluation_size: Size | None = None
    """Size at which predictions are compared with labels; that of each label if omitted."""
    crop: Size = (512, 896)
    """Size of a training crop; for folders of images 4/5 of `full_size`."""
    width: Count = 2200
    """Width of an image before it is cropped, times a random scale."""
    scale: Range = (0.5, 1.5)
    """Range of the random scale."""
    color_transfer: Share = 1.0
    """Share of source images that take the LAB mean and deviation of a random target image."""
    source_jitter: Share = 0.0
    """Strength of random changes of brightness, contrast, saturation and hue of source images; 0 for none."""
    rare_class_temperature: Weight = 0.0
    """Temperature of rare-class sampling of source images, 0.01 in DAFormer; 0 samples images evenly."""
    on_device: bool = False
    """Compute strong views, color transfer and jitter on the training device, not in the loader's workers."""


@dataclass(frozen=True)
class Model:
    """The segmentation network."""

    network: str = "deeplabv2:resnet101"
    """LIBRARY:NAME (deeplabv2, timm, transformers, smp, torchvision), lite0, or MODULE:FUNCTION (custom)."""
    feature_dim: Count | None = None
    """Channels of the features that are clustered, if the network has this argument (256 by default)."""
    arguments: Json = field(default_factory=dict)
    """Further arguments of the network; docs/networks.md lists them."""
    weights: Location | None = None
    """File with the pretrained weights, if they cannot be downloaded."""


@dataclass(frozen=True)
class Optimizer:
    """Optimizer of a stage; learning rates decay polynomially (power 0.9)."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd as in the paper, or adamw."""
    learning_rate: Positive = 2.5e-4
    """Learning rate of the pretrained layers."""
    head_multiplier: Weight = 10.0
    """Learning rate of the new layers (head) relative to that of the pretrained layers."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a pretrained layer relative to the next layer; below 1 for transformers."""
    momentum: Share = 0.9
    """Momentum of sgd, first beta of adamw."""
    weight_decay: Weight = 2e-4
    """Weight decay."""


@dataclass(frozen=True)
class WarmUp:
    """Stage 0: adversarial alignment of the output space (AdaptSegNet). Its length is our choice."""

    start: Start = "pretrained"
    """Initial weights: pretrained, random, source_only (that stage's network), or a file."""
    iterations: Count = 90_000
    """Number of optimizer steps."""
    batch_size: Count = 4
    """Images of each domain per step, over all processes."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    adversarial_weight: Weight = 0.01
    """Weight of the adversarial loss; 0 trains on the source only."""
    discriminator_width: Count = 64
    """Channels of the discriminator's first convolution."""
    discriminator_learning_rate: Positive = 1e-4
    """Learning rate of the discriminator (Adam, betas 0.9 and 0.99)."""
    freeze_batch_norm: bool = True
    """Keep the initial BatchNorm statistics of the pretrained layers; not advisable with random weights."""


@dataclass(frozen=True)
class SelfLabel:
    """Stage 1: class-balanced pixel-level self-labeling."""

    iterations: Count = 90_000
    """Number of optimizer steps."""
    batch_size: Count = 4
    """Images of each domain per step, over all processes."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-4, head_multiplier=5.0))
    prototype_multiplier: Weight = 5.0
    """Learning rate of the prototypes relative to that of the pretrained layers."""
    temperature: Positive = 0.08
    """Temperature of the softmax over similarities."""
    epsilon: Positive = 0.05
    """Entropy regularization of the assignment."""
    sinkhorn_iterations: Count = 3
    """Iterations of the assignment."""
    bank_size: Count = 65_536
    """Pixels in the memory bank, over all processes."""
    samples_per_image: Count = 256
    """Pixels per image that are clustered."""
    sampling: Literal["class_proportional", "uniform"] = "class_proportional"
    """How these pixels are sampled: class_proportional includes every class that is present."""
    distribution_momentum: Share = 0.99
    """Momentum of the class distribution; 1 keeps that of the warm-up."""
    confidence_threshold: Share = 0.0
    """Rectified pseudo labels below this confidence are ignored."""
    cutmix_probability: Share = 0.5
    """How often a rectangle of the source, half the area of the crop, is pasted into a target image."""
    ce_weight: Weight = 0.1
    """Weight of cross-entropy in the symmetric cross-entropy on the target."""
    rce_weight: Weight = 1.0
    """Weight of reverse cross-entropy."""
    self_label_weight: Weight = 0.1
    """Weight of the clustering loss."""
    consistency_weight: Weight = 5.0
    """Weight of the prototype consistency between weak and strong view."""
    teacher_momentum: Share = 0.999
    """Momentum of the moving averages: teacher and prototypes."""


@dataclass(frozen=True)
class Distill:
    """Stages 2 and 3: distillation of the previous stage's network into a fresh student."""

    iterations: Count = 90_000
    """Number of optimizer steps."""
    batch_size: Count = 4
    """Images of each domain per step, over all processes."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=6e-4))
    confidence_threshold: Share = 0.95
    """Pseudo labels below this confidence are ignored."""
    distillation_weight: Weight = 1.0
    """Weight of KL(teacher, student)."""
    student: Start = "previous"
    """Initial weights of the student: previous (the previous stage), pretrained, random, or a file."""
    output_norm: bool = True
    """Add a BatchNorm after the backbone of a DeepLabV2 that does not start from the previous stage."""


@dataclass(frozen=True)
class Online:
    """One-stage adaptation: a mean teacher with mixed images and class-balanced pseudo labels."""

    start: Start = "source_only"
    """Initial weights: source_only (that stage's network), pretrained, random, or a file."""
    iterations: Count = 40_000
    """Number of optimizer steps."""
    batch_size: Count = 2
    """Images of each domain per step, over all processes."""
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer("adamw", 6e-5, momentum=0.9, weight_decay=0.01)
    )
    warmup_iterations: Amount = 1500
    """Steps in which the learning rate rises from zero."""
    freeze_batch_norm: bool = True
    """Freeze BatchNorm in the pretrained layers."""
    target_statistics: Share = 0.25
    """Share of target images in the BatchNorm statistics."""
    mixing: Literal["class", "cut", "none"] = "class"
    """Pasted from the source: half of the classes, a rectangle (cut; for other scenes), or nothing."""
    confidence_threshold: Share = 0.968
    """The target loss is weighted by the share of pixels above this confidence."""
    masked_weight: Weight = 1.0
    """Weight of the loss on masked target images; 0 for none."""
    masked_share: Share = 0.7
    """Share of the patches that are masked."""
    masked_patch: Count = 64
    """Side of these patches in pixels."""
    teacher_momentum: Share = 0.999
    """Momentum of the averages, teacher and prototypes."""
    clustering: bool = True
    """Contrast features with the prototypes of clusters; false is a mean teacher."""
    contrast_weight: Positive = 0.3
    """Weight of the contrast of features and prototypes."""
    balanced: bool = True
    """Balance the classes of the pseudo labels."""
    limited: bool = True
    """Keep a class of the pseudo labels from growing beyond its share of the source or of the start."""
    temperature: Positive = 0.1
    """Temperature of the softmax over similarities."""
    bank_size: Count = 16_384
    """Pixels in the memory bank, over all processes."""
    samples_per_image: Count = 512
    """Pixels per image that are clustered."""


@dataclass(frozen=True)
class InitFrom:
    """Networks that are read from a file instead of being trained.

    A `model.pt` of a run, or a `.pkl` of the authors. Earlier stages are omitted.
    """

    source_only: Location | None = None
    """Network of the source alone."""
    online: Location | None = None
    """Network of the online method: it is only evaluated."""
    warmup: Location | None = None
    """Warm-up network, from which self-labeling starts."""
    self_label: Location | None = None
    """Self-labeled network, teacher of the distillation."""
    distill_1: Location | None = None
    """First distilled network, the teacher of the second distillation."""
    distill_2: Location | None = None
    """Second distilled network: it is only evaluated."""


@dataclass(frozen=True)
class Authors:
    """Deviations of the authors' code from the paper; `--config authors` turns all of them on."""

    fixed_label_order: bool = False
    """Labels follow a strong view in a fixed order of operations, not in the order of the image."""
    stretched_label_translation: bool = False
    """Labels are translated horizontally by W/H times as much as the image."""
    repeat_backbone_steps: bool = False
    """Each backbone parameter takes one step of SGD for every module that encloses it."""
    training_mode_teacher: bool = False
    """The teacher runs in training mode, with dropout and batch statistics."""
    rectify_features: bool = False
    """Upsampled features, not similarities, are warped into the crop for rectification."""
    image_by_image: bool = False
    """Images are assigned one after the other, together with the bank once it is full."""
    dot_product_bank_scores: bool = False
    """The bank is scored by the prototypes as they are, not by their directions."""
    crop_bank_labels: bool = False
    """Labels of other positions of the crop are stored beside the pixels of the bank."""
    logit_assignments: bool = False
    """A second clustering loss takes its assignments from the teacher's logits."""
    contrast_weight: Weight = 0.0
    """Weight of a contrast of pixels with the bank, in images without CutMix; the authors use 0.001."""
    probability_distillation: bool = False
    """The distillation loss uses the student's probabilities as log-probabilities."""
    ignore_index: Annotated[int, Field(ge=1, le=255)] = 255
    """Value of ignored pixels in stored pseudo labels; the authors use 250."""


@with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))
@dataclass(frozen=True)
class Config:
    """Settings of a run; the defaults of the paper's stages are those of the paper."""

    output: Location = Path("runs/adapt")
    """Folder of all results of this run."""
    method: Literal["online", "paper"] = "online"
    """online adapts in one stage, paper in the four stages of CPSL; both train the source alone first."""
    source: Domain = field(default_factory=Domain)
    """Labeled images; the first source if there are several."""
    more_sources: Annotated[tuple[Domain, ...], tyro.conf.Suppress] = ()
    """The other sources: in a TOML file, the second and further tables `[[source]]`."""
    target: Domain = field(default_factory=Domain)
    """Unlabeled images to adapt to; labels are not read."""
    evaluation: Domain = field(default_factory=Domain)
    """Labeled target images, only for evaluation; without them there is no IoU."""
    classes: tuple[str, ...] = ("cityscapes-19",)
    """Names of the classes in order; or cityscapes-19, or cityscapes-16 (SYNTHIA's)."""
    palette: tuple[tuple[Byte, Byte, Byte], ...] = ()
    """Color of each class, red green blue in 0...255; if empty, chosen by class name."""
    seed: int = 0
    """Seed of the run; the same seed gives the same result on the same machine with as many threads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "float32"
    """Precision of the networks; the half precisions are mixed precision."""
    gradient_accumulation_steps: Count = 1
    """Split each batch into this many micro-batches, at most one per image, to save memory."""
    workers: Amount = 4
    """Data loading processes per training process."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints, from which an interrupted run resumes."""
    evaluate_every: Amount = 0
    """Steps between evaluations; 0 evaluates at the end of each stage only."""
    select_checkpoint: Literal["last", "best", "score"] = "last"
    """Weights a stage ends with: the last, the best by a label-free score, or by target labels (best)."""
    compile: bool = False
    """Compile the networks (torch.compile)."""
    trace_non_finite: bool = False
    """Find the first module with non-finite numbers; slow, for debugging."""
    debug: bool = False
    """Show the traceback of errors."""
    views: Views = field(default_factory=Views)
    model: Model = field(default_factory=Model)
    source_only: WarmUp = field(default_factory=lambda: WarmUp(adversarial_weight=0.0))
    """The network without adaptation, for comparison: a warm-up with adversarial weight 0."""
    warmup: WarmUp = field(default_factory=WarmUp)
    self_label: SelfLabel = field(default_factory=SelfLabel)
    distill: Distill = field(default_factory=Distill)
    online: Online = field(default_factory=Online)
    init_from: InitFrom = field(default_factory=InitFrom)
    authors: Authors = field(default_factory=Authors)

    @property
    def sources(self) -> tuple[Domain, ...]:
        """All sources."""
        return (self.source, *self.more_sources)

    def settings_of(self, stage: str) -> WarmUp | SelfLabel | Distill | Online:
        """Returns the settings of a stage; both distillations have the same."""
        settings: WarmUp | SelfLabel | Distill | Online
        settings = getattr(self, "distill" if stage in PREVIOUS else stage)
        return settings

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the run: all, or from the last one on whose network is read from a file."""
        stages = METHODS[self.method]
        given = [index for index, stage in enumerate(stages) if getattr(self.init_from, stage)]
        return stages[given[-1] :] if given else stages
