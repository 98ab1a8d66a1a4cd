"""Clustering as in the authors' code, where it differs from the paper."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl._internal.distributed import all_reduce_max, rank_and_size
from cpsl.alignment import class_counts
from cpsl.clustering import ClassBalancedPrototypeClustering, ClusteringOutput
from cpsl.contrast import pixel_contrast
from cpsl.memory import PixelMemoryBank
from cpsl.prototypes import prototype_similarity
from cpsl.sampling import pixels_at, sample_uniform
from cpsl.sinkhorn import only


class AuthorsClusteringOutput(NamedTuple):
    """The fields of `ClusteringOutput`, and the logits of the sampled pixels.

    Attributes:
        labels: (B·n,) int64, those of `bank_labels` if given.
        logits: (B·n, K) L2-normalized logits of the sampled pixels, or None without `logit_assignments`.
    """

    loss: Tensor
    assignments: Tensor
    scores: Tensor
    indices: Tensor
    features: Tensor
    labels: Tensor
    class_counts: Tensor
    marginal_error: Tensor
    logits: Tensor | None


class AuthorsClustering(ClassBalancedPrototypeClustering):
    """`ClassBalancedPrototypeClustering` with optional differences of the authors' code.

    With all options, `sampling="uniform"` and `distribution_momentum=1`, it equals the authors' code.

    Args:
        num_classes: Number of classes K.
        feature_dim: Number of feature channels D.
        image_by_image: Assigns one image after the other, each together with the bank, and adds it to the
            bank before the next; the bank is used only once it is full. Several ranks take turns.
        dot_product_bank_scores: Scores the bank by dot products with the unnormalized prototypes.
        logit_assignments: Adds a second loss whose assignments are computed from the teacher's L2-normalized
            logits and a bank of logits.
        **options: Options of `ClassBalancedPrototypeClustering`.

    Attributes:
        logit_bank: The bank of logits, or None.

    Example:
        >>> clustering = AuthorsClustering(3, 8, bank_size=64, samples_per_image=9, logit_assignments=True)
        >>> features, logits = torch.randn(2, 8, 16, 16), torch.randn(2, 3, 16, 16)
        >>> output = clustering(features, logits.argmax(dim=1), logits=logits)
        >>> output.logits.shape
        torch.Size([18, 3])
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 256,
        *,
        image_by_image: bool = False,
        dot_product_bank_scores: bool = False,
        logit_assignments: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, feature_dim, **options)
        self.image_by_image = image_by_image
        self.dot_product_bank_scores = dot_product_bank_scores
        self.logit_bank: PixelMemoryBank | None = None
        if logit_assignments:
            self.logit_bank = PixelMemoryBank(self.bank.capacity, num_classes, self.ignore_index)

    def forward(  # type: ignore[override]
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        logits: Tensor | None = None,
        bank_labels: Tensor | None = None,
    ) -> AuthorsClusteringOutput:
        """Samples pixels, assigns them, and computes the loss, as the base class does.

        Args:
            features: (B, D, h, w) of the teacher.
            labels: (B, H, W) integer pseudo labels at any resolution, or None.
            logits: (B, K, h, w) of the teacher on the grid of the features; required with
                `logit_assignments`.
            bank_labels: (B, n) integer labels that are stored in the bank instead of those of the sampled
                pixels; see `crop_labels`.

        Raises:
            ValueError: The shapes do not match, logits are missing, or (on the CPU) a label is neither a
                class nor ignored.
        """
        labels = self._flat_labels(features, labels)
        if bank_labels is not None:
            check_shape("bank_labels", bank_labels, len(features), self.samples_per_image)
        counts = class_counts(labels, self.num_classes, self.ignore_index)
        indices, mine = self._sample(labels, features)
        sampled = self._share(pixels_at(features.detach(), indices), mine)
        finite, sampled_logits = sampled.isfinite().all(dim=1), None
        if self.logit_bank is not None:
            if logits is None:
                raise ValueError("logit_assignments need the argument `logits`")
            check_shape("logits", logits, len(features), self.num_classes, *features.shape[2:])
            sampled_logits = self._share(pixels_at(logits.detach(), indices), mine)
            finite = finite & sampled_logits.isfinite().all(dim=1)
        # Before the product: 0 · NaN is NaN.
        known = sampled.masked_fill(~finite[:, None], 0)
        scores = prototype_similarity(known, self.prototypes)
        log_p = (scores / self.temperature).log_softmax(dim=1)
        with torch.no_grad():
            in_bank = only(finite, self._bank_scores(known))
            banked = only(self.bank.valid, self._bank_scores(self.bank.features))
            assignments, error = self._assign_authors(only(finite, scores), in_bank, banked)
        loss = -self._mean((assignments * log_p).sum(dim=1), finite)
        if self.logit_bank is not None and sampled_logits is not None:
            by = only(finite, sampled_logits)
            banked = only(self.logit_bank.valid, self.logit_bank.features)
            by_logits, _ = self._assign_authors(by, by, banked)
            loss = loss - self._mean((by_logits * log_p).sum(dim=1), finite)
        stored = self._share(labels[indices], mine) if bank_labels is None else bank_labels.flatten().long()
        positions = self._joined_indices(indices, labels, mine)
        return AuthorsClusteringOutput(
            loss, assignments, scores, positions, sampled, stored, counts, error, sampled_logits
        )

    if TYPE_CHECKING:
        __call__ = forward  # type: ignore[assignment]

    @torch.no_grad()
    def update(  # type: ignore[override]
        self,
        output: AuthorsClusteringOutput | Sequence[AuthorsClusteringOutput],
        momentum: float | None = None,
        applied: Tensor | None = None,
    ) -> None:
        """Updates both banks, class distribution and moving average; see the base class."""
        outputs = [output] if isinstance(output, AuthorsClusteringOutput) else output
        super().update([ClusteringOutput(*each[:8]) for each in outputs], momentum, applied)
        for each in outputs:
            if self.logit_bank is not None and each.logits is not None:
                self.logit_bank.push(each.logits, each.labels, applied)

    def contrast(self, features: Tensor, labels: Tensor) -> Tensor:
        """Contrasts pixels of the student with the bank; the authors' code adds this loss with weight 0.001.

        n pixels are sampled uniformly from each image; see `pixel_contrast`. Zero until the bank is full.

        Args:
            features: (B, D, h, w) of the student.
            labels: (B, H, W) integer, at any resolution.
        """
        batch, _, height, width = features.shape
        indices = sample_uniform(batch, height * width, self.samples_per_image, like=labels).flatten()
        # "nearest" rounds positions down as in the authors' code; everywhere else it is "nearest-exact".
        resized = F.interpolate(labels[:, None].float(), (height, width), mode="nearest")
        labels = resized.long().flatten()
        loss = pixel_contrast(
            pixels_at(features, indices),
            labels[indices],
            self.bank.features,
            self.bank.labels,
            self.bank.valid,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )
        return loss * self.bank.valid.all()

    def _bank_scores(self, features: Tensor) -> Tensor:
        """Returns the scores of normalized features in the bank."""
        if not self.dot_product_bank_scores:
            return prototype_similarity(features, self.prototypes)
        with torch.autocast(features.device.type, enabled=False):
            return features @ self.prototypes.t()

    @torch.no_grad()
    def _assign_authors(self, scores: Tensor, in_bank: Tensor, banked: Tensor) -> tuple[Tensor, Tensor]:
        """Assigns a batch, jointly or image by image.

        Args:
            scores: (N, K) of the batch.
            in_bank: (N, K) of the same pixels once they are in the bank.
            banked: (M, K) of the bank, in the order of its rows; -inf in rows without a pixel.
        """
        if not self.image_by_image:
            return self._assign(scores, banked)
        rank, ranks = rank_and_size(self.group)
        per_image = self.samples_per_image
        images = len(scores) // per_image
        assigned, errors = [], []
        for turn in range(images * ranks):
            first = (turn - rank * images) * per_image
            # In another rank's turn, this rank assigns no pixels but takes part with its share of the bank.
            mine = slice(first, first + per_image) if 0 <= first < len(scores) else slice(0)
            not_full = all_reduce_max(banked[:, 0].isinf().any().float(), self.group) > 0
            assignments, error = self._assign(scores[mine], banked.masked_fill(not_full, -torch.inf))
            errors.append(error)
            if mine.stop:
                assigned.append(assignments)
                newest = in_bank[mine][-len(banked) :]
                banked = banked.index_copy(0, self.bank.next_rows(len(newest), first), newest)
        return torch.cat(assigned), torch.stack(errors).mean()


def crop_labels(labels: Tensor, size: tuple[int, int], per_image: int) -> Tensor:
    """Returns the labels (B, n) that the authors' code stores in its bank.

    The pixels are sampled from the whole image, but the labels belong to other positions: they are the first
    n labels, row by row, of the crop, resized to the grid of the whole image.

    Args:
        labels: (B, h, w) integer labels of a crop.
        size: (H, W) of the grid of the whole image.
        per_image: n, pixels sampled per image; labels are repeated if the grid has fewer.

    Raises:
        ValueError: The labels have another shape.

    Example:
        >>> crop_labels(torch.tensor([[[3, 7]]]), size=(2, 4), per_image=5)
        tensor([[3, 3, 7, 7, 3]])
    """
    check_shape("labels", labels, "B", "h", "w")
    # "nearest" rounds positions down as in the authors' code; everywhere else it is "nearest-exact".
    stretched = F.interpolate(labels[:, None].float(), size, mode="nearest").flatten(1)
    first = torch.arange(per_image, device=labels.device) % stretched.shape[1]
    return stretched[:, first].to(labels.dtype)
