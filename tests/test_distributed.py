"""Two or three ranks compute what one process computes on the joined batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import start_ranks
from torch.nn.parallel import DistributedDataParallel

from cpsl.alignment import DistributionAligner
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.metrics import ConfusionMatrix
from cpsl.prototypes import ClassMeanPrototypes, RunningClassMeans
from cpsl.sampling import class_quotas, draw_over_ranks
from cpsl.sinkhorn import marginal_error, sinkhorn

K, D, SIDE, IMAGES = 4, 6, 5, 6
MARGINAL = torch.tensor([0.6, 0.3, 0.1, 0.0])
DELTA = torch.tensor([0.5, 0.3, 0.15, 0.05])


def joined_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, K, generator=generator)
    features = torch.randn(IMAGES, D, SIDE, SIDE, generator=generator)
    labels = torch.randint(K - 1, (IMAGES, SIDE, SIDE), generator=generator)
    labels[:, 0, :2] = 255
    labels[-1, 1, :3] = K - 1  # a class that the last image alone has
    return scores, features, labels


def share(batch: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return batch[rank * len(batch) // ranks : (rank + 1) * len(batch) // ranks]


def unequal_share(batch: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """Nothing that sums over pixels may rely on ranks having as many of them as each other."""
    unit = len(batch) // (ranks * (ranks + 1) // 2)
    first = unit * rank * (rank + 1) // 2
    return batch[first : first + unit * (rank + 1)]


def by_turns(features: torch.Tensor, steps: int = 5) -> list[torch.Tensor]:
    """Clusters as the release does, with pixels drawn in the order of the image, until the bank is full."""
    torch.manual_seed(0)
    clustering = ClassBalancedPrototypeClustering(
        K,
        D,
        bank_size=120,
        samples_per_image=10,
        assignment="image_by_image",
        bank_scores="dot_product",
        logit_assignments=True,
    )
    pixels = torch.arange(len(features))[:, None] * SIDE**2 + torch.arange(10)
    clustering._draw = lambda *_: (pixels.flatten(), None)
    results = []
    for step in range(steps):
        now = features.roll(step, dims=3)
        output = clustering(now, logits=now[:, :K])
        clustering.update(output)
        results += [output.assignments, output.loss.detach()[None]]
    return results


def cluster(features: torch.Tensor, labels: torch.Tensor, ranks: int) -> dict[str, Any]:
    """Trains prototypes for some steps with every valid pixel drawn.

    δ is the frequency of the classes and there are as many draws as valid pixels: then each of them is drawn
    once, in whatever order.
    """
    torch.manual_seed(0)
    whole = joined_batch()[2]
    per_image = int((whole != 255).sum()) // IMAGES
    clustering = ClassBalancedPrototypeClustering(
        K, D, bank_size=2 * IMAGES * per_image, samples_per_image=per_image
    )
    counts = torch.bincount(whole[whole != 255], minlength=K)
    clustering.initialize(torch.randn(K, D), counts)
    learned = DistributedDataParallel(clustering, broadcast_buffers=False) if ranks > 1 else None
    optimizer = torch.optim.SGD([clustering.prototypes], lr=5.0, momentum=0.9)
    steps = []
    for step in range(4):
        shift = (step, step + 1)
        output = (learned or clustering)(
            features.roll(shift, dims=(2, 3)), labels.roll(shift, dims=(1, 2))
        )
        optimizer.zero_grad()
        output.loss.backward()
        gradient = clustering.prototypes.grad.clone()
        optimizer.step()
        clustering.update(output, momentum=0.9)
        steps.append(
            {
                "indices": output.indices.flatten(),
                "assignments": output.assignments,
                "labels": output.labels,
                "loss": output.loss.detach(),
                "error": output.marginal_error,
                "gradient": gradient,
            }
        )
    return {
        "steps": steps,
        "prototypes": clustering.prototypes.detach(),
        "ema_prototypes": clustering.ema_prototypes,
        "distribution": clustering.aligner.distribution,
        "bank": clustering.bank.state_dict(),
    }


def draws(labels: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
    """Draws from the joined batch; where one rank sees no class, and where none does."""
    results = {}
    for name, seen in (
        ("all", labels),
        ("unseen", labels.masked_fill(torch.tensor(first == 0), 255)),
        ("nothing", torch.full_like(labels, 255)),
    ):
        positions, mine = draw_over_ranks(seen.flatten(), DELTA, total=60)
        results[name] = torch.where(mine, positions + first, -1)
    return results


def work(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(rank)
    scores, features, labels = joined_batch()
    mine = unequal_share(scores, rank, ranks)
    aligner = DistributionAligner(K, momentum=0.5)
    aligner.update(unequal_share(labels, rank, ranks))
    means = ClassMeanPrototypes(K, D, min_pixels=1)
    means.update(unequal_share(features, rank, ranks), unequal_share(features[:, :K], rank, ranks))
    means.reduce()
    running = RunningClassMeans(K, D)
    running.update(unequal_share(features, rank, ranks), unequal_share(labels, rank, ranks))
    confusion = ConfusionMatrix(K)
    confusion.update(
        unequal_share(labels.roll(1).clamp_max(K - 1), rank, ranks),
        unequal_share(labels, rank, ranks),
    )
    confusion.reduce()
    features, labels = share(features, rank, ranks), share(labels, rank, ranks)
    assignments = sinkhorn(mine, MARGINAL)
    results = {
        "assignments": assignments,
        "error": marginal_error(assignments, MARGINAL),
        "huge": sinkhorn(mine * 1e4),
        "distribution": aligner.distribution,
        "means": means.compute().prototypes,
        "running": running.state_dict(),
        "confusion": confusion.matrix,
        "by_turns": by_turns(features),
        "clustered": cluster(features, labels, ranks),
        "drawn": draws(labels, rank * labels.numel()),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Returns what each of two or three ranks has computed."""
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(work, request.param, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def joined(results: Results, key: str) -> torch.Tensor:
    return torch.cat([rank[key] for rank in results])


def test_assignments_are_those_of_the_joined_batch(results: Results) -> None:
    scores, _, _ = joined_batch()
    expected = sinkhorn(scores, MARGINAL)
    torch.testing.assert_close(joined(results, "assignments"), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(joined(results, "huge"), sinkhorn(scores * 1e4), atol=0.05, rtol=0)
    for rank in results:
        torch.testing.assert_close(rank["error"], marginal_error(expected, MARGINAL))


def test_counts_and_means_are_those_of_the_joined_batch(results: Results) -> None:
    _, features, labels = joined_batch()
    aligner = DistributionAligner(K, momentum=0.5)
    aligner.update(labels)
    means = ClassMeanPrototypes(K, D, min_pixels=1)
    means.update(features, features[:, :K])
    running = RunningClassMeans(K, D)
    running.update(features, labels)
    confusion = ConfusionMatrix(K)
    confusion.update(labels.roll(1).clamp_max(K - 1), labels)
    for rank in results:
        torch.testing.assert_close(rank["running"], dict(running.state_dict()))
        torch.testing.assert_close(rank["distribution"], aligner.distribution)
        torch.testing.assert_close(rank["means"], means.compute().prototypes)
        assert torch.equal(rank["confusion"], confusion.matrix)


def test_images_in_turn_are_assigned_as_by_one_process(results: Results) -> None:
    wanted = by_turns(joined_batch()[1])
    for step in range(0, len(wanted), 2):
        together = torch.cat([rank["by_turns"][step] for rank in results])
        torch.testing.assert_close(together, wanted[step], atol=1e-5, rtol=1e-4)
        loss = torch.stack([rank["by_turns"][step + 1] for rank in results]).mean(dim=0)
        torch.testing.assert_close(loss, wanted[step + 1], atol=1e-5, rtol=1e-4)


def test_clustering_is_trained_as_by_one_process(results: Results) -> None:
    _, features, labels = joined_batch()
    alone, ranks = cluster(features, labels, ranks=1), [rank["clustered"] for rank in results]
    assert alone["steps"][0]["loss"] > alone["steps"][-1]["loss"] + 0.01  # something is learned
    for step, wanted in enumerate(alone["steps"]):
        got = [rank["steps"][step] for rank in ranks]
        order = torch.cat([rank["indices"] for rank in got]).argsort()
        expected = wanted["indices"].argsort()
        for key in ("indices", "assignments", "labels"):
            together = torch.cat([rank[key] for rank in got])[order]
            torch.testing.assert_close(together, wanted[key][expected], atol=1e-5, rtol=1e-4)
        loss = torch.stack([rank["loss"] for rank in got]).mean()
        torch.testing.assert_close(loss, wanted["loss"], atol=1e-5, rtol=1e-5)
        for rank in got:
            torch.testing.assert_close(rank["error"], wanted["error"], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(rank["gradient"], wanted["gradient"], atol=1e-6, rtol=1e-4)
    for rank in ranks:
        for key in ("prototypes", "ema_prototypes", "distribution"):
            torch.testing.assert_close(rank[key], alone[key], atol=1e-5, rtol=1e-5)
            assert torch.equal(rank[key], ranks[0][key])


def rows(bank: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the pixels of a bank, features and label, in an order of their own."""
    both = torch.cat([bank["features"], bank["labels"][:, None]], dim=1)[bank["valid"]]
    return both[both[:, 0].argsort()]


def test_each_rank_holds_its_share_of_the_bank(results: Results) -> None:
    _, features, labels = joined_batch()
    wanted = cluster(features, labels, ranks=1)["bank"]
    banks = [rank["clustered"]["bank"] for rank in results]
    assert {len(bank["valid"]) for bank in banks} == {len(wanted["valid"]) // len(results)}
    together = {
        key: torch.cat([bank[key] for bank in banks]) for key in ("features", "labels", "valid")
    }
    torch.testing.assert_close(rows(together), rows(wanted))
    # Each share has some of each class that there are enough pixels of.
    for bank in banks:
        assert set(range(K - 1)) <= set(bank["labels"].tolist())


def test_quotas_are_those_of_the_joined_batch(results: Results) -> None:
    labels = joined_batch()[2].flatten()
    per_rank = len(labels) // len(results)
    for name, seen in (("all", labels), ("unseen", labels.clone())):
        if name == "unseen":
            seen[:per_rank] = 255
        each = torch.stack([rank["drawn"][name] for rank in results])
        # Each draw is one rank's.
        assert ((each >= 0).sum(dim=0) == 1).all()
        drawn = each.amax(dim=0)
        counts = torch.bincount(seen[seen != 255], minlength=K)
        assert torch.equal(
            torch.bincount(seen[drawn], minlength=K), class_quotas(counts > 0, DELTA, 60)
        )
        for k in range(K):
            # In proportion to what the ranks have, and none twice before each was drawn once.
            times = torch.bincount(drawn[seen[drawn] == k], minlength=len(seen))[seen == k]
            assert times.max() - times.min() <= 1
            owner = torch.arange(len(seen))[seen == k] // per_rank
            given = torch.zeros(len(results)).index_add_(0, owner, times.float())
            have = torch.bincount(owner, minlength=len(results))
            assert ((given - have / have.sum() * times.sum()).abs() < 1).all()
    each = torch.stack([rank["drawn"]["nothing"] for rank in results])
    drawn = each.amax(dim=0)
    assert len(drawn.unique()) == 60
    assert ((each >= 0).sum(dim=1) == 60 // len(results)).all()


def test_a_rare_class_is_drawn_as_often_as_it_should(results: Results) -> None:
    """Quotas over the images of one rank alone would give the last rank's class another number."""
    labels = joined_batch()[2]
    last = share(labels, len(results) - 1, len(results))
    alone = class_quotas(torch.ones(K, dtype=torch.bool), DELTA, 60 // len(results))
    drawn = torch.stack([rank["drawn"]["all"] for rank in results]).amax(dim=0)
    rare = (labels.flatten()[drawn] == K - 1).sum()
    assert (last == K - 1).sum() == 3
    assert rare == 3
    assert rare != alone[K - 1]
