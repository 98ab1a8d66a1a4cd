"""Class-Balanced Pixel-Level Self-Labeling for domain-adaptive semantic segmentation.

The components of the method, each usable on its own. Networks are in `cpsl.models`, data sets in `cpsl.data`,
and training steps in `cpsl.methods`. `Segmenter` applies a trained network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cpsl._internal import interrupts as _interrupts  # noqa: F401  # before all that takes time
from cpsl._internal import loading as _loading  # noqa: F401
from cpsl._internal import threads as _threads  # noqa: F401  # before torch is loaded
from cpsl.alignment import DistributionAligner, class_counts
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.collapse import find_collapses
from cpsl.contrast import pixel_contrast, prototype_contrast
from cpsl.geometry import View, warp
from cpsl.limits import ShareLimits
from cpsl.losses import (
    cross_entropy,
    discriminator_loss,
    distillation,
    generator_loss,
    prototype_consistency,
    symmetric_cross_entropy,
)
from cpsl.memory import PixelMemoryBank
from cpsl.metrics import ConfusionMatrix
from cpsl.mixing import classmix, cutmix, mask_patches
from cpsl.prototypes import ClassMeanPrototypes, RunningClassMeans, prototype_similarity
from cpsl.rectification import PseudoLabelRectifier, agreeing_labels
from cpsl.scores import LabelFreeScores
from cpsl.sinkhorn import class_potentials, marginal_error, sinkhorn
from cpsl.thresholds import DiceThresholds

if TYPE_CHECKING:
    from cpsl import authors, data, methods, metrics, models, testing, visualize
    from cpsl.inference import Segmenter

__version__ = "0.1.0"

__all__ = [
    "ClassBalancedPrototypeClustering",
    "ClassMeanPrototypes",
    "ConfusionMatrix",
    "DiceThresholds",
    "DistributionAligner",
    "LabelFreeScores",
    "PixelMemoryBank",
    "PseudoLabelRectifier",
    "RunningClassMeans",
    "Segmenter",
    "ShareLimits",
    "View",
    "__version__",
    "agreeing_labels",
    "authors",
    "class_counts",
    "class_potentials",
    "classmix",
    "cross_entropy",
    "cutmix",
    "data",
    "discriminator_loss",
    "distillation",
    "find_collapses",
    "generator_loss",
    "marginal_error",
    "mask_patches",
    "methods",
    "metrics",
    "models",
    "pixel_contrast",
    "prototype_consistency",
    "prototype_contrast",
    "prototype_similarity",
    "sinkhorn",
    "symmetric_cross_entropy",
    "testing",
    "visualize",
    "warp",
]


def __getattr__(name: str) -> Any:
    # Modules that import torchvision are loaded at first use, which keeps `import cpsl` fast.
    if name == "Segmenter":
        return import_module("cpsl.inference").Segmenter
    if name in ("authors", "data", "methods", "models", "testing", "visualize"):
        return import_module(f"cpsl.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
