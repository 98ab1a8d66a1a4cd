"""Two and three ranks compute what one process computes on the joined batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cpsl.alignment import DistributionAligner
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.limits import ShareLimits
from cpsl.metrics import ConfusionMatrix
from cpsl.prototypes import ClassMeanPrototypes, RunningClassMeans
from cpsl.sampling import class_quotas, sample_across_ranks
from cpsl.sinkhorn import marginal_error, sinkhorn
from cpsl.thresholds import DiceThresholds
from ranks import start_ranks

K, D, SIDE, IMAGES = 4, 6, 5, 6
MARGINAL = torch.tensor([0.6, 0.3, 0.1, 0.0])
OPTIONS = {"prototype_update": "assignments", "sampling": "stratified"}
DELTA = torch.tensor([0.5, 0.3, 0.15, 0.05])


def joined_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, K, generator=generator)
    features = torch.randn(IMAGES, D, SIDE, SIDE, generator=generator)
    labels = torch.randint(K - 1, (IMAGES, SIDE, SIDE), generator=generator)
    labels[:, 0, :2] = 255
    labels[-1, 1, :3] = K - 1  # a class of the last image only
    return scores, features, labels


def share(batch: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return batch[rank * len(batch) // ranks : (rank + 1) * len(batch) // ranks]


def unequal_share(batch: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """Returns a share that grows with the rank: ranks may have different numbers of pixels."""
    unit = len(batch) // (ranks * (ranks + 1) // 2)
    first = unit * rank * (rank + 1) // 2
    return batch[first : first + unit * (rank + 1)]


def cluster(features: torch.Tensor, labels: torch.Tensor, ranks: int, **options: Any) -> dict[str, Any]:
    """Trains prototypes for some steps.

    With δ the class frequencies, and as many samples as valid pixels, each valid pixel is sampled once.
    """
    torch.manual_seed(0)
    whole = joined_batch()[2]
    per_image = int((whole != 255).sum()) // IMAGES
    clustering = ClassBalancedPrototypeClustering(
        K, D, bank_size=2 * IMAGES * per_image, samples_per_image=per_image, **options
    )
    counts = torch.bincount(whole[whole != 255], minlength=K)
    clustering.initialize(torch.randn(K, D), counts)
    trained = clustering.prototypes.requires_grad
    wrapped = DistributedDataParallel(clustering, broadcast_buffers=False) if ranks > 1 and trained else None
    optimizer = torch.optim.SGD([clustering.prototypes], lr=5.0, momentum=0.9)
    steps = []
    for step in range(4):
        shift = (step, step + 1)
        soft = features[:, :K].softmax(dim=1) if options else None
        output = (wrapped or clustering)(
            features.roll(shift, dims=(2, 3)), labels.roll(shift, dims=(1, 2)), soft_labels=soft
        )
        gradient = torch.zeros(K, D)
        if trained:
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


def with_non_finite(features: torch.Tensor, labels: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """Returns loss and gradient of batches with non-finite features, averaged over the ranks.

    As many samples as usable pixels: each is sampled once. Without labels, those are all pixels.
    """
    finite = spoiled(joined_batch()[1]).isfinite().all(dim=1)
    usable = joined_batch()[2].masked_fill(~finite, 255)
    counts = torch.bincount(usable[usable != 255], minlength=K)
    results = []
    for given, samples in ((labels, int(counts.sum()) // IMAGES), (None, SIDE**2)):
        torch.manual_seed(0)
        clustering = ClassBalancedPrototypeClustering(
            K, D, bank_size=IMAGES * samples, samples_per_image=samples
        )
        clustering.initialize(torch.randn(K, D), counts)
        wrapped = DistributedDataParallel(clustering, broadcast_buffers=False) if ranks > 1 else None
        for _ in range(2):
            output = (wrapped or clustering)(features, given)
            clustering.prototypes.grad = None
            output.loss.backward()
            clustering.update(output)
            loss = output.loss.detach().clone()
            if ranks > 1:
                dist.all_reduce(loss)
            results += [loss / ranks, clustering.prototypes.grad, clustering.aligner.distribution.clone()]
    return results


def spoiled(features: torch.Tensor) -> torch.Tensor:
    """Makes most features of the first image and some of the last one non-finite."""
    features = features.clone()
    features[0, 2, 1:] = torch.nan
    features[-1, 0, 1, 0] = torch.inf  # of a class that occurs nowhere else
    features[-1, 0, 2, :3] = -torch.inf
    return features


def samples(labels: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
    """Samples from the joined batch: with all labels, with none on the first rank, and with none at all."""
    results = {}
    for name, known in (
        ("all", labels),
        ("none on rank 0", labels.masked_fill(torch.tensor(first == 0), 255)),
        ("none", torch.full_like(labels, 255)),
    ):
        positions, mine = sample_across_ranks(known.flatten(), DELTA, total=60)
        results[name] = torch.where(mine, positions + first, -1)
    return results


def corrections(features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns thresholds, limits and factors after three steps; all pixels get class 1 in the end."""
    probabilities = features[:, :K].softmax(dim=1)
    thresholds, limits = DiceThresholds(K), ShareLimits(DELTA, start_updates=2, momentum=0.5)
    for known in (labels, labels, torch.where(labels == 255, labels, 1)):
        thresholds.update(probabilities)
        limits.update(probabilities, known)
    return {"thresholds": thresholds.compute(), "limits": limits.limits(), "factors": limits.factors}


def started(features: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Returns the start of a clustering with the means of all classes but the last, and of two without."""
    clusterings = [ClassBalancedPrototypeClustering(K, D, bank_size=IMAGES) for _ in range(3)]
    initialized, other, assigning = clusterings
    means = torch.eye(K, D)
    means[-1] = 0
    initialized.initialize(means, MARGINAL)
    DistributedDataParallel(initialized, broadcast_buffers=False)
    DistributedDataParallel(other, broadcast_buffers=False)(features)
    assigning.assign(features)
    return [clustering.state_dict() for clustering in clusterings]


def error_of(clustering: ClassBalancedPrototypeClustering, features: torch.Tensor) -> str:
    try:
        clustering(features)
    except RuntimeError as error:
        return str(error)
    return ""


def work(rank: int, ranks: int, folder: Path) -> None:
    early = ClassBalancedPrototypeClustering(K, D, bank_size=IMAGES)
    dist.init_process_group("gloo")
    torch.manual_seed(rank)
    scores, features, labels = joined_batch()
    mine = unequal_share(scores, rank, ranks)
    aligner = DistributionAligner(K, momentum=0.5)
    aligner.update(unequal_share(labels, rank, ranks))
    means = ClassMeanPrototypes(K, D, min_pixels=1)
    means.update(unequal_share(features, rank, ranks), unequal_share(features[:, :K], rank, ranks))
    running = RunningClassMeans(K, D)
    running.update(unequal_share(features, rank, ranks), unequal_share(labels, rank, ranks))
    confusion = ConfusionMatrix(K)
    confusion.update(
        unequal_share(labels.roll(1).clamp_max(K - 1), rank, ranks), unequal_share(labels, rank, ranks)
    )
    iou = confusion.compute()
    confusion.reduce()
    corrected = corrections(unequal_share(features, rank, ranks), unequal_share(labels, rank, ranks))
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
        "iou": iou,
        "iou after reduce": confusion.compute(),
        "corrections": corrected,
        "clustered": cluster(features, labels, ranks),
        "with options": cluster(features, labels, ranks, **OPTIONS),
        "non-finite": with_non_finite(share(spoiled(joined_batch()[1]), rank, ranks), labels, ranks),
        "sampled": samples(labels, rank * labels.numel()),
        "started": started(features),
        "early": error_of(early, features),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Returns the results of each of two or three ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(work, request.param, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def joined(results: Results, key: str) -> torch.Tensor:
    return torch.cat([rank[key] for rank in results])


def test_assignments_equal_those_of_the_joined_batch(results: Results) -> None:
    scores, _, _ = joined_batch()
    expected = sinkhorn(scores, MARGINAL)
    torch.testing.assert_close(joined(results, "assignments"), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(joined(results, "huge"), sinkhorn(scores * 1e4), atol=0.05, rtol=0)
    for rank in results:
        torch.testing.assert_close(rank["error"], marginal_error(expected, MARGINAL))


def test_counts_and_means_equal_those_of_the_joined_batch(results: Results) -> None:
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
        for key in ("iou", "iou after reduce"):
            torch.testing.assert_close(rank[key], confusion.iou, atol=0, rtol=0, equal_nan=True)


def test_thresholds_and_limits_equal_those_of_the_joined_batch(results: Results) -> None:
    _, features, labels = joined_batch()
    expected = corrections(features, labels)
    assert expected["factors"][1] < 1
    for rank in results:
        torch.testing.assert_close(rank["corrections"], expected)


@pytest.mark.parametrize(("key", "options"), [("clustered", {}), ("with options", OPTIONS)])
def test_training_equals_that_of_one_process(results: Results, key: str, options: dict[str, str]) -> None:
    _, features, labels = joined_batch()
    alone, ranks = cluster(features, labels, ranks=1, **options), [rank[key] for rank in results]
    assert alone["steps"][0]["loss"] > alone["steps"][-1]["loss"] + 0.01
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


def test_non_finite_features_have_no_influence_on_any_rank(results: Results) -> None:
    _, features, labels = joined_batch()
    alone = with_non_finite(spoiled(features), labels, ranks=1)
    for rank in results:
        for got, wanted in zip(rank["non-finite"], alone, strict=True):
            assert got.isfinite().all()
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def rows(bank: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns features and labels of a bank, sorted."""
    both = torch.cat([bank["features"], bank["labels"][:, None]], dim=1)[bank["valid"]]
    return both[both[:, 0].argsort()]


def test_each_rank_holds_its_share_of_the_bank(results: Results) -> None:
    _, features, labels = joined_batch()
    wanted = cluster(features, labels, ranks=1)["bank"]
    banks = [rank["clustered"]["bank"] for rank in results]
    assert {len(bank["valid"]) for bank in banks} == {len(wanted["valid"]) // len(results)}
    together = {key: torch.cat([bank[key] for bank in banks]) for key in ("features", "labels", "valid")}
    torch.testing.assert_close(rows(together), rows(wanted))
    # Each share contains all classes that have enough pixels.
    for bank in banks:
        assert set(range(K - 1)) <= set(bank["labels"].tolist())


def test_ranks_of_different_seeds_start_alike(results: Results) -> None:
    first, *others = [rank["started"] for rank in results]
    for state in first:
        assert torch.equal(state["prototypes"], state["ema_prototypes"])
    for other in others:
        torch.testing.assert_close(other, first, atol=0, rtol=0)


def test_a_clustering_older_than_its_process_group_is_refused(results: Results) -> None:
    for rank in results:
        assert f"1 rank(s), but its process group has {len(results)}" in rank["early"]


def test_quotas_equal_those_of_the_joined_batch(results: Results) -> None:
    labels = joined_batch()[2].flatten()
    per_rank = len(labels) // len(results)
    for name, known in (("all", labels), ("none on rank 0", labels.clone())):
        if name == "none on rank 0":
            known[:per_rank] = 255
        each = torch.stack([rank["sampled"][name] for rank in results])
        # Each sample belongs to one rank.
        assert ((each >= 0).sum(dim=0) == 1).all()
        sampled = each.amax(dim=0)
        counts = torch.bincount(known[known != 255], minlength=K)
        assert torch.equal(torch.bincount(known[sampled], minlength=K), class_quotas(counts > 0, DELTA, 60))
        for k in range(K):
            # In proportion to the pixels of the ranks, and equally often within a class.
            times = torch.bincount(sampled[known[sampled] == k], minlength=len(known))[known == k]
            assert times.max() - times.min() <= 1
            owner = torch.arange(len(known))[known == k] // per_rank
            per_owner = torch.zeros(len(results)).index_add_(0, owner, times.float())
            pixels = torch.bincount(owner, minlength=len(results))
            assert ((per_owner - pixels / pixels.sum() * times.sum()).abs() < 1).all()
    each = torch.stack([rank["sampled"]["none"] for rank in results])
    sampled = each.amax(dim=0)
    assert len(sampled.unique()) == 60
    assert ((each >= 0).sum(dim=1) == 60 // len(results)).all()


def test_a_class_of_one_rank_gets_its_quota(results: Results) -> None:
    """Quotas per rank would sample the class of the last rank another number of times."""
    labels = joined_batch()[2]
    last = share(labels, len(results) - 1, len(results))
    alone = class_quotas(torch.ones(K, dtype=torch.bool), DELTA, 60 // len(results))
    sampled = torch.stack([rank["sampled"]["all"] for rank in results]).amax(dim=0)
    rare = (labels.flatten()[sampled] == K - 1).sum()
    assert (last == K - 1).sum() == 3
    assert rare == 3
    assert rare != alone[K - 1]
