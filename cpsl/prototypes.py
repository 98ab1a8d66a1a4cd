"""One prototype a class: similarity of pixels to them, and class means to start them from."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

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


class RunningClassMeans(nn.Module):
    r"""Follows the mean feature and the frequency of each class, from the first batch on.

        s_k ← m s_k + Σ_{n: y_n = k} f_n / |f_n|,   c_k ← m c_k + N_k
        prototype_k = s_k / c_k,   δ_k = c_k / Σ_j c_j

    What `ClassMeanPrototypes` finds in a pass over a data set before training, this finds during training.
    Fed with the features of the labelled source it has a prototype of every class after a few batches, also
    of those that the network never predicts; `ClassBalancedPrototypeClustering.initialize` takes it.

    Sums and counts decay alike: the first batch counts in full, and a class that does not appear keeps its
    prototype. Both are buffers, float64, so that a run can be resumed.

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of channels D.
        momentum: m, 0...1; 1 averages all pixels alike.
        ignore_index: Label that counts for no class.

    Attributes:
        sums: (K, D) s.
        counts: (K,) c.

    Raises:
        ValueError: momentum lies outside 0...1.

    Example:
        >>> means = RunningClassMeans(num_classes=2, feature_dim=2)
        >>> means.update(torch.tensor([[[[3.0, 0.0, 2.0]], [[0.0, 7.0, 0.0]]]]), torch.tensor([[[0, 1, 0]]]))
        >>> means.prototypes
        tensor([[1., 0.],
                [0., 1.]])
        >>> means.distribution
        tensor([0.6667, 0.3333])
    """

    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        momentum: float = 0.99,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0...1, got {momentum}")
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.momentum = momentum
        self.ignore_index = ignore_index
        self.register_buffer("sums", torch.zeros(num_classes, feature_dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(
        self, features: Tensor, labels: Tensor, group: dist.ProcessGroup | None = None
    ) -> None:
        """Adds a batch; a feature that is not finite is skipped.

        Args:
            features: (B, D, h, w), any length; they get no gradient.
            labels: (B, H, W) integer, at any resolution; the nearest label counts.
            group: Ranks whose batches are counted together; None is the default group.

        Raises:
            ValueError: The shapes do not fit, or (on the CPU) a label is neither a class nor ignored.
        """
        if features.ndim != 4 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features must be (B, {self.feature_dim}, h, w), got shape {tuple(features.shape)}"
            )
        if labels.ndim != 3 or len(labels) != len(features):
            raise ValueError(
                f"labels must be ({len(features)}, H, W), got shape {tuple(labels.shape)}"
            )
        pixels = features.movedim(1, -1).reshape(-1, self.feature_dim).float()
        finite = pixels.isfinite().all(dim=1)
        units = F.normalize(pixels.masked_fill(~finite[:, None], 0), dim=1)
        nearest = F.interpolate(labels[:, None].float(), features.shape[2:], mode="nearest-exact")
        classes = nearest.long().flatten().masked_fill(~finite, self.ignore_index)
        counts = class_counts(classes, self.num_classes, self.ignore_index).double()
        # One more row than there are classes takes the ignored pixels.
        rows = classes.masked_fill(classes == self.ignore_index, self.num_classes)
        sums = self.sums.new_zeros(self.num_classes + 1, self.feature_dim)
        sums = sums.index_add_(0, rows, units.double())[: self.num_classes]
        self.sums.mul_(self.momentum).add_(all_reduce_sum(sums.contiguous(), group))
        self.counts.mul_(self.momentum).add_(all_reduce_sum(counts, group))

    @property
    def prototypes(self) -> Tensor:
        """(K, D) float32 mean of normalised features; zero for a class that was never seen."""
        # Where it was long ago the count is less than one: it must not be clamped.
        seen = self.counts > 0
        return (self.sums / torch.where(seen, self.counts, 1)[:, None]).float()

    @property
    def distribution(self) -> Tensor:
        """(K,) float32 frequencies of the classes, sum 1; uniform before the first labelled pixel."""
        total = self.counts.sum()
        uniform = torch.full_like(self.counts, 1 / self.num_classes)
        return torch.where(total > 0, self.counts / total, uniform).float()
