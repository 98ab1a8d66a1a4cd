"""Online clustering of target pixels around one prototype a class: CPSL's self-labeling."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl.alignment import DistributionAligner, class_counts
from cpsl.distributed import all_reduce_max, all_reduce_sum, rank_and_size
from cpsl.losses import pixel_contrast
from cpsl.memory import PixelMemoryBank
from cpsl.prototypes import prototype_similarity
from cpsl.sampling import draw_class_proportional, draw_over_ranks, draw_uniform
from cpsl.sinkhorn import marginal_error


class ClusteringOutput(NamedTuple):
    """What one clustering step computed; hand it to `update` after the optimiser's step.

    Attributes:
        loss: Scalar; its gradient reaches the prototypes only.
        assignments: (B·n, K) Q, rows sum to 1, no gradient.
        scores: (B·n, K) cosines of the drawn pixels and the prototypes, -1...1.
        indices: (B, n) int64 positions of the drawn pixels in the flattened batch, b·h·w + y·w + x; where
            ranks draw together, in the joined batch of all, in order of rank.
        features: (B·n, D) L2-normalised features of the drawn pixels.
        labels: (B·n,) int64 labels of the drawn pixels, `ignore_index` where unknown.
        class_counts: (K,) int64 pixels of each class in all labels of this rank's batch.
        marginal_error: Scalar in 0...1, how far the assignments of bank and batch are from the class
            distribution (total variation); on the device, to be read when logs are written.
        logits: (B·n, K) L2-normalised logits of the drawn pixels with `logit_assignments`, else None.
    """

    loss: Tensor
    assignments: Tensor
    scores: Tensor
    indices: Tensor
    features: Tensor
    labels: Tensor
    class_counts: Tensor
    marginal_error: Tensor
    logits: Tensor | None = None


class ClassBalancedPrototypeClustering(nn.Module):
    r"""Clusters pixels online around class prototypes, with the clusters' sizes at the class distribution.

    Pixels x are drawn from the teacher's features and assigned to the prototypes C by optimal transport,
    together with the pixels of a memory bank; the assignments Q are the targets that move the prototypes:

        Q = sinkhorn(x·C, marginal δ),   loss = - mean_n Σ_k Q_nk log softmax_k( x_n·c_k / τ )

    (equations 3 to 7 of CPSL; the assignment itself is that of Cuturi, 2013.) The optimiser moves
    `prototypes`; `update` afterwards moves the bank, the class distribution δ and `ema_prototypes`, the
    moving average by which pseudo labels are rectified.

    The defaults are the paper's; `sampling`, `assignment`, `bank_scores` and `logit_assignments` restore
    what the authors' release does instead.

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of channels D of a feature.
        bank_size: Pixels in the memory bank over all ranks; each rank holds its share.
        samples_per_image: n pixels drawn for each image of a batch.
        temperature: τ of the loss.
        epsilon: ε of the assignment.
        sinkhorn_iterations: Column and row scalings of the assignment.
        sampling: "class_proportional" draws in proportion to δ over the whole batch, so that every class
            that is present enters the bank; the whole batch is that of all ranks, which must have as many
            images each, and what is drawn is shared out among them. "uniform" draws n pixels of each image.
        distribution_momentum: Momentum of δ, 0...1; 1 keeps δ fixed.
        assignment: "joint" assigns the drawn pixels of all images together with the bank. "image_by_image"
            is the release: one image after the other is assigned together with the bank and then enters
            it, and the bank counts only once it is full. (Several ranks take turns, in order of rank.)
        bank_scores: "cosine" scores the pixels of the bank like those of the batch, "dot_product" by the
            prototypes as they are, whose lengths drift from one: the release.
        logit_assignments: Whether a second loss is added, with assignments of the same pixels by the
            teacher's L2-normalised logits and a bank of its own: the release.
        ignore_index: Label of pixels that belong to no class.
        group: Ranks that cluster together; None is the default group.

    Attributes:
        prototypes: (K, D) parameter C.
        ema_prototypes: (K, D) buffer C', the moving average of C.
        aligner: `DistributionAligner` that holds δ.
        bank: `PixelMemoryBank` of this rank.
        logit_bank: The bank of the second assignment, or None.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> clustering = ClassBalancedPrototypeClustering(num_classes=3, feature_dim=8, bank_size=64)
        >>> output = clustering(torch.randn(2, 8, 16, 16), torch.randint(3, (2, 16, 16)))
        >>> output.assignments.shape, output.indices.shape
        (torch.Size([512, 3]), torch.Size([2, 256]))
        >>> output.loss.backward()  # then the optimiser's step, then
        >>> clustering.update(output, momentum=0.999)
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
        sampling: Literal["class_proportional", "uniform"] = "class_proportional",
        distribution_momentum: float = 0.99,
        assignment: Literal["joint", "image_by_image"] = "joint",
        bank_scores: Literal["cosine", "dot_product"] = "cosine",
        logit_assignments: bool = False,
        ignore_index: int = 255,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("epsilon", epsilon)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if samples_per_image < 1:
            raise ValueError(f"samples_per_image must be positive, got {samples_per_image}")
        for name, word, words in (
            ("sampling", sampling, ("class_proportional", "uniform")),
            ("assignment", assignment, ("joint", "image_by_image")),
            ("bank_scores", bank_scores, ("cosine", "dot_product")),
        ):
            if word not in words:
                raise ValueError(f'{name} must be "{words[0]}" or "{words[1]}", got {word!r}')
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.samples_per_image = samples_per_image
        self.temperature = temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sampling = sampling
        self.assignment = assignment
        self.bank_scores = bank_scores
        self.ignore_index = ignore_index
        self.group = group
        start = F.normalize(torch.randn(num_classes, feature_dim), dim=1)
        self.prototypes = nn.Parameter(start)
        self.register_buffer("ema_prototypes", start.clone())
        self.aligner = DistributionAligner(
            num_classes, distribution_momentum, ignore_index=ignore_index
        )
        capacity = max(bank_size // rank_and_size(group)[1], 1)
        self.bank = PixelMemoryBank(capacity, feature_dim, ignore_index)
        self.logit_bank = (
            PixelMemoryBank(capacity, num_classes, ignore_index) if logit_assignments else None
        )

    @torch.no_grad()
    def initialize(self, prototypes: Tensor, class_distribution: Tensor) -> None:
        """Starts from known prototypes and a known class distribution.

        They come from a pass over the target before training (`ClassMeanPrototypes`), or from the first
        iterations (`RunningClassMeans`): then this is called in each of them. A class whose prototype is all
        zero, since no image had it, keeps the one that it has.

        Args:
            prototypes: (K, D), any length.
            class_distribution: (K,) non-negative, scaled to sum 1.

        Raises:
            ValueError: The shapes do not fit, the distribution has no mass, or (on the CPU) a
                prototype is not finite.
        """
        if prototypes.shape != self.prototypes.shape:
            raise ValueError(
                f"prototypes must be {tuple(self.prototypes.shape)}, got {tuple(prototypes.shape)}"
            )
        if prototypes.device.type == "cpu" and not prototypes.isfinite().all():
            raise ValueError("prototypes must be finite")
        prototypes = prototypes.to(self.prototypes)
        known = prototypes.norm(dim=1, keepdim=True) > 0
        start = torch.where(known, F.normalize(prototypes, dim=1), self.prototypes)
        self.prototypes.copy_(start)
        self.ema_prototypes.copy_(start)
        self.aligner.set(class_distribution)

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        logits: Tensor | None = None,
        bank_labels: Tensor | None = None,
    ) -> ClusteringOutput:
        """Draws pixels, assigns them and measures how well the prototypes predict the assignments.

        Pure but for the random draw: nothing is remembered until `update`.

        Args:
            features: (B, D, h, w) of the teacher, any length; they get no gradient.
            labels: (B, h, w) integer pseudo labels on the same grid, or None; without them pixels are
                drawn uniformly and the class distribution stays.
            logits: (B, K, h, w) of the teacher on the same grid; needed with `logit_assignments`.
            bank_labels: (B, n) integer labels to remember with the drawn pixels instead of their own.

        Returns:
            Loss, assignments and the drawn pixels.

        Raises:
            ValueError: The shapes do not fit, logits are missing, or (on the CPU) a label is neither a class
                nor ignored.
        """
        if features.ndim != 4 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features must be (B, {self.feature_dim}, h, w), got shape {tuple(features.shape)}"
            )
        batch, _, height, width = features.shape
        if labels is None:
            labels = torch.full((batch, height, width), self.ignore_index, device=features.device)
        if labels.shape != (batch, height, width):
            raise ValueError(
                f"labels must be {(batch, height, width)} on the grid of the features, "
                f"got shape {tuple(labels.shape)}"
            )
        if bank_labels is not None and bank_labels.shape != (batch, self.samples_per_image):
            raise ValueError(
                f"bank_labels must be {(batch, self.samples_per_image)}, one for each drawn pixel, "
                f"got shape {tuple(bank_labels.shape)}"
            )
        labels = labels.flatten().long()
        counts = class_counts(labels, self.num_classes, self.ignore_index)
        indices, mine = self._draw(labels, batch, height * width)
        drawn = self._share(_pixels(features.detach(), indices), mine)
        scores = prototype_similarity(drawn, self.prototypes)
        log_p = (scores / self.temperature).log_softmax(dim=1)

        assignments, error = self._assign(
            scores.detach(), self._score_banked(drawn), self._score_bank()
        )
        loss = -(assignments * log_p).sum(dim=1).mean()
        drawn_logits = None
        if self.logit_bank is not None:
            drawn_logits = self._share(self._pixel_logits(logits, features, indices), mine)
            of_bank = _without_empty(self.logit_bank.features, self.logit_bank.valid)
            by_logits, _ = self._assign(drawn_logits, drawn_logits, of_bank)
            loss = loss - (by_logits * log_p).sum(dim=1).mean()
        if bank_labels is None:
            drawn_labels = self._share(labels[indices], mine)
        else:
            drawn_labels = bank_labels.flatten().long()
        if mine is not None:
            indices = self._share(indices + rank_and_size(self.group)[0] * len(labels), mine)
        return ClusteringOutput(
            loss,
            assignments,
            scores,
            indices.reshape(batch, self.samples_per_image),
            drawn,
            drawn_labels,
            counts,
            error,
            drawn_logits,
        )

    @torch.no_grad()
    def update(
        self, output: ClusteringOutput | Sequence[ClusteringOutput], momentum: float = 0.999
    ) -> None:
        """Remembers a step: to be called once, after the optimiser has moved the prototypes.

        Args:
            output: What `forward` returned; of a batch in several parts, what it returned for each.
            momentum: C' ← momentum · C' + (1 - momentum) · C.

        Raises:
            ValueError: momentum lies outside 0...1.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0...1, got {momentum}")
        outputs = [output] if isinstance(output, ClusteringOutput) else output
        for output in outputs:
            self.bank.push(output.features, output.labels)
            if self.logit_bank is not None and output.logits is not None:
                self.logit_bank.push(output.logits, output.labels)
        counts = torch.stack([output.class_counts for output in outputs]).sum(dim=0)
        self.aligner.update(counts[None].double(), group=self.group)
        self.ema_prototypes.lerp_(self.prototypes, 1 - momentum)

    def contrast(self, features: Tensor, labels: Tensor) -> Tensor:
        """Contrasts pixels of a student with the bank; the authors' release adds this with weight 0.001.

        n pixels are drawn uniformly from each image; see `pixel_contrast`. Zero until the bank is full.

        Args:
            features: (B, D, h, w) of the student.
            labels: (B, H, W) integer, at any resolution; the nearest label counts.

        Returns:
            Scalar.

        Raises:
            ValueError: The shapes do not fit.
        """
        batch, _, height, width = features.shape
        indices = draw_uniform(batch, height * width, self.samples_per_image, like=labels).flatten()
        labels = F.interpolate(labels[:, None].float(), (height, width)).long().flatten()
        loss = pixel_contrast(
            _pixels(features, indices),
            labels[indices],
            self.bank.features,
            self.bank.labels,
            self.bank.valid,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )
        return loss * self.bank.valid.all()

    def load_shards(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        """Restores what another number of ranks had: each held its share of the bank, all else is equal.

        Args:
            shards: State dictionary of each of these ranks.

        Raises:
            ValueError: They are of another clustering.
        """
        rank, ranks = rank_and_size(self.group)
        own = self.state_dict()
        for name, bank in (("bank.", self.bank), ("logit_bank.", self.logit_bank)):
            if bank is not None:
                parts = [
                    {key.removeprefix(name): v for key, v in shard.items() if key.startswith(name)}
                    for shard in shards
                ]
                bank.load_shards(parts, rank, ranks)
        equal = {
            key: own[key] if key.startswith(("bank.", "logit_bank.")) else value
            for key, value in shards[0].items()
        }
        self.load_state_dict(equal)

    def _draw(self, labels: Tensor, batch: int, pixels: int) -> tuple[Tensor, Tensor | None]:
        """Draws n pixels for each image.

        Returns:
            (N,) positions in the labels of this rank. Where ranks draw together N counts the pixels of all,
            and (N,) bool says which of them are this rank's; else None.
        """
        if self.sampling == "uniform":
            drawn = draw_uniform(batch, pixels, self.samples_per_image, like=labels)
            return drawn.flatten(), None
        total, ranks = batch * self.samples_per_image, rank_and_size(self.group)[1]
        if ranks == 1:
            return draw_class_proportional(labels, self.aligner.distribution, total), None
        return draw_over_ranks(labels, self.aligner.distribution, ranks * total, self.group)

    def _share(self, values: Tensor, mine: Tensor | None) -> Tensor:
        """Returns this rank's share of what the ranks know of their pixels, (N, ...) of all together."""
        if mine is None:
            return values
        rank, ranks = rank_and_size(self.group)
        others = ~mine if values.ndim == 1 else ~mine[:, None]
        # Every so many-th: the pixels are ordered by class, and each rank is to have some of each.
        return all_reduce_sum(values.masked_fill(others, 0), self.group)[rank::ranks]

    @torch.no_grad()
    def _score_banked(self, features: Tensor) -> Tensor:
        """Scores normalised features as members of the bank."""
        if self.bank_scores == "cosine":
            return prototype_similarity(features, self.prototypes)
        with torch.autocast(features.device.type, enabled=False):
            return features @ self.prototypes.t()

    @torch.no_grad()
    def _score_bank(self) -> Tensor:
        return _without_empty(self._score_banked(self.bank.features), self.bank.valid)

    def _pixel_logits(self, logits: Tensor | None, features: Tensor, indices: Tensor) -> Tensor:
        wanted = (len(features), self.num_classes, *features.shape[2:])
        if logits is None or logits.shape != wanted:
            got = None if logits is None else tuple(logits.shape)
            raise ValueError(f"logit_assignments need logits {wanted}, got {got}")
        return _pixels(logits.detach(), indices)

    @torch.no_grad()
    def _assign(self, scores: Tensor, as_banked: Tensor, banked: Tensor) -> tuple[Tensor, Tensor]:
        """Assigns the pixels of a batch together with those of a bank.

        Args:
            scores: (N, K) of the batch.
            as_banked: (N, K) of the same pixels once they are in the bank.
            banked: (M, K) of the bank, in the order of its rows; -inf where there is no pixel.

        Returns:
            (N, K) assignments of the batch, and the marginal error of bank and batch.
        """
        if self.assignment == "joint":
            return self._transport(scores, banked)
        rank, ranks = rank_and_size(self.group)
        per_image = self.samples_per_image
        images = len(scores) // per_image
        assigned, errors = [], []
        for turn in range(images * ranks):
            first = (turn - rank * images) * per_image
            # On the turn of another rank there is nothing to slice; the bank's share still takes part.
            mine = slice(first, first + per_image) if 0 <= first < len(scores) else slice(0)
            lacks = all_reduce_max(banked[:, 0].isinf().any().float(), self.group) > 0
            solved, error = self._transport(scores[mine], banked.masked_fill(lacks, -torch.inf))
            errors.append(error)
            if mine.stop:
                assigned.append(solved)
                newest = as_banked[mine][-len(banked) :]
                banked = banked.index_copy(0, self.bank.next_rows(len(newest), first), newest)
        return torch.cat(assigned), torch.stack(errors).mean()

    def _transport(self, scores: Tensor, banked: Tensor) -> tuple[Tensor, Tensor]:
        assignments: Tensor = self.aligner(
            torch.cat([scores, banked]),
            epsilon=self.epsilon,
            iterations=self.sinkhorn_iterations,
            group=self.group,
        )
        error = marginal_error(assignments, self.aligner.distribution, self.group)
        return assignments[: len(scores)], error


def _pixels(maps: Tensor, indices: Tensor) -> Tensor:
    """Returns the L2-normalised vectors (N, C) of a map (B, C, h, w) at positions in the flattened batch."""
    pixels = maps.shape[2] * maps.shape[3]
    image, pixel = indices // pixels, indices % pixels
    return F.normalize(maps.flatten(2)[image, :, pixel].float(), dim=1)


def _without_empty(scores: Tensor, valid: Tensor) -> Tensor:
    """Marks the rows of a bank that hold no pixel, as `sinkhorn` understands it."""
    return scores.masked_fill(~valid[:, None], -torch.inf)
