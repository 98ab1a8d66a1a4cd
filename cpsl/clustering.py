"""Online clustering of target pixels around one prototype per class: CPSL's self-labeling."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.averaging import check_momentum, update_moving_average
from cpsl._internal.checking import check_finite, check_shape
from cpsl._internal.distributed import all_reduce_sum, broadcast_from_first, check_ranks, rank_and_size
from cpsl._internal.precision import FullPrecision
from cpsl.alignment import DistributionAligner, class_counts
from cpsl.geometry import resize_labels
from cpsl.memory import PixelMemoryBank
from cpsl.prototypes import finite_pixels, prototype_similarity, soft_class_counts, sum_by_class
from cpsl.sampling import pixels_at, sample_across_ranks, sample_class_proportional, sample_uniform
from cpsl.sinkhorn import class_potentials, marginal_error, only

SMALLEST_SHARE = 1e-6
"""Smallest class frequency of `assign`: a class that was never predicted can still be assigned."""


class ClusteringOutput(NamedTuple):
    """Result of one clustering step; pass it to `update` after the optimizer's step.

    A pixel with a non-finite feature is sampled only if there are no valid ones, or uniformly. Its rows of
    `assignments` and `scores` are zeros, that of `features` is non-finite, and it has no influence.

    Attributes:
        loss: Scalar; its gradient reaches the prototypes only, and exists if they follow it.
        assignments: (B·n, K) Q, rows sum to 1, no gradient.
        scores: (B·n, K) cosine similarity of the sampled pixels to the prototypes, -1...1.
        indices: (B, n) int64 positions b·h·w + y·w + x of the sampled pixels in the flattened batch, or in
            the batches of all ranks, concatenated by rank, if the ranks sample together.
        features: (B·n, D) L2-normalized features of the sampled pixels.
        labels: (B·n,) int64 labels of the sampled pixels, `ignore_index` if unknown.
        class_counts: (K,) number of pixels of each class in this rank's batch: int64, or float64 sums of the
            soft labels.
        marginal_error: Scalar 0...1 on the device, `cpsl.marginal_error` of bank and batch.
    """

    loss: Tensor
    assignments: Tensor
    scores: Tensor
    indices: Tensor
    features: Tensor
    labels: Tensor
    class_counts: Tensor
    marginal_error: Tensor


class ClassBalancedPrototypeClustering(FullPrecision):
    r"""Clusters pixels online around class prototypes, with cluster sizes that follow the class distribution.

    Pixels x are sampled from the teacher's features and assigned to the prototypes C by optimal transport,
    together with the pixels of a memory bank; the assignments Q are the targets that train the prototypes:

        Q = sinkhorn(x·C, marginal δ),   loss = - mean_n Σ_k Q_nk log softmax_k( x_n·c_k / τ )

    (equations 3 to 7 of CPSL). The optimizer updates `prototypes`; `update` then updates the bank, the
    class distribution δ and `ema_prototypes`, the moving average that rectifies the pseudo labels. All of
    them stay float32 in a network that is converted to half precision.

    With `prototype_update="assignments"`, `update` moves the prototypes itself, at the pace of the momentum
    m whatever the optimizer, an online k-means whose clusters follow δ:

        z_n = argmax_k Q_nk,   s_k ← m s_k + (1 - m) Σ_{n: z_n = k} x_n / N,   c_k = s_k / |s_k|

    for the classes k of the batch; the others do not move. Each pixel counts for one class: small shares of
    the many pixels of frequent classes would outweigh the few pixels of a rare one. With "labels", z_n is the
    label of the pixel.

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of feature channels D.
        bank_size: Number of pixels in the memory bank over all ranks; each rank holds an equal share.
        samples_per_image: n pixels sampled per image of a batch.
        temperature: τ of the loss.
        epsilon: ε of the assignment.
        sinkhorn_iterations: Number of column and row scalings of the assignment.
        sampling: "class_proportional" samples in proportion to δ from the batch of all ranks, so that every
            class that is present enters the bank. "stratified" samples in proportion to the classes'
            frequencies in that batch, at least one pixel of each: a rare class that occurs in few images is
            then sampled as often as it occurs. Both need the same number of images on all ranks. "uniform"
            samples n pixels from each image.
        prototype_update: "gradient" trains the prototypes with the loss, as in the paper. With "assignments"
            or "labels" they need no optimizer: they and the loss have no gradient.
        momentum: Momentum of `ema_prototypes`, 0...1.
        distribution_momentum: Momentum of δ, 0...1; 1 keeps δ fixed.
        ignore_index: Label of pixels without a class.
        group: Process group that clusters together; None is the default group. Join it first.
        align_corners: Corner-aligned or half-pixel grid of the features, as in
            `torch.nn.functional.interpolate`; labels of another size are resized to it.

    Attributes:
        prototypes: (K, D) parameter C.
        ema_prototypes: (K, D) buffer C', the moving average of C; the sums s, of the same directions, unless
            the update is "gradient".
        aligner: `DistributionAligner` that holds δ.
        bank: `PixelMemoryBank` of this rank.

    Raises:
        ValueError: An argument is out of range, or `ignore_index` is a class.

    Example:
        >>> clustering = ClassBalancedPrototypeClustering(num_classes=3, feature_dim=8, bank_size=64)
        >>> output = clustering(torch.randn(2, 8, 16, 16), torch.randint(3, (2, 16, 16)))
        >>> output.assignments.shape, output.indices.shape
        (torch.Size([512, 3]), torch.Size([2, 256]))
        >>> output.loss.backward()  # then optimizer.step(), then
        >>> clustering.update(output)
    """

    ema_prototypes: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 256,
        *,
        bank_size: int = 65536,
        samples_per_image: int = 256,
        temperature: float = 0.08,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        sampling: Literal["class_proportional", "stratified", "uniform"] = "class_proportional",
        prototype_update: Literal["gradient", "assignments", "labels"] = "gradient",
        momentum: float = 0.999,
        distribution_momentum: float = 0.99,
        ignore_index: int = 255,
        group: dist.ProcessGroup | None = None,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        positive = {"temperature": temperature, "epsilon": epsilon, "samples_per_image": samples_per_image}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if sampling not in ("class_proportional", "stratified", "uniform"):
            raise ValueError(
                f'sampling must be "class_proportional", "stratified" or "uniform", got {sampling!r}'
            )
        if prototype_update not in ("gradient", "assignments", "labels"):
            raise ValueError(
                f'prototype_update must be "gradient", "assignments" or "labels", got {prototype_update!r}'
            )
        check_momentum(momentum)
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.samples_per_image = samples_per_image
        self.temperature = temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sampling = sampling
        self.prototype_update = prototype_update
        self.momentum = momentum
        self.ignore_index = ignore_index
        self.group = group
        self.align_corners = align_corners
        self.ranks = rank_and_size(group)[1]
        self._alike = self.ranks == 1
        start = F.normalize(torch.randn(num_classes, feature_dim, dtype=torch.float32), dim=1)
        self.prototypes = nn.Parameter(start, requires_grad=prototype_update == "gradient")
        self.register_buffer("ema_prototypes", start.clone())
        self.aligner = DistributionAligner(num_classes, distribution_momentum, None, ignore_index, group)
        self._start_average()
        self.bank = PixelMemoryBank(max(bank_size // self.ranks, 1), feature_dim, ignore_index)

    @torch.no_grad()
    def initialize(self, prototypes: Tensor, class_distribution: Tensor) -> None:
        """Sets prototypes, their moving average and the class distribution.

        Compute the values in a pass over the target before training (`ClassMeanPrototypes`), or call this in
        each of the first iterations with those of `RunningClassMeans`. Classes with a prototype of zeros,
        which no image contains, keep their current one.

        Args:
            prototypes: (K, D), any length, equal on all ranks.
            class_distribution: (K,), normalized to sum 1.

        Raises:
            ValueError: The shapes do not match, or (on the CPU) a prototype or the distribution is invalid.
            RuntimeError: The process group was joined after this clustering was built.
        """
        self._start_alike()
        check_shape("prototypes", prototypes, *self.prototypes.shape)
        check_finite("prototypes", prototypes)
        prototypes = prototypes.to(self.prototypes)
        length = prototypes.norm(dim=1, keepdim=True)
        known = (length > 0) & length.isfinite()
        start = torch.where(known, F.normalize(prototypes, dim=1), self.prototypes)
        self.aligner.set(class_distribution)
        self.prototypes.copy_(start)
        self._start_average()

    def forward(
        self, features: Tensor, labels: Tensor | None = None, *, soft_labels: Tensor | None = None
    ) -> ClusteringOutput:
        """Samples pixels at random, assigns them to the prototypes, computes the loss; changes no state.

        Args:
            features: (B, D, h, w) of the teacher, any length; they get no gradient. Pixels with non-finite
                features are ignored.
            labels: (B, H, W) integer pseudo labels at any resolution, resized by nearest neighbor
                (`resize_labels`). If None, pixels are sampled uniformly and the class distribution does not
                change.
            soft_labels: (B, K, H, W) probabilities at any resolution, from which the class distribution is
                estimated in place of `labels`. Use those before rectification. Their mean contains the
                classes that are seldom the most probable one, which counts of labels underestimate.

        Raises:
            ValueError: The shapes do not match, or (on the CPU) a label is neither a class nor ignored or the
                soft labels are not probabilities.
            RuntimeError: The process group was joined after this clustering was built.
        """
        labels = self._flat_labels(features, labels)
        if soft_labels is None:
            counts = class_counts(labels, self.num_classes, self.ignore_index)
        else:
            counts = soft_class_counts(features, soft_labels, self.num_classes, self.align_corners)
        indices, mine = self._sample(labels, features)
        sampled = self._share(pixels_at(features.detach(), indices), mine)
        finite = sampled.isfinite().all(dim=1)
        # Before the product: 0 · NaN is NaN.
        scores = prototype_similarity(sampled.masked_fill(~finite[:, None], 0), self.prototypes)
        log_p = (scores / self.temperature).log_softmax(dim=1)
        with torch.no_grad():
            bank_scores = prototype_similarity(self.bank.features, self.prototypes)
            assignments, error = self._assign(only(finite, scores), only(self.bank.valid, bank_scores))
        loss = -self._mean((assignments * log_p).sum(dim=1), finite)
        sampled_labels = self._share(labels[indices], mine)
        positions = self._joined_indices(indices, labels, mine)
        return ClusteringOutput(loss, assignments, scores, positions, sampled, sampled_labels, counts, error)

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def update(
        self,
        output: ClusteringOutput | Sequence[ClusteringOutput],
        momentum: float | None = None,
        applied: Tensor | None = None,
    ) -> None:
        """Updates bank, class distribution and moving average; call it once per step, after the optimizer's.

        With `prototype_update="assignments"` it also moves the prototypes.

        Args:
            output: Result of `forward`; with gradient accumulation, the results of all micro-batches.
            momentum: m in C' ← m C' + (1 - m) C or that of s, 0...1; None is that of the constructor.
            applied: Scalar bool on the device, whether the optimizer applied its step; False changes nothing.

        Raises:
            ValueError: momentum is outside 0...1.
        """
        momentum = self.momentum if momentum is None else momentum
        outputs = [output] if isinstance(output, ClusteringOutput) else output
        if self.prototype_update != "gradient":
            self._move_prototypes(outputs, momentum, applied)
        else:
            update_moving_average([self.ema_prototypes], [self.prototypes], momentum, applied)
        for each in outputs:
            self.bank.push(each.features, each.labels, applied)
        counts = torch.stack([each.class_counts for each in outputs]).sum(dim=0)
        self.aligner.update(counts[None].double(), applied=applied)

    @torch.no_grad()
    def assign(self, features: Tensor, iterations: int = 20) -> Tensor:
        """Assigns all pixels of a map such that the class sizes of the memory bank's pixels follow δ.

            Q_nk = softmax_k( x_n·c_k / τ + g_k )

        The potentials g are those of the bank's pixels with ε = τ (`class_potentials`), and extend their
        assignments to any pixel. With an empty bank they are zero.

        Args:
            features: (B, D, h, w) of any length.
            iterations: Number of scalings that determine the potentials.

        Returns:
            (B, K, h, w) float32 assignments, which sum to 1 over the classes.

        Raises:
            ValueError: The shape differs.
        """
        self._start_alike()
        check_shape("features", features, "B", self.feature_dim, "h", "w")
        bank = only(self.bank.valid, prototype_similarity(self.bank.features, self.prototypes))
        marginal = self.aligner.distribution.clamp_min(SMALLEST_SHARE)
        potentials = class_potentials(
            bank, marginal, epsilon=self.temperature, iterations=iterations, group=self.group
        )
        scores = prototype_similarity(features, self.prototypes) / self.temperature
        return (scores + potentials[:, None, None]).softmax(dim=1)

    def load_shards(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        """Loads the state dictionaries of another number of ranks, which each held a share of the bank.

        Raises:
            ValueError: The shapes differ from those of this clustering.
        """
        rank, ranks = rank_and_size(self.group)
        own = self.state_dict()
        for name, bank in self.named_children():
            if isinstance(bank, PixelMemoryBank):
                buffers = bank.state_dict()
                parts = [{key: shard[f"{name}.{key}"] for key in buffers} for shard in shards]
                bank.load_shards(parts, rank, ranks)
        self.load_state_dict({k: own[k] if "bank." in k else v for k, v in shards[0].items()})

    @torch.no_grad()
    def _start_alike(self) -> None:
        """Takes the random start of the first rank, once: ranks may have different seeds."""
        check_ranks(self.ranks, self.group)
        # NCCL has to wait for the first pass, before which the module moves to its device.
        self._alike = self._alike or broadcast_from_first([self.prototypes, self.ema_prototypes], self.group)

    @torch.no_grad()
    def _start_average(self) -> None:
        """Sets the moving average to the prototypes, or to the expected sums of their pixels."""
        self.ema_prototypes.copy_(self.prototypes)
        if self.prototype_update != "gradient":
            self.ema_prototypes.mul_(self.aligner.distribution[:, None].clamp_min(1e-6))

    def _move_prototypes(
        self, outputs: Sequence[ClusteringOutput], momentum: float, applied: Tensor | None
    ) -> None:
        """Moves the prototypes towards the means of the pixels that all ranks assigned to them."""
        features = torch.cat([each.features for each in outputs])
        classes = torch.cat([each.assignments for each in outputs]).argmax(dim=1)
        if self.prototype_update == "labels":
            classes = torch.cat([each.labels for each in outputs])
        # Features of length zero have no direction.
        usable = features.isfinite().all(dim=1) & features.any(dim=1)
        features = features.masked_fill(~usable[:, None], 0)
        classes = classes.masked_fill(~usable, self.ignore_index)
        sums, counts = sum_by_class(features, classes, self.num_classes, self.ignore_index, self.group)
        sums = torch.where(counts[:, None] > 0, sums / counts.sum().clamp_min(1), self.ema_prototypes)
        update_moving_average([self.ema_prototypes], [sums], momentum, applied)
        moved = F.normalize(self.ema_prototypes, dim=1)
        self.prototypes.copy_(moved if applied is None else torch.where(applied, moved, self.prototypes))

    def _flat_labels(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Checks the inputs and returns the labels of the features as (B·h·w,) int64."""
        check_shape("features", features, "B", self.feature_dim, "h", "w")
        batch, _, *grid = features.shape
        if labels is None:
            labels = torch.full((batch, *grid), self.ignore_index, device=features.device)
        check_shape("labels", labels, batch, "H", "W")
        labels = resize_labels(labels, features.shape[2:], self.align_corners).long()
        return labels.masked_fill(~finite_pixels(features), self.ignore_index).flatten()

    def _sample(self, labels: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples n pixels per image, as positions (N,) in the labels of this rank.

        If ranks sample together, N counts the pixels of all ranks, and a mask (N,) marks those of this rank.
        """
        self._start_alike()
        batch, ranks = len(features), self.ranks
        if self.sampling == "uniform":
            indices = sample_uniform(batch, len(labels) // batch, self.samples_per_image, like=labels)
            return indices.flatten(), None
        total, delta = batch * self.samples_per_image, self.aligner.distribution
        if self.sampling == "stratified":
            delta = all_reduce_sum(class_counts(labels, self.num_classes, self.ignore_index), self.group)
        if ranks == 1:
            return sample_class_proportional(labels, delta, total), None
        return sample_across_ranks(labels, delta, ranks * total, self.group)

    def _share(self, values: Tensor, mine: Tensor | None) -> Tensor:
        """Joins the values (N, ...) that each rank has for its own pixels; returns this rank's share."""
        if mine is None:
            return values
        rank, ranks = rank_and_size(self.group)
        others = ~mine if values.ndim == 1 else ~mine[:, None]
        # Pixels are ordered by class: a stride gives each rank some of every class.
        return all_reduce_sum(values.masked_fill(others, 0), self.group)[rank::ranks]

    def _joined_indices(self, indices: Tensor, labels: Tensor, mine: Tensor | None) -> Tensor:
        first = rank_and_size(self.group)[0] * len(labels) if mine is not None else 0
        return self._share(indices + first, mine).reshape(-1, self.samples_per_image)

    def _mean(self, values: Tensor, counted: Tensor) -> Tensor:
        """Averages values (N,) over the pixels of all ranks that are counted; the others must be zero.

        The result is that of one process once it is averaged over the ranks, as gradients are.
        """
        ranks = rank_and_size(self.group)[1]
        return ranks * values.sum() / all_reduce_sum(counted.sum(), self.group).clamp_min(1)

    def _assign(self, scores: Tensor, bank_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Assigns pixels (N, K) together with those of a bank (M, K); also returns the marginal error."""
        together = torch.cat([scores.detach(), bank_scores])
        assignments = self.aligner(together, epsilon=self.epsilon, iterations=self.sinkhorn_iterations)
        error = marginal_error(assignments, self.aligner.distribution, self.group)
        return assignments[: len(scores)], error
