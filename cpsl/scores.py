"""Label-free scores: how a segmentation network does on images without labels, from its logits alone."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.precision import FullPrecision
from cpsl.alignment import class_counts
from cpsl.collapse import class_divergence, total_variation
from cpsl.sinkhorn import check_distribution

SAMPLES = 256
"""Pixels per image of the soft neighborhood density."""


class Agreement(NamedTuple):
    """How far two predictions for the same pixels agree.

    Attributes:
        labels: Scalar in 0...1, the share of the pixels with equal most probable classes.
        divergence: Scalar, mean over the pixels of KL(p ‖ q) in nats; 0 if the predictions are equal.
        miou: Scalar in 0...1, the mean over the classes that either predicts of the intersection over union
            of its regions. Unlike `labels` it depends on each class alike, frequent or rare.
    """

    labels: Tensor
    divergence: Tensor
    miou: Tensor


class Scores(NamedTuple):
    """Result of `LabelFreeScores.compute`; a score without a pixel is NaN.

    Attributes:
        entropy: Scalar in 0...1, see `mean_entropy`; lower is more confident.
        information: Scalar in 0...1, see `mutual_information`; higher is better.
        density: Scalar in nats, 0...log(samples_per_image - 1), see `soft_neighborhood_density`; higher is
            better.
        class_distribution: (K,) mean of the probabilities, sums to 1.
        class_divergence: Scalar in nats, see `class_divergence`; NaN without a reference.
        class_variation: Scalar in 0...1, see `total_variation`; NaN without a reference.
        agreements: `Agreement` with each other prediction, by its name.
        pixels: Number of pixels that were counted.
        non_finite: Number of pixels that were ignored, since a logit was NaN or infinite.
    """

    entropy: Tensor
    information: Tensor
    density: Tensor
    class_distribution: Tensor
    class_divergence: Tensor
    class_variation: Tensor
    agreements: dict[str, Agreement]
    pixels: Tensor
    non_finite: Tensor


class LabelFreeScores(FullPrecision):
    """Accumulates the scores of a network over batches of target images.

    No score is a measure of accuracy: a network that predicts one class everywhere is confident, consistent
    and dense. `cpsl.collapse` detects that. The sums are additive, hence batches and ranks may be of any
    size. `compute` returns the result of all ranks; the buffers are those of this process.

    Args:
        num_classes: Number of classes K.
        reference: (K,) distribution with which that of the predictions is compared, such as the frequencies
            of the source's labels; normalized to sum 1. None compares with none.
        comparisons: Names of the other predictions that `update` may receive, such as ("flip", "teacher").
        samples_per_image: Pixels of each image that `soft_neighborhood_density` samples, at least 2.
        temperature: Temperature of `soft_neighborhood_density`.
        group: Process group over which `compute` sums; None is the default group.

    Raises:
        ValueError: `reference` is not a distribution over K classes, or a number is out of range.

    Example:
        A network and its predictions for mirrored images, mirrored back.

        >>> network = torch.nn.Conv2d(3, 5, kernel_size=3, padding=1)
        >>> scores = LabelFreeScores(num_classes=5, comparisons=["flip"])
        >>> for images in torch.rand(2, 4, 3, 16, 16):
        ...     scores.update(network(images), {"flip": network(images.flip(-1)).flip(-1)})
        >>> result = scores.compute()
        >>> result.pixels, result.class_distribution.shape
        (tensor(2048), torch.Size([5]))
        >>> 0 <= result.entropy <= 1 and 0 <= result.agreements["flip"].labels <= 1
        tensor(True)
    """

    reference: Tensor | None
    totals: Tensor
    class_mass: Tensor
    compared: Tensor
    confusion: Tensor

    def __init__(
        self,
        num_classes: int,
        reference: Tensor | None = None,
        comparisons: Sequence[str] = (),
        samples_per_image: int = SAMPLES,
        temperature: float = 0.05,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        _check_density(samples_per_image, temperature)
        if reference is not None:
            check_distribution(reference, num_classes)
            reference = reference.detach().double() / reference.double().sum()
        self.num_classes = num_classes
        self.comparisons = tuple(comparisons)
        self.samples_per_image = samples_per_image
        self.temperature = temperature
        self.group = group
        self.register_buffer("reference", reference)
        # Entropy, density, images with a density, pixels, non-finite pixels.
        self.register_buffer("totals", torch.zeros(5, dtype=torch.float64))
        self.register_buffer("class_mass", torch.zeros(num_classes, dtype=torch.float64))
        # Divergence, and pixels by the classes of both predictions, of each comparison.
        count = len(self.comparisons)
        self.register_buffer("compared", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("confusion", torch.zeros(count, num_classes, num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, logits: Tensor, others: Mapping[str, Tensor] | None = None) -> None:
        """Adds a batch.

        Args:
            logits: (B, K, h, w) logits or log-probabilities; pixels with non-finite values are ignored.
            others: Other logits for the same pixels by name, such as those of a teacher, or of a mirrored
                image, mirrored back; a batch may lack some or all.

        Raises:
            ValueError: A shape differs, or a name is not among `comparisons`.
        """
        check_shape("logits", logits, "B", self.num_classes, "h", "w")
        log_p, valid = _log_probabilities(logits)
        entropy, mass = _entropy_sums(log_p, valid)
        density, images = _density_sums(log_p, valid, self.samples_per_image, self.temperature)
        self.totals += torch.stack([entropy, density, images, valid.sum(), (~valid).sum()])
        self.class_mass += mass
        for name, other in (others or {}).items():
            if name not in self.comparisons:
                known = ", ".join(self.comparisons) or "none"
                raise ValueError(f"{name!r} is not a comparison of the constructor, which has {known}")
            divergence, confusion = _agreement_sums(log_p, valid, other, name)
            self.compared[self.comparisons.index(name)] += divergence
            self.confusion[self.comparisons.index(name)] += confusion

    def compute(self) -> Scores:
        """Returns the scores over the pixels of all ranks; every rank must call it."""
        parts = (self.totals, self.class_mass, self.compared, self.confusion.flatten())
        joined = all_reduce_sum(torch.cat(parts), self.group)
        totals, mass, compared, confusion = joined.split([len(part) for part in parts])
        entropy, density, images, pixels, non_finite = totals
        distribution, mean_entropy = mass / pixels, entropy / pixels
        to_reference = variation = torch.full_like(entropy, math.nan)
        if self.reference is not None:
            to_reference = class_divergence(distribution, self.reference)
            variation = total_variation(distribution, self.reference)
        return Scores(
            entropy=(mean_entropy / _largest_entropy(self.num_classes)).float(),
            information=_information(distribution, mean_entropy).float(),
            density=(density / images).float(),
            class_distribution=distribution.float(),
            class_divergence=to_reference.float(),
            class_variation=variation.float(),
            agreements={
                name: _agreement(divergence, counts)
                for name, divergence, counts in zip(
                    self.comparisons, compared, confusion.reshape(self.confusion.shape), strict=True
                )
            },
            pixels=pixels.long(),
            non_finite=non_finite.long(),
        )

    def reset(self) -> None:
        """Sets all sums to zero."""
        for sums in (self.totals, self.class_mass, self.compared, self.confusion):
            sums.zero_()


def mean_entropy(logits: Tensor) -> Tensor:
    r"""Computes the mean entropy of the predictions, relative to that of the uniform distribution.

    $$\bar{H} = -\frac{1}{N \log K} \sum_{i=1}^{N} \sum_{k=1}^{K} p_{ik} \log p_{ik}$$

    Args:
        logits: (B, K, h, w); pixels with non-finite values are ignored.

    Returns:
        Scalar in 0...1: 0 if all predictions are certain, 1 if all are uniform; NaN without valid pixels.

    Example:
        >>> uniform = torch.zeros(1, 4, 2, 2)
        >>> mean_entropy(uniform)
        tensor(1.)
    """
    log_p, valid = _log_probabilities(logits)
    entropy, _ = _entropy_sums(log_p, valid)
    return (entropy / valid.sum() / _largest_entropy(log_p.shape[1])).float()


def mutual_information(logits: Tensor) -> Tensor:
    r"""Computes the mutual information of pixels and predicted classes, relative to log K.

    $$I = \frac{1}{\log K} \left( H\Big(\frac{1}{N} \sum_i p_i\Big) - \frac{1}{N} \sum_i H(p_i) \right)$$

    It is high if each prediction is certain and all classes are predicted, and 0 if all pixels have the same
    prediction. It is the objective of information maximization (Krause et al., NeurIPS 2010; SHOT, Liang et
    al., ICML 2020).

    Args:
        logits: (B, K, h, w); pixels with non-finite values are ignored.

    Returns:
        Scalar in 0...1; NaN without valid pixels.

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 0]]])
        >>> certain = 100 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
        >>> mutual_information(certain)
        tensor(1.)
    """
    log_p, valid = _log_probabilities(logits)
    entropy, mass = _entropy_sums(log_p, valid)
    return _information(mass / valid.sum(), entropy / valid.sum()).float()


def soft_neighborhood_density(
    logits: Tensor, samples_per_image: int = SAMPLES, temperature: float = 0.05
) -> Tensor:
    r"""Computes the soft neighborhood density (Saito et al., ICCV 2021) within each image, and its mean.

    With p̂ the L2-normalized probabilities of n sampled pixels,

    $$q_{ij} = \frac{\exp(\hat{p}_i \cdot \hat{p}_j / \tau)}
    {\sum_{l \neq i} \exp(\hat{p}_i \cdot \hat{p}_l / \tau)}, \qquad
    \mathrm{SND} = -\frac{1}{n} \sum_i \sum_{j \neq i} q_{ij} \log q_{ij}$$

    It is high if each pixel has many neighbors with the same prediction. It is highest if all pixels have the
    same one. The sampled positions are the same for all images of a size, and memory is O(B n²).

    Args:
        logits: (B, K, h, w); pixels with non-finite values are ignored.
        samples_per_image: n, at least 2.
        temperature: τ.

    Returns:
        Scalar in nats, 0...log(n - 1); NaN if no image has two valid pixels.

    Raises:
        ValueError: A number is out of range, or the shape is wrong.

    Example:
        >>> soft_neighborhood_density(torch.zeros(1, 3, 4, 4)), torch.tensor(15).log()
        (tensor(2.7081), tensor(2.7081))
    """
    _check_density(samples_per_image, temperature)
    density, images = _density_sums(*_log_probabilities(logits), samples_per_image, temperature)
    return (density / images).float()


def agreement(logits: Tensor, other: Tensor) -> Agreement:
    r"""Compares two predictions p and q for the same pixels.

    $$A = \frac{1}{N} \sum_i [\arg\max p_i = \arg\max q_i], \qquad
    D = \frac{1}{N} \sum_i \sum_k p_{ik} \log \frac{p_{ik}}{q_{ik}}$$

    With N_kl the number of pixels of class k in the one and l in the other, the mean over the classes is

    $$M = \frac{1}{|\{k : U_k > 0\}|} \sum_k \frac{N_{kk}}{U_k}, \qquad
    U_k = \sum_l (N_{kl} + N_{lk}) - N_{kk}$$

    Examples are an image and its mirror image (consistency), teacher and student, or adapted network and
    source-only network.

    Args:
        logits: (B, K, h, w), of p; pixels with non-finite values in either are ignored.
        other: Of q, of the same shape.

    Returns:
        A, D and M; NaN without valid pixels.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> logits = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
        >>> agreement(logits, logits)
        Agreement(labels=tensor(1.), divergence=tensor(0.), miou=tensor(1.))
    """
    return _agreement(*_agreement_sums(*_log_probabilities(logits), other, "other"))


def _agreement(divergence: Tensor, confusion: Tensor) -> Agreement:
    pixels, both = confusion.sum(), confusion.diag()
    iou = both / (confusion.sum(dim=0) + confusion.sum(dim=1) - both)  # NaN where neither predicts a class
    return Agreement((both.sum() / pixels).float(), (divergence / pixels).float(), iou.nanmean().float())


def _largest_entropy(num_classes: int) -> float:
    """Returns log K; log 2 for a single class, whose entropy is 0."""
    return math.log(max(num_classes, 2))


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities (B, K, h, w), uniform if not finite, and which are valid, (B, h, w)."""
    check_shape("logits", logits, "B", "K", "h", "w")
    valid = logits.isfinite().all(dim=1)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact.masked_fill(~valid[:, None], 0).log_softmax(dim=1), valid


def _entropy_sums(log_p: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums over the pixels of entropy and probabilities, float64."""
    p = log_p.exp() * valid[:, None]
    return -(p * log_p).sum(dtype=torch.float64), p.sum(dim=(0, 2, 3), dtype=torch.float64)


def _information(distribution: Tensor, mean_entropy: Tensor) -> Tensor:
    entropy = -torch.xlogy(distribution, distribution).sum()
    return ((entropy - mean_entropy) / _largest_entropy(len(distribution))).clamp_min(0)


def _check_density(samples_per_image: int, temperature: float) -> None:
    if samples_per_image < 2:
        raise ValueError(f"samples_per_image must be at least 2, got {samples_per_image}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _density_sums(log_p: Tensor, valid: Tensor, samples: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the sum of the densities of the images, and the number of images that have one, float64."""
    pixels = valid.shape[1] * valid.shape[2]
    log_p, valid = log_p.flatten(2), valid.flatten(1)
    if pixels > samples:
        # The generator is local: neither sampling during training nor the comparison of networks is affected.
        order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
        chosen = order[:samples].to(log_p.device)
        log_p, valid = log_p[:, :, chosen], valid[:, chosen]
    directions = F.normalize(log_p.exp(), dim=1)
    with torch.autocast(directions.device.type, enabled=False):
        similarity = torch.einsum("bki,bkj->bij", directions, directions) / temperature
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    excluded = itself | ~valid[:, None]
    log_q = similarity.masked_fill(excluded, -math.inf).log_softmax(dim=2).masked_fill(excluded, 0)
    entropy = -(log_q.exp() * log_q).sum(dim=2, dtype=torch.float64)
    counts = valid.sum(dim=1)
    density = entropy.masked_fill(~valid, 0).sum(dim=1) / counts.clamp_min(1)
    enough = counts >= 2
    return density.masked_fill(~enough, 0).sum(), enough.sum().double()


def _agreement_sums(log_p: Tensor, valid: Tensor, other: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Returns the sum of the divergences, and the pixels (K, K) by the classes of both, float64."""
    check_shape(f"logits of {name}", other, *log_p.shape)
    num_classes = log_p.shape[1]
    log_q, finite = _log_probabilities(other.to(log_p.device))
    valid = valid & finite
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp_min(0)
    divergence = divergence.masked_fill(~valid, 0).sum(dtype=torch.float64)
    pairs = log_p.argmax(dim=1) * num_classes + log_q.argmax(dim=1)
    counts = class_counts(pairs.masked_fill(~valid, -1), num_classes**2, ignore_index=-1)
    return divergence, counts.reshape(num_classes, num_classes).double()
