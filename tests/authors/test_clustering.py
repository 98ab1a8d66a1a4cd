from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.authors import AuthorsClustering
from cpsl.authors.clustering import crop_labels
from cpsl.sinkhorn import sinkhorn
from ranks import start_ranks

K, D = 5, 8


def build(**options) -> AuthorsClustering:
    options = {"bank_size": 100, "samples_per_image": 20, **options}
    return AuthorsClustering(K, D, **options)


def authors(**options) -> AuthorsClustering:
    """Builds a clustering that follows the authors' code in all points."""
    return build(
        sampling="uniform",
        image_by_image=True,
        dot_product_bank_scores=True,
        logit_assignments=True,
        distribution_momentum=1,
        **options,
    )


def batch(images: int = 2, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features, labels and logits."""
    labels = torch.randint(K, (images, size, size))
    return torch.randn(images, D, size, size), labels, torch.randn(images, K, size, size)


def reference(
    clustering: AuthorsClustering, batches: list[tuple[Tensor, Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Computes loss and assignments image by image, with queues that start with the newest pixels."""
    size, epsilon = clustering.bank.capacity, clustering.epsilon
    delta, raw = clustering.aligner.distribution, clustering.prototypes.detach()
    queues = [torch.zeros(0, D), torch.zeros(0, K)]
    results = []
    for sampled, logits, scores in batches:
        losses, assigned = [], []
        for x, y, s in zip(sampled, logits, scores, strict=True):
            log_p = (s / clustering.temperature).log_softmax(dim=1)
            for queue, new, own in ((0, x, s), (1, y, y)):
                full = len(queues[queue]) == size
                old = queues[queue] @ raw.t() if queue == 0 else queues[queue]
                both = torch.cat([old, own]) if full else own
                q = sinkhorn(both, delta, epsilon=epsilon)[-len(own) :]
                losses.append(-(q * log_p).sum(dim=1).mean())
                queues[queue] = torch.cat([new, queues[queue]])[:size]
                if queue == 0:
                    assigned.append(q)
        results.append((sum(losses) / len(sampled), torch.cat(assigned)))
    return results


@given(bank_size=st.sampled_from([20, 60, 100]), seed=st.integers(0, 10_000))
def test_all_options_together_equal_the_authors_code(bank_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    clustering = authors(bank_size=bank_size)
    with torch.no_grad():
        clustering.prototypes *= torch.rand(K, 1) + 0.5  # training changes their lengths
    clustering.aligner.set(torch.rand(K) + 0.1)
    got, batches = [], []
    for _ in range(4):
        features, labels, logits = batch()
        output = clustering(features, labels, logits=logits)
        clustering.update(output)
        got.append((output.loss, output.assignments))
        assert output.logits is not None
        parts = (output.features, output.logits, output.scores.detach())
        batches.append(tuple(part.reshape(2, 20, -1) for part in parts))
    for (loss, q), (wanted_loss, wanted_q) in zip(got, reference(clustering, batches), strict=True):
        torch.testing.assert_close(q, wanted_q, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(loss.detach(), wanted_loss, atol=1e-5, rtol=1e-4)


def test_image_by_image_uses_the_bank_only_once_it_is_full() -> None:
    torch.manual_seed(0)
    empty, partial = authors(), authors()
    partial.load_state_dict(empty.state_dict())
    partial.bank.push(F.normalize(torch.randn(99, D), dim=1))
    features, _, logits = batch(images=1)

    def assignments(clustering: AuthorsClustering) -> Tensor:
        torch.manual_seed(1)
        return clustering(features, logits=logits).assignments

    assert torch.equal(assignments(partial), assignments(empty))
    partial.bank.push(F.normalize(torch.randn(1, D), dim=1))
    assert not torch.equal(assignments(partial), assignments(empty))


def test_bank_labels_replace_the_labels_of_the_sampled_pixels() -> None:
    clustering = build()
    features, labels, _ = batch()
    other = torch.arange(40).reshape(2, 20) % K
    clustering.update(clustering(features, labels, bank_labels=other))
    assert torch.equal(clustering.bank.labels[:40], other.flatten())


def test_contrast_is_zero_until_the_bank_is_full() -> None:
    torch.manual_seed(0)
    clustering = build(bank_size=40)
    features = torch.randn(2, D, 6, 6, requires_grad=True)
    labels = torch.randint(K, (2, 12, 12))
    assert clustering.contrast(features, labels) == 0
    clustering.bank.push(torch.randn(40, D), torch.randint(K, (40,)))
    torch.manual_seed(1)
    loss = clustering.contrast(features, labels)
    loss.backward()
    assert loss > 0
    sampled = (features.grad != 0).any(dim=1).flatten(1).sum(dim=1)
    assert sampled.tolist() == [20, 20]
    assert clustering.contrast(features, torch.full_like(labels, 255)) == 0
    torch.manual_seed(1)
    top_left = clustering.contrast(features, labels[:, ::2, ::2])
    torch.testing.assert_close(top_left, loss)  # positions of larger labels are rounded down


def test_missing_and_misshapen_inputs_are_named() -> None:
    features, labels, _ = batch()
    with pytest.raises(ValueError, match="argument `logits`"):
        authors()(features, labels)
    with pytest.raises(ValueError, match=r"logits must be \(2, 5, 6, 6\), got shape \(2, 4, 6, 6\)"):
        authors()(features, labels, logits=torch.rand(2, 4, 6, 6))
    with pytest.raises(ValueError, match=r"bank_labels must be \(2, 20\)"):
        build()(features, labels, bank_labels=torch.zeros(2, 6, 6))


def test_the_forward_pass_compiles_to_one_graph() -> None:
    features, labels, logits = batch()
    compiled = torch.compile(authors(), fullgraph=True, backend="eager")
    assert compiled(features, labels, logits=logits).loss.isfinite()


@given(micro_batches=st.integers(1, 3), bank_size=st.integers(1, 150), seed=st.integers(0, 10_000))
def test_a_step_that_is_not_applied_changes_nothing(micro_batches: int, bank_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    clustering, unconditional = authors(bank_size=bank_size), authors(bank_size=bank_size)
    outputs = []
    for _ in range(micro_batches):
        features, labels, logits = batch()
        outputs.append(clustering(features, labels, logits=logits))
    clustering.update(outputs, 0.9)
    unconditional.load_state_dict(clustering.state_dict())
    before = {key: value.clone() for key, value in clustering.state_dict().items()}
    clustering.update(outputs, 0.9, torch.tensor(False))
    assert all(torch.equal(before[key], value) for key, value in clustering.state_dict().items())
    clustering.update(outputs, 0.9, torch.tensor(True))
    unconditional.update(outputs, 0.9)
    for key, value in unconditional.state_dict().items():
        assert torch.equal(value, clustering.state_dict()[key])


def test_no_operation_synchronizes_with_the_device(fake_cuda) -> None:
    clustering = authors()
    features, labels, logits = batch()
    clustering.update(clustering(features, labels, logits=logits), applied=torch.ones(()) > 0)
    assert clustering.contrast(features, labels).shape == ()


@given(height=st.integers(1, 6), width=st.integers(1, 6), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_crop_labels_are_the_first_labels_of_the_resized_crop(
    height: int, width: int, count: int, seed: int
) -> None:
    crop = torch.randint(19, (2, height, width), generator=torch.Generator().manual_seed(seed))
    got = crop_labels(crop, (5, 9), count)
    assert got.dtype == crop.dtype
    for k in range(count):
        y, x = divmod(k % 45, 9)
        assert torch.equal(got[:, k], crop[:, y * height // 5, x * width // 9])


IMAGES, SIDE = 6, 5


def image_by_image(features: Tensor, steps: int = 5) -> list[Tensor]:
    """Clusters until the bank is full; the first pixels of each image are sampled, in order."""
    torch.manual_seed(0)
    clustering = AuthorsClustering(
        K,
        D,
        bank_size=120,
        samples_per_image=10,
        image_by_image=True,
        dot_product_bank_scores=True,
        logit_assignments=True,
    )
    pixels = torch.arange(len(features))[:, None] * SIDE**2 + torch.arange(10)
    clustering._sample = lambda *_: (pixels.flatten(), None)
    results = []
    for step in range(steps):
        shifted = features.roll(step, dims=3)
        output = clustering(shifted, logits=shifted[:, :K])
        clustering.update(output)
        results += [output.assignments, output.loss.detach()[None]]
    return results


def all_features() -> Tensor:
    return torch.randn(IMAGES, D, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def cluster_on_rank(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.save(image_by_image(all_features().chunk(ranks)[rank]), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_compute_what_one_process_computes(ranks: int, tmp_path: Path) -> None:
    start_ranks(cluster_on_rank, ranks, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    wanted = image_by_image(all_features())
    for step in range(0, len(wanted), 2):
        assignments = torch.cat([result[step] for result in results])
        torch.testing.assert_close(assignments, wanted[step], atol=1e-5, rtol=1e-4)
        loss = torch.stack([result[step + 1] for result in results]).mean(dim=0)
        torch.testing.assert_close(loss, wanted[step + 1], atol=1e-5, rtol=1e-4)
