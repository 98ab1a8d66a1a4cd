"""Two ranks compute what one process computes on the joined batch."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from cpsl.alignment import DistributionAligner
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.prototypes import ClassMeanPrototypes, RunningClassMeans
from cpsl.sinkhorn import sinkhorn

RANKS = 2


def joined_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, 4, generator=generator)
    features = torch.randn(2, 6, 5, 5, generator=generator)
    labels = torch.randint(4, (2, 5, 5), generator=generator)
    return scores, features, labels


def by_turns(features: torch.Tensor, steps: int = 5) -> list[torch.Tensor]:
    """Clusters as the release does, with pixels drawn in the order of the image, until the bank is full."""
    torch.manual_seed(0)
    clustering = ClassBalancedPrototypeClustering(
        4,
        6,
        bank_size=40,
        samples_per_image=10,
        assignment="image_by_image",
        bank_scores="dot_product",
        logit_assignments=True,
    )
    pixels = torch.arange(len(features))[:, None] * 25 + torch.arange(10)
    clustering._draw = lambda *_: pixels
    results = []
    for step in range(steps):
        now = features.roll(step, dims=3)
        output = clustering(now, logits=now[:, :4])
        clustering.update(output)
        results += [output.assignments, output.loss.detach()[None]]
    return results


def work(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    scores, features, labels = joined_batch()
    # Unequal shares: nothing may rely on ranks having as many pixels as each other.
    mine = slice(0, 20) if rank == 0 else slice(20, 60)
    marginal = torch.tensor([0.6, 0.3, 0.1, 0.0])
    aligner = DistributionAligner(4, momentum=0.5)
    aligner.update(labels[: 1 + rank])
    means = ClassMeanPrototypes(4, 6, min_pixels=1)
    means.update(
        features[rank : rank + 1], F.one_hot(labels, 4).movedim(-1, 1)[rank : rank + 1].float()
    )
    means.reduce()
    running = RunningClassMeans(4, 6)
    running.update(features[rank : rank + 1], labels[rank : rank + 1])
    clustering = ClassBalancedPrototypeClustering(4, 6, bank_size=40, samples_per_image=10)
    output = clustering(features[rank : rank + 1], labels[rank : rank + 1])
    clustering.update(output)
    torch.save(
        {
            "assignments": sinkhorn(scores[mine], marginal),
            "huge": sinkhorn(scores[mine] * 1e4),
            "distribution": aligner.distribution,
            "means": means.compute().prototypes,
            "running": running.state_dict(),
            "clustering_distribution": clustering.aligner.distribution,
            "bank": clustering.bank.features,
            "drawn": output.features,
            "error": output.marginal_error,
            "by_turns": by_turns(features[rank : rank + 1]),
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_would(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, tmp_path), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]

    scores, features, labels = joined_batch()
    together = torch.cat([rank["assignments"] for rank in ranks])
    expected = sinkhorn(scores, torch.tensor([0.6, 0.3, 0.1, 0.0]))
    torch.testing.assert_close(together, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        torch.cat([rank["huge"] for rank in ranks]), sinkhorn(scores * 1e4), atol=0.05, rtol=0
    )

    aligner = DistributionAligner(4, momentum=0.5)
    aligner.update(torch.cat([labels[:1], labels]))
    for rank in ranks:
        torch.testing.assert_close(rank["distribution"], aligner.distribution)

    means = ClassMeanPrototypes(4, 6, min_pixels=1)
    means.update(features, F.one_hot(labels, 4).movedim(-1, 1).float())
    for rank in ranks:
        torch.testing.assert_close(rank["means"], means.compute().prototypes)

    running = RunningClassMeans(4, 6)
    running.update(features, labels)
    for rank in ranks:
        torch.testing.assert_close(rank["running"], dict(running.state_dict()))

    first, second = ranks
    assert torch.equal(first["clustering_distribution"], second["clustering_distribution"])
    assert torch.equal(first["error"], second["error"])
    # Each rank holds its own share of the bank.
    assert len(first["bank"]) == 20
    for rank in ranks:
        torch.testing.assert_close(rank["bank"][:10], rank["drawn"])

    wanted = by_turns(features)
    for step in range(0, len(wanted), 2):
        together = torch.cat([rank["by_turns"][step] for rank in ranks])
        torch.testing.assert_close(together, wanted[step], atol=1e-5, rtol=1e-4)
        loss = torch.stack([rank["by_turns"][step + 1] for rank in ranks]).mean(dim=0)
        torch.testing.assert_close(loss, wanted[step + 1], atol=1e-5, rtol=1e-4)
