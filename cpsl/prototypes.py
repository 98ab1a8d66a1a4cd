"""One prototype a class: similarity of pixels to them, and class means to start them from."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cpsl.alignment import class_counts
from cpsl.distributed import all_reduce_sum


def prototype_similarity(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns the cosine of each pixel's feature and each class's prototype.

    Computed in float32 whatever the input or autocast say: the cosines are divided by temperatures of a
    few hundredths afterwards. A feature of length zero has cosine 0 with everything.

    Args:
        features: (B, D, h, w) a map, or (N, D) single pixels; any length.
        prototypes: (K, D), any length.

    Returns:
        (B, K, h, w) or (N, K) float32 in -1...1.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> prototype_similarity(torch.tensor([[0.0, 2.0]]), torch.eye(2))
        tensor([[0., 1.]])
    """
    if features.ndim not in (2, 4):
        raise ValueError(
            f"features must be (B, D, h, w) or (N, D), got shape {tuple(features.shape)}"
        )
    if prototypes.ndim != 2 or prototypes.shape[1] != features.shape[1]:
        raise ValueError(
            f"prototypes must be (K, {features.shape[1]}) to fit the features, "
            f"got shape {tuple(prototypes.shape)}"
        )
    with torch.autocast(features.device.type, enabled=False):
        features, unit = features.float(), F.normalize(prototypes.float(), dim=1)
        # Dividing K products by the length is cheaper than dividing D channels of a map by it.
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-12)
        weight = unit[:, :, None, None]
        if features.ndim == 4:
            return torch.div(F.conv2d(features, weight), length)
        if features.device.type != "cpu" or len(features) < 8192 or len(features) % 64:
            return torch.div(features @ unit.t(), length)
        # Many pixels by few classes: a CPU convolves them as a map about twice as fast as it multiplies.
        grid = features.reshape(1, -1, 64, features.shape[1]).permute(0, 3, 1, 2)
        products = F.conv2d(grid, weight).permute(0, 2, 3, 1).reshape(len(features), len(unit))
        return torch.div(products, length)


class ClassMeans(NamedTuple):
    """Mean features of the classes.

    Attributes:
        prototypes: (K, D); zero for a class that no image had.
        images_seen: (K,) number of images that had the class.
    """

    prototypes: Tensor
    images_seen: Tensor


class ClassMeanPrototypes:
    """Averages the features of each class over a data set, to start prototypes from.

    Per image the mean feature of each predicted class with at least `min_pixels` pixels; then the mean
    over the images that had the class, so that one image with a large truck does not outweigh ten with a
    small one (section 3.2 of CPSL follows ProDA in this).

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of channels D.
        min_pixels: Classes with fewer pixels in an image are not counted there.

    Example:
        >>> means = ClassMeanPrototypes(num_classes=2, feature_dim=1, min_pixels=1)
        >>> logits = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])  # classes 0, 0, 1
        >>> means.update(torch.tensor([[[[2.0, 4.0, 5.0]]]]), logits)
        >>> means.compute().prototypes
        tensor([[3.],
                [5.]])
    """

    def __init__(self, num_classes: int, feature_dim: int, min_pixels: int = 10) -> None:
        self.num_classes = num_classes
        self.min_pixels = min_pixels
        self._sum = torch.zeros(num_classes, feature_dim, dtype=torch.float64)
        self._images = torch.zeros(num_classes, dtype=torch.int64)

    @torch.no_grad()
    def update(self, features: Tensor, logits: Tensor) -> None:
        """Adds a batch of images.

        Args:
            features: (B, D, h, w).
            logits: (B, K, h, w) on the same grid.

        Raises:
            ValueError: The shapes do not fit.
        """
        batch, channels = features.shape[:2]
        if logits.shape != (batch, self.num_classes, *features.shape[2:]):
            raise ValueError(
                f"logits must be ({batch}, {self.num_classes}, h, w) on the grid of the features "
                f"{tuple(features.shape)}, got shape {tuple(logits.shape)}"
            )
        if channels != self._sum.shape[1]:
            raise ValueError(f"features must have {self._sum.shape[1]} channels, got {channels}")
        self._sum, self._images = self._sum.to(features.device), self._images.to(features.device)
        for pixels, labels in zip(
            features.flatten(2), logits.argmax(dim=1).flatten(1), strict=True
        ):
            sums = torch.zeros_like(self._sum).index_add_(0, labels, pixels.t().double())
            count = class_counts(labels, self.num_classes)
            counted = count >= self.min_pixels
            self._sum += (counted / count.clamp_min(1))[:, None] * sums
            self._images += counted

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Joins what the ranks of a group have added; call it once, at the end."""
        all_reduce_sum(self._sum, group)
        all_reduce_sum(self._images, group)

    def compute(self) -> ClassMeans:
        """Returns the prototypes and how many images each of them stands on."""
        mean = self._sum / self._images.clamp_min(1)[:, None]
        return ClassMeans(mean.float(), self._images.clone())
