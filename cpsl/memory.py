"""A memory bank of pixel features from past iterations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl._internal.precision import FullPrecision


class PixelMemoryBank(FullPrecision):
    """Ring buffer of the last pixel features and their labels.

    All shapes are fixed, and `valid` marks the rows that hold a pixel: the host never reads how full the
    bank is. Non-finite features are stored as invalid rows, since one of them would spoil all assignments.

    Each rank fills its own bank. DistributedDataParallel must have `broadcast_buffers=False`; otherwise
    all banks become rank 0's.

    Args:
        capacity: Number of pixels.
        feature_dim: Number of channels D of a feature.
        ignore_index: Label of pixels that are pushed without labels.

    Attributes:
        features: (capacity, D) float32, also in a network of half precision.
        labels: (capacity,) int64.
        valid: (capacity,) bool.
        cursor: () int64, row that is written next.

    Raises:
        ValueError: capacity or feature_dim is not positive.

    Example:
        >>> bank = PixelMemoryBank(capacity=3, feature_dim=2)
        >>> bank.push(torch.eye(2), torch.tensor([7, 8]))
        >>> bank.valid
        tensor([ True,  True, False])
        >>> bank.push(torch.ones(2, 2), torch.tensor([9, 10]))
        >>> bank.labels
        tensor([10,  8,  9])
    """

    features: Tensor
    labels: Tensor
    valid: Tensor
    cursor: Tensor

    def __init__(self, capacity: int, feature_dim: int, ignore_index: int = 255) -> None:
        super().__init__()
        if capacity < 1 or feature_dim < 1:
            raise ValueError(f"capacity and feature_dim must be positive, got {capacity} and {feature_dim}")
        self.capacity = capacity
        self.feature_dim = feature_dim
        self.ignore_index = ignore_index
        self.register_buffer("features", torch.zeros(capacity, feature_dim, dtype=torch.float32))
        self.register_buffer("labels", torch.full((capacity,), ignore_index))
        self.register_buffer("valid", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor | None = None, applied: Tensor | None = None) -> None:
        """Overwrites the oldest pixels with new ones, in O(N).

        Args:
            features: (N, D) floating. If N exceeds the capacity, the last pixels are kept.
            labels: (N,) integer, or None if unknown.
            applied: Scalar bool on the device; False changes nothing.

        Raises:
            ValueError: The shapes match neither the bank nor each other.
        """
        check_shape("features", features, "N", self.feature_dim)
        if labels is None:
            labels = self.labels.new_full((len(features),), self.ignore_index)
        check_shape("labels", labels, len(features))
        features, labels = features[-self.capacity :].to(self.features), labels[-self.capacity :]
        finite = features.isfinite().all(dim=1)
        rows = self.next_rows(len(features))
        new = features.masked_fill(~finite[:, None], 0), labels, finite
        for buffer, values in zip((self.features, self.labels, self.valid), new, strict=True):
            values = values.to(buffer)
            if applied is not None:
                values = torch.where(applied, values, buffer[rows])
            buffer.index_copy_(0, rows, values)
        count = len(features) if applied is None else len(features) * applied
        self.cursor.copy_((self.cursor + count) % self.capacity)

    @torch.no_grad()
    def load_shards(self, shards: Sequence[Mapping[str, Tensor]], rank: int = 0, ranks: int = 1) -> None:
        """Loads this rank's share of the banks of another number of ranks, from their state dictionaries.

        The pixels are distributed round-robin from the oldest to the newest; each rank keeps its newest.

        Raises:
            ValueError: The number of feature channels differs.

        Example:
            >>> halves = [PixelMemoryBank(2, 1), PixelMemoryBank(2, 1)]
            >>> halves[0].push(torch.tensor([[0.0], [2.0]])); halves[1].push(torch.tensor([[1.0], [3.0]]))
            >>> whole = PixelMemoryBank(4, 1)
            >>> whole.load_shards([half.state_dict() for half in halves])
            >>> whole.features.flatten()
            tensor([0., 1., 2., 3.])
        """
        names = ("features", "labels", "valid")
        by_age = [
            [shard[name].roll(-int(shard["cursor"]), dims=0).to(self.cursor.device) for name in names]
            for shard in shards
        ]
        joined = [torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*by_age, strict=True)]
        features, labels, valid = joined
        check_shape("features of the other banks", features, "N", self.feature_dim)
        share = valid.nonzero().flatten()[rank::ranks]
        self.valid.fill_(False)
        self.cursor.zero_()
        self.push(features[share], labels[share])

    def next_rows(self, count: int, after: int = 0) -> Tensor:
        """Returns the `count` rows (at most the capacity) that are written after `after` other pixels."""
        rows = torch.arange(after, after + count, device=self.cursor.device)
        return (self.cursor + rows) % self.capacity
