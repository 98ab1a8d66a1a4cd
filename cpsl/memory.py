"""A memory of pixel features from past iterations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class PixelMemoryBank(nn.Module):
    """Ring buffer of the last pixel features and their labels.

    All shapes are fixed and `valid` says which rows hold a pixel, so that nothing waits for the device to
    learn how full the bank is. A feature that is not finite is stored as an invalid row: it would
    otherwise spoil every assignment until it is overwritten.

    In a distributed run each rank fills a bank of its own. A bank must not be inside a
    DistributedDataParallel module that broadcasts buffers: it would become rank 0's on every rank.

    Args:
        capacity: Number of pixels that are kept.
        feature_dim: Number of channels D of a feature.
        ignore_index: Label of the pixels that are pushed without labels.

    Attributes:
        features: (capacity, D) float32.
        labels: (capacity,) int64.
        valid: (capacity,) bool.
        cursor: () int64, the row that is written next.

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
            raise ValueError(
                f"capacity and feature_dim must be positive, got {capacity} and {feature_dim}"
            )
        self.capacity = capacity
        self.feature_dim = feature_dim
        self.ignore_index = ignore_index
        self.register_buffer("features", torch.zeros(capacity, feature_dim))
        self.register_buffer("labels", torch.full((capacity,), ignore_index))
        self.register_buffer("valid", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Stores pixels over the oldest ones, in O(N).

        Args:
            features: (N, D) floating; of more pixels than the capacity the last are kept.
            labels: (N,) integer, or None where they are unknown.

        Raises:
            ValueError: The shapes do not fit the bank or each other.
        """
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features must be (N, {self.feature_dim}), got shape {tuple(features.shape)}"
            )
        if labels is None:
            labels = self.labels.new_full((features.shape[0],), self.ignore_index)
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels must be ({features.shape[0]},) like the features, "
                f"got shape {tuple(labels.shape)}"
            )
        features, labels = features[-self.capacity :], labels[-self.capacity :]
        finite = features.isfinite().all(dim=1)
        rows = self.next_rows(len(features))
        clean = features.masked_fill(~finite[:, None], 0)
        self.features.index_copy_(0, rows, clean.to(self.features))
        self.labels.index_copy_(0, rows, labels.to(self.labels))
        self.valid.index_copy_(0, rows, finite)
        self.cursor.copy_((self.cursor + len(features)) % self.capacity)

    @torch.no_grad()
    def load_shards(
        self, shards: Sequence[Mapping[str, Tensor]], rank: int = 0, ranks: int = 1
    ) -> None:
        """Takes this rank's share of banks that another number of ranks had.

        Their pixels are dealt out in turn, from the oldest to the newest, and each rank keeps its newest.

        Args:
            shards: State dictionary of each of these banks.
            rank: Rank of this bank.
            ranks: Number of ranks now.

        Raises:
            ValueError: The banks have other features than this one.

        Example:
            >>> halves = [PixelMemoryBank(2, 1), PixelMemoryBank(2, 1)]
            >>> halves[0].push(torch.tensor([[0.0], [2.0]])); halves[1].push(torch.tensor([[1.0], [3.0]]))
            >>> whole = PixelMemoryBank(4, 1)
            >>> whole.load_shards([half.state_dict() for half in halves])
            >>> whole.features.flatten()
            tensor([0., 1., 2., 3.])
        """
        of_age = [
            {
                name: shard[name].roll(-int(shard["cursor"]), dims=0).to(self.cursor.device)
                for name in ("features", "labels", "valid")
            }
            for shard in shards
        ]
        joined = {
            name: torch.stack([shard[name] for shard in of_age], dim=1).flatten(0, 1)
            for name in ("features", "labels", "valid")
        }
        if joined["features"].shape[1:] != (self.feature_dim,):
            raise ValueError(
                f"the banks hold features of {joined['features'].shape[1]} channels, this one has "
                f"{self.feature_dim}"
            )
        known = joined["valid"].nonzero().flatten()[rank::ranks]
        self.valid.fill_(False)
        self.cursor.zero_()
        self.push(joined["features"][known], joined["labels"][known])

    def next_rows(self, count: int, after: int = 0) -> Tensor:
        """Returns the rows that will be written next.

        Args:
            count: Number of rows, at most the capacity.
            after: Pixels that will be pushed before these.

        Returns:
            (count,) int64.
        """
        rows = torch.arange(after, after + count, device=self.cursor.device)
        return (self.cursor + rows) % self.capacity
