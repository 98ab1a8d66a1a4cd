"""Similarity of pixels to class prototypes, and class means as initial prototypes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.averaging import check_momentum
from cpsl._internal.checking import check_ignore_index, check_probabilities, check_shape
from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.precision import FullPrecision
from cpsl.alignment import class_counts
from cpsl.geometry import resize_labels


def prototype_similarity(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns the cosine similarity of each pixel's feature and each class prototype.

    Computed in float32 under autocast as well, because losses divide the cosines by temperatures of a few
    hundredths. CUDA devices may use TF32 for maps (`torch.backends.cudnn.allow_tf32`), with errors of 1e-4.
    A feature of length zero has similarity 0 to all prototypes.

    Args:
        features: (B, D, h, w) map or (N, D) pixels, any length.
        prototypes: (K, D), any length.

    Returns:
        (B, K, h, w) or (N, K) float32 in -1...1.

    Raises:
        ValueError: The shapes do not match.

    Example:
        >>> prototype_similarity(torch.tensor([[0.0, 2.0]]), torch.eye(2))
        tensor([[0., 1.]])
    """
    if features.ndim not in (2, 4):
        raise ValueError(f"features must be (B, D, h, w) or (N, D), got shape {tuple(features.shape)}")
    check_shape("prototypes", prototypes, "K", features.shape[1])
    with torch.autocast(features.device.type, enabled=False):
        features, unit = features.float(), F.normalize(prototypes.float(), dim=1)
        # Normalizing the K products is cheaper than normalizing the D channels.
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-12)
        weight = unit[:, :, None, None]
        if features.ndim == 4:
            return torch.div(F.conv2d(features, weight), length)
        if features.device.type != "cpu" or len(features) < 8192 or len(features) % 64:
            return torch.div(features @ unit.t(), length)
        # For many pixels and few classes, a convolution is about twice as fast as a product on a CPU.
        grid = features.reshape(1, -1, 64, features.shape[1]).permute(0, 3, 1, 2)
        products = F.conv2d(grid, weight).permute(0, 2, 3, 1).reshape(len(features), len(unit))
        return torch.div(products, length)


def finite_pixels(maps: Tensor) -> Tensor:
    """Returns which pixels (B, h, w) of a map (B, C, h, w) are finite in all channels.

    Values whose sum is too large for float32 count as infinite.
    """
    # One reduction: the sum of a NaN or of an infinity with anything is never finite.
    return maps.detach().sum(dim=1, dtype=torch.float32).isfinite()


def soft_class_counts(features: Tensor, soft_labels: Tensor, num_classes: int, align_corners: bool) -> Tensor:
    """Sums soft labels over the pixels with finite features and probabilities, as (K,) float64."""
    check_shape("soft labels", soft_labels, len(features), num_classes, "H", "W")
    check_probabilities(soft_labels)
    valid = finite_pixels(features).to(torch.uint8)
    valid = resize_labels(valid, soft_labels.shape[2:], align_corners).bool()
    valid &= finite_pixels(soft_labels)
    return soft_labels.detach().masked_fill(~valid[:, None], 0).sum(dim=(0, 2, 3), dtype=torch.float64)


class ClassMeans(NamedTuple):
    """Result of `ClassMeanPrototypes`.

    Attributes:
        prototypes: (K, D) mean features; zero for a class that no image contains.
        image_counts: (K,) int64 number of images that contain the class.
    """

    prototypes: Tensor
    image_counts: Tensor


class ClassMeanPrototypes:
    """Averages the features of each class over a data set, to initialize prototypes (CPSL, section 3.2).

    First the mean over the pixels of each predicted class in an image, then the mean over the images that
    contain the class, so that a large truck in one image does not outweigh small ones in ten. Pixels with
    non-finite features or logits are skipped.

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of channels D.
        min_pixels: An image counts for a class only if it has at least this many pixels of it.
        group: Process group over which `compute` averages; None is the default group.
        align_corners: Corner-aligned or half-pixel grid of the features, as in
            `torch.nn.functional.interpolate`.
        device: Device of the sums; None is the CPU until the first batch, whose device they take. Ranks that
            may have no images need it for a group of NCCL.

    Example:
        >>> means = ClassMeanPrototypes(num_classes=2, feature_dim=1, min_pixels=1)
        >>> logits = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])  # classes 0, 0, 1
        >>> means.update(torch.tensor([[[[2.0, 4.0, 5.0]]]]), logits)
        >>> means.compute().prototypes
        tensor([[3.],
                [5.]])
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        min_pixels: int = 10,
        group: dist.ProcessGroup | None = None,
        *,
        align_corners: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.min_pixels = min_pixels
        self.group = group
        self.align_corners = align_corners
        self._sums = torch.zeros(num_classes, feature_dim, dtype=torch.float64, device=device)
        self._images = torch.zeros(num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, logits: Tensor) -> None:
        """Adds a batch of images.

        Args:
            features: (B, D, h, w).
            logits: (B, K, H, W); the predicted classes are resized by nearest neighbor (`resize_labels`).

        Raises:
            ValueError: The shapes do not match.
        """
        check_shape("features", features, "B", self._sums.shape[1], "h", "w")
        check_shape("logits", logits, len(features), self.num_classes, "H", "W")
        self._sums, self._images = self._sums.to(features.device), self._images.to(features.device)
        largest, predicted = logits.max(dim=1)
        skipped = self.num_classes  # class of the pixels that are skipped, of one extra row
        predicted = predicted.masked_fill(~largest.isfinite(), skipped)
        predicted = resize_labels(predicted, features.shape[2:], self.align_corners)
        finite = finite_pixels(features)
        predicted = predicted.masked_fill(~finite, skipped)
        features = features.masked_fill(~finite[:, None], 0)
        for pixels, labels in zip(features.flatten(2), predicted.flatten(1), strict=True):
            sums = self._sums.new_zeros(self.num_classes + 1, len(pixels))
            sums.index_add_(0, labels, pixels.t().double())
            count = class_counts(labels, self.num_classes, ignore_index=skipped)
            counted = count >= self.min_pixels
            self._sums += (counted.double() / count.clamp_min(1))[:, None] * sums[:skipped]
            self._images += counted

    def compute(self) -> ClassMeans:
        """Returns the means over the images of all ranks; every rank of the group must call it."""
        sums = all_reduce_sum(self._sums.clone(), self.group)
        images = all_reduce_sum(self._images.clone(), self.group)
        return ClassMeans((sums / images.clamp_min(1)[:, None]).float(), images)

    def reset(self) -> None:
        """Discards all images."""
        self._sums.zero_()
        self._images.zero_()


def sum_by_class(
    pixels: Tensor,
    classes: Tensor,
    num_classes: int,
    ignore_index: int = 255,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the sums (K, D) of the pixels (N, D) of each class (N,), and their numbers (K,), float64.

    They are those of all ranks of the group.
    """
    classes = classes.long()
    counts = class_counts(classes, num_classes, ignore_index).double()
    # Ignored pixels are added to one extra row.
    rows = classes.masked_fill(classes == ignore_index, num_classes)
    sums = pixels.new_zeros(num_classes + 1, pixels.shape[1], dtype=torch.float64)
    sums = sums.index_add_(0, rows, pixels.double())[:num_classes]
    return all_reduce_sum(sums.contiguous(), group), all_reduce_sum(counts, group)


class RunningMeans(NamedTuple):
    """Properties of `RunningClassMeans`, the arguments of `ClassBalancedPrototypeClustering.initialize`."""

    prototypes: Tensor
    distribution: Tensor


class RunningClassMeans(FullPrecision):
    r"""Tracks the mean feature and the frequency of each class during training.

        s_k ← m s_k + Σ_{n: y_n = k} f_n / |f_n|,   c_k ← m c_k + N_k
        prototype_k = s_k / c_k,   δ_k = c_k / Σ_j c_j

    Replaces the pass of `ClassMeanPrototypes` over a data set before training. Updated with the labeled
    source it has a prototype of every class after a few batches, including classes that the network never
    predicts. The first batch has full weight, and a class that does not occur keeps its prototype (unless
    momentum is 0).

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of channels D.
        momentum: m, 0...1; 1 averages all pixels equally.
        ignore_index: Label of pixels that are not counted.
        group: Process group whose batches are counted together; None is the default group.
        align_corners: Corner-aligned or half-pixel grid of the features, as in
            `torch.nn.functional.interpolate`.

    Attributes:
        sums: (K, D) float64 buffer s; stays float64 in a network of lower precision.
        counts: (K,) float64 buffer c, likewise.

    Raises:
        ValueError: momentum is outside 0...1, or `ignore_index` is a class.

    Example:
        >>> means = RunningClassMeans(num_classes=2, feature_dim=2)
        >>> means.update(torch.tensor([[[[3.0, 0.0, 2.0]], [[0.0, 7.0, 0.0]]]]), torch.tensor([[[0, 1, 0]]]))
        >>> prototypes, distribution = means.compute()
        >>> prototypes
        tensor([[1., 0.],
                [0., 1.]])
        >>> distribution
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
        group: dist.ProcessGroup | None = None,
        *,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        check_ignore_index(ignore_index, num_classes)
        self.align_corners = align_corners
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.momentum = momentum
        self.ignore_index = ignore_index
        self.group = group
        self.register_buffer("sums", torch.zeros(num_classes, feature_dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Adds the batches of all ranks; non-finite features are skipped.

        Args:
            features: (B, D, h, w), any length; they get no gradient.
            labels: (B, H, W) integer at any resolution, resized by nearest neighbor (`resize_labels`).

        Raises:
            ValueError: The shapes do not match, or (on the CPU) a label is neither a class nor ignored.
        """
        check_shape("features", features, "B", self.feature_dim, "h", "w")
        check_shape("labels", labels, len(features), "H", "W")
        pixels = features.movedim(1, -1).reshape(-1, self.feature_dim).float()
        finite = finite_pixels(features).flatten()
        units = F.normalize(pixels.masked_fill(~finite[:, None], 0), dim=1)
        nearest = resize_labels(labels, features.shape[2:], self.align_corners)
        classes = nearest.long().flatten().masked_fill(~finite, self.ignore_index)
        sums, counts = sum_by_class(units, classes, self.num_classes, self.ignore_index, self.group)
        self.sums.mul_(self.momentum).add_(sums)
        self.counts.mul_(self.momentum).add_(counts)

    def compute(self) -> RunningMeans:
        """Returns prototypes and class distribution."""
        return RunningMeans(self.prototypes, self.distribution)

    def reset(self) -> None:
        """Discards all batches."""
        self.sums.zero_()
        self.counts.zero_()

    @property
    def prototypes(self) -> Tensor:
        """(K, D) float32 mean of normalized features; zero for a class without pixels so far."""
        # Counts decay below 1, so that they cannot be clamped to 1.
        counts = torch.where(self.counts > 0, self.counts, 1)
        return (self.sums / counts[:, None]).float()

    @property
    def distribution(self) -> Tensor:
        """(K,) float32 class frequencies, sum 1; uniform before the first labeled pixel."""
        total = self.counts.sum()
        uniform = torch.full_like(self.counts, 1 / self.num_classes)
        return torch.where(total > 0, self.counts / total, uniform).float()
