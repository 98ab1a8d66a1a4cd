"""What a report is made from: `cpsl.app.report` collects it, `cpsl.app.reporting.page` writes it."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from torch import Tensor

from cpsl.app.comparable import FEW_IMAGES, counted_unequally
from cpsl.app.reporting.compare import Comparison

Kind = Literal[
    "better",
    "worse",
    "small_gain",
    "small_loss",
    "trial_gain",
    "trial_loss",
    "unclear",
    "untested",
    "rejected",
    "overlooked",
    "short",
    "unlabeled",
    "open",
    "single",
    "unfinished",
]
"""Outcome of a run.

A clear change is "small" if it is below `NOTABLE`, which seeds can explain, and of a "trial" if the steps
were few. "overlooked" and "open" end with the first stage, though no later one failed.
"""

UNRECORDED = "not recorded: the run was begun with an earlier version"


class Clusters(NamedTuple):
    """How self-labeling clustered an image."""

    similarity: Tensor  # (K, h, w) cosines of the teacher's features and the prototypes
    indices: Tensor  # (1, n) sampled pixels, y·w + x
    assignments: Tensor  # (n, K)
    align_corners: bool = True  # of the network


@dataclass(frozen=True)
class Picture:
    """A target image and its predictions; the last three fields are empty if self-labeling did not run."""

    name: str
    image: Tensor | None  # (3, H, W) uint8, None if the file cannot be read any more
    ground_truth: Tensor | None  # (H, W) class indices
    predictions: dict[str, Tensor]  # (H, W) class indices by stage
    pseudo_labels: dict[str, Tensor] = field(default_factory=dict)  # (H, W) class indices by description
    confidence: Tensor | None = None  # (H, W) of the rectified pseudo labels, 0...1
    clusters: Clusters | None = None
    choice: str = ""  # why this image is shown, such as "best, mean IoU 51.0"


@dataclass(frozen=True)
class DataSet:
    """A data set of the run, in numbers and words."""

    name: str  # "source", "source 1", ..., "target", "evaluation"
    images: int
    labels: int | None  # None if they are not read
    sizes: str  # of the images
    location: str
    note: str = ""  # such as the share of the samples
    generated: bool = False  # street scenes, no photographs


@dataclass(frozen=True)
class Report:
    """Content of a report."""

    title: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    metrics: dict[str, dict[str, Any]]  # results of `cpsl.app.evaluate.evaluate` and `seconds`, by stage
    curves: dict[str, dict[str, list[tuple[int, float]]]]  # points (iteration, value) by stage and name
    pictures: list[Picture]
    config: str  # TOML
    settings: dict[str, tuple[str, bool]]  # value by key, and whether it is the default
    chosen: str  # stage of the run's model
    reason: str = ""  # why that stage, a sentence without its period
    selected: str = "last"  # `select_checkpoint`
    model: str = "model.pt"  # path of the run's model
    finished: bool = True  # whether the run has ended, and `model` exists
    missing: tuple[str, ...] = ()  # stages that have not ended
    seed: int = 0  # of the run
    iterations: dict[str, int] = field(default_factory=dict)  # of the stages that were trained
    longer: str = ""  # command of a longer run, if a stage was too short
    comparison: Comparison | None = None  # of the stages before and after adaptation
    data_sets: list[DataSet] = field(default_factory=list)
    source_labels: dict[str, list[float]] = field(default_factory=dict)  # K frequencies by source
    shared: dict[str, int] = field(default_factory=dict)  # evaluation images that other data sets have too
    clustering: dict[str, list[float]] = field(default_factory=dict)  # K frequencies by description
    facts: dict[str, list[str]] = field(default_factory=dict)  # lines by what they are about
    unreadable: list[str] = field(default_factory=list)  # why data sets could not be read

    @property
    def weights(self) -> str:
        """The file of the network: the run's model or, before the run has one, that of the chosen stage."""
        return self.model if self.finished else self.weights_of(self.chosen)

    def weights_of(self, stage: str) -> str:
        """Returns the file of the network of a stage."""
        path = PurePosixPath(self.model)
        return str(path.parent / stage / path.name)

    @property
    def kept(self) -> bool:
        """Whether the later of the compared stages is that of the model."""
        return self.chosen == self.ends[1]

    @property
    def small_data_sets(self) -> list[DataSet]:
        """Data sets with too few images, except for those of several sources; 0 images were not counted."""
        alone = [data for data in self.data_sets if not data.name.startswith("source ")]
        return [data for data in alone if 0 < data.images < FEW_IMAGES]

    @property
    def evaluated(self) -> str:
        """Noun for the images of the figures: target images, if there are no evaluation images."""
        names = [data.name for data in self.data_sets]
        return "target image" if names and "evaluation" not in names else "evaluation image"

    @property
    def ends(self) -> tuple[str, str]:
        """The stages that the report compares: the first and that of the model, or else the last."""
        return compared_stages(list(self.metrics), self.chosen)

    @property
    def mious(self) -> tuple[float | None, float | None]:
        """Mean IoU before and after adaptation, of the same classes, in percent; None without labels."""
        before, after = counted_unequally([self.metrics[stage] for stage in self.ends])[1]
        return before, after


def compared_stages(stages: list[str], chosen: str) -> tuple[str, str]:
    """Returns the first stage and the chosen one; the last one if the first is chosen.

    Example:
        >>> compared_stages(["source_only", "online"], "online")
        ('source_only', 'online')
        >>> compared_stages(["source_only", "warmup", "self_label"], "source_only")
        ('source_only', 'self_label')
    """
    return stages[0], chosen if chosen in stages[1:] else stages[-1]
