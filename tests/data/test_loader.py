"""Loaders of training batches depend on the seed and the number of the batch alone."""

import multiprocessing
import signal
import subprocess
from itertools import islice
from pathlib import Path

import pytest
import torch

from cpsl.data import (
    GTA5,
    Cityscapes,
    SoftLabelStore,
    SourceViews,
    WeakView,
    domain_loaders,
    training_loader,
    write_streets,
)
from cpsl.data import loader as loader_module

VIEW = WeakView.of_size((64, 128))


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[GTA5, Cityscapes]:
    folder: Path = tmp_path_factory.mktemp("streets")
    write_streets(folder / "game", layout="gta5", style="game", count=4, size=(64, 128))
    write_streets(folder / "real", layout="cityscapes", style="real", count=4, size=(64, 128))
    return GTA5(folder / "game"), Cityscapes(folder / "real")


def test_a_loader_resumes_at_any_batch(domains: tuple[GTA5, Cityscapes]) -> None:
    views = SourceViews(domains[0], VIEW)
    all_batches = list(islice(training_loader(views, 2, seed=3), 3))
    resumed = next(iter(training_loader(views, 2, seed=3, start=2)))
    assert resumed.names == all_batches[2].names
    assert torch.equal(resumed.image, all_batches[2].image)
    other = next(iter(training_loader(views, 2, seed=4)))
    assert not torch.equal(other.image, all_batches[0].image)


def test_a_loader_does_not_change_the_global_random_state(domains: tuple[GTA5, Cityscapes]) -> None:
    state = torch.get_rng_state()
    next(iter(training_loader(SourceViews(domains[0], VIEW), 2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_ranks_share_a_batch(domains: tuple[GTA5, Cityscapes], monkeypatch: pytest.MonkeyPatch) -> None:
    views = SourceViews(domains[0], VIEW)
    alone = next(iter(training_loader(views, 4))).names
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(loader_module, "rank_and_size", lambda rank=rank: (rank, 2))
        shares += next(iter(training_loader(views, 2))).names
    assert shares == alone


def test_domain_loaders_read_pseudo_labels_and_take_the_targets_colors(
    domains: tuple[GTA5, Cityscapes], tmp_path: Path
) -> None:
    source, target = domains
    store = SoftLabelStore(tmp_path)
    for name in target.names:
        store.write(name, torch.full((2, 8, 16), 0.5))
    sources, targets = domain_loaders(source, target, VIEW, 2, pseudo_labels=store.read)
    labeled, unlabeled = next(iter(sources)), next(iter(targets))
    assert unlabeled.pseudo_labels.shape == (2, 2, 8, 16)
    assert unlabeled.strong.shape == unlabeled.weak.shape == labeled.image.shape
    own = next(iter(training_loader(SourceViews(source, VIEW), 2, seed=sources.batch_sampler.seed)))
    assert labeled.names == own.names
    assert torch.equal(labeled.label, own.label)
    assert not torch.equal(labeled.image, own.image)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no sender of a signal is known")
def test_processes_that_load_outlive_signals_of_others_and_end_with_their_own(
    domains: tuple[GTA5, Cityscapes],
) -> None:
    views = SourceViews(domains[0], WeakView.of_size((64, 128)))
    batches = iter(training_loader(views, 1, num_workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in ("INT", "HUP", "TERM", "TERM"):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    for _ in range(8):  # more than are loaded ahead
        next(batches)
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == 0
