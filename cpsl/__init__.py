"""Class-Balanced Pixel-Level Self-Labeling for domain-adaptive semantic segmentation.

The pieces of the method, each of which works alone; networks are in `cpsl.models`, data sets in `cpsl.data`.
`Segmenter` uses a trained network.
"""

from cpsl import data, metrics, models
from cpsl.alignment import DistributionAligner, class_counts
from cpsl.clustering import ClassBalancedPrototypeClustering, ClusteringOutput
from cpsl.geometry import Carried, View, carry, carry_enlarged
from cpsl.inference import Prediction, Segmenter
from cpsl.losses import (
    cross_entropy,
    discriminator_loss,
    distillation,
    generator_loss,
    pixel_contrast,
    prototype_consistency,
    symmetric_cross_entropy,
)
from cpsl.memory import PixelMemoryBank
from cpsl.metrics import ConfusionMatrix
from cpsl.mixing import Mixed, cutmix
from cpsl.prototypes import (
    ClassMeanPrototypes,
    ClassMeans,
    RunningClassMeans,
    prototype_similarity,
)
from cpsl.rectification import PseudoLabelRectifier, RectifiedLabels
from cpsl.sampling import class_quotas, draw_class_proportional, draw_uniform, labels_of_crop
from cpsl.sinkhorn import marginal_error, sinkhorn

__version__ = "0.1.0"

__all__ = [
    "Carried",
    "ClassBalancedPrototypeClustering",
    "ClassMeanPrototypes",
    "ClassMeans",
    "ClusteringOutput",
    "ConfusionMatrix",
    "DistributionAligner",
    "Mixed",
    "PixelMemoryBank",
    "Prediction",
    "PseudoLabelRectifier",
    "RectifiedLabels",
    "RunningClassMeans",
    "Segmenter",
    "View",
    "__version__",
    "carry",
    "carry_enlarged",
    "class_counts",
    "class_quotas",
    "cross_entropy",
    "cutmix",
    "data",
    "discriminator_loss",
    "distillation",
    "draw_class_proportional",
    "draw_uniform",
    "generator_loss",
    "labels_of_crop",
    "marginal_error",
    "metrics",
    "models",
    "pixel_contrast",
    "prototype_consistency",
    "prototype_similarity",
    "sinkhorn",
    "symmetric_cross_entropy",
]
