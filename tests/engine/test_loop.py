import os
import signal
from collections.abc import Container, Iterator
from contextlib import suppress
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpsl.engine import Optimization, Process, TrainingLoop, load, logger, read_scalars
from cpsl.engine.loop import MAX_LEFT_OUT
from cpsl.memory import PixelMemoryBank

HERE = Process(torch.device("cpu"))
ITERATIONS = 12


class StoppedError(Exception):
    pass


def train(folder: Path, stop_at: int | None = None, by_signal: bool = False) -> dict[str, Any]:
    """Trains a toy with momentum, dropout and noise; stopped in the middle of an iteration if asked to.

    Returns the state of its weights, optimiser and schedule.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimization = Optimization(torch.optim.SGD(model.parameters(), 0.1, 0.9), ITERATIONS)
    torch.rand(17)  # whatever happened before must not matter
    loop = TrainingLoop(
        folder,
        "toy",
        iterations=ITERATIONS,
        seed=3,
        process=HERE,
        state={"model": model, "optimization": optimization},
        checkpoint_every=3,
        log_every=2,
    )
    for iteration in loop:
        if iteration == stop_at:
            if not by_signal:
                raise StoppedError
            os.kill(os.getpid(), signal.SIGTERM)
        loss = (model(torch.randn(6, 4)) - 1).square().mean()
        optimization.backward(loss)
        optimization.step()
        loop.record(loss=loss)
    return deepcopy({"model": model.state_dict(), "optimization": optimization.state_dict()})


def assert_equal(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(folder), read_scalars(folder)


@settings(max_examples=8)
@given(
    stops=st.lists(st.integers(0, ITERATIONS - 1), min_size=1, max_size=3), by_signal=st.booleans()
)
def test_a_stopped_run_ends_like_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, undisturbed, stops: list[int], by_signal: bool
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    for stop in stops:
        with suppress(StoppedError, SystemExit):
            train(folder, stop, by_signal)
    state, curves = undisturbed
    assert_equal(train(folder), state)
    assert read_scalars(folder) == curves
    assert [row["iteration"] for row in curves] == list(range(2, ITERATIONS + 1, 2))


@pytest.mark.parametrize("stop_at", [4, ITERATIONS - 1])
def test_a_signal_writes_a_checkpoint_before_it_stops(tmp_path: Path, stop_at: int) -> None:
    with pytest.raises(SystemExit) as leave:
        train(tmp_path, stop_at, by_signal=True)
    assert leave.value.code == 75
    assert load(tmp_path / "checkpoint.pt")["iteration"] == stop_at + 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Batch(NamedTuple):
    inputs: torch.Tensor
    names: list[str]


def toy_batches(broken: Container[int], start: int) -> Iterator[Batch]:
    """Yields batches of which those at some places hold a number that is not finite."""
    for number in count(start):
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(6, 4, generator=generator)
        if number in broken:
            inputs[2, 1] = torch.nan
        yield Batch(inputs, [f"image {number}"])


def train_with_broken_batches(
    folder: Path, broken: Container[int], imitate: bool = False, **options: Any
) -> dict[str, Any]:
    """Trains a toy on batches of which some are broken.

    Args:
        imitate: Leave the broken batches out by hand: a step with a gradient of zero and no forward pass.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.01)
    optimization = Optimization(sgd, ITERATIONS, module=model)
    loop = TrainingLoop(
        folder,
        "toy",
        iterations=ITERATIONS,
        seed=3,
        process=HERE,
        state={"student": model, "optimization": optimization},
        checkpoint_every=4,
        log_every=3,
        **options,
    )
    batches = loop.batches(toy_batches(broken, loop.start))
    for iteration in loop:
        batch = next(batches)
        assert batch.names == [f"image {iteration}"]
        if imitate and iteration in broken:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        else:
            loss = (model(batch.inputs) - 1).square().mean()
            optimization.backward(loss)
            loop.record(loss=loss)
        optimization.step()
    state = deepcopy({"model": model.state_dict(), "optimization": optimization.state_dict()})
    state["model"].pop("2.num_batches_tracked")  # counts what is left out, too; nothing reads it
    return state


@pytest.fixture
def told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@settings(max_examples=6)
@given(broken=st.sets(st.integers(0, ITERATIONS - 1), max_size=MAX_LEFT_OUT))
def test_a_broken_batch_leaves_no_trace(
    tmp_path_factory: pytest.TempPathFactory, broken: set[int]
) -> None:
    folders = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("imitated")
    got = train_with_broken_batches(folders[0], broken)
    assert_equal(got, train_with_broken_batches(folders[1], broken, imitate=True))
    assert read_scalars(folders[0]) == read_scalars(folders[1])


def test_it_is_told_what_was_left_out_and_what_made_it(tmp_path: Path, told) -> None:
    train_with_broken_batches(tmp_path, {5})
    assert told.messages == [
        "toy: step 6 was left out: loss is not finite, it began with the input of student.0 (Linear); "
        "images: image 5"
    ]
    told.clear()

    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    # The batch is fine: a module makes the numbers, or a gradient does.
    for make, first in (
        (lambda x: Root()(x - 9), "the output of a module (Root)"),
        (lambda x: Root()(0 * x), "the gradient that reaches student"),
    ):
        layer = nn.Linear(1, 1)
        optimization = Optimization(torch.optim.SGD(layer.parameters(), 0.1), 3, module=layer)
        loop = TrainingLoop(
            tmp_path / first,
            "toy",
            iterations=3,
            seed=0,
            process=HERE,
            state={"student": layer, "optimization": optimization},
        )
        for iteration in loop:
            made = layer(torch.ones(1, 1))
            loss = make(made) if iteration == 1 else made
            optimization.backward(loss.sum())
            optimization.step()
            loop.record(loss=loss.sum())
        assert len(told.messages) == 1
        assert "step 2 was left out" in told.messages[0]
        assert first in told.messages[0]
        assert "images: unknown" in told.messages[0]
        told.clear()


def test_too_many_broken_batches_stop_the_stage(tmp_path: Path, told) -> None:
    for _ in range(2):  # the second time from the checkpoint
        with pytest.raises(
            FloatingPointError, match=r"stopped, since 11 of 100 steps(.|\n)*checkpoint"
        ):
            train_with_broken_batches(tmp_path, range(1, 99))
    state = load(tmp_path / "checkpoint.pt")["state"]["student"]
    assert all(value.isfinite().all() for value in state.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)
    loop = TrainingLoop(
        tmp_path,
        "toy",
        iterations=8,
        seed=0,
        process=HERE,
        state={"student": layer},
        checkpoint_every=2,
    )

    def train() -> None:
        for iteration in loop:
            layer.weight.data /= iteration - 2

    with pytest.raises(FloatingPointError, match="weight of the student is not finite after"):
        train()
    assert load(tmp_path / "checkpoint.pt")["iteration"] == 2


def test_another_number_of_processes_takes_shares_anew(tmp_path: Path) -> None:
    def loop(part: Any, rank: int, ranks: int) -> TrainingLoop:
        return TrainingLoop(
            tmp_path,
            "toy",
            iterations=2,
            seed=0,
            process=Process(torch.device("cpu"), rank, ranks),
            state={},
            state_of_rank={"bank": part},
        )

    class Bank(PixelMemoryBank):
        def load_shards(self, shards: Any, rank: int = 0, ranks: int = 1) -> None:
            super().load_shards(shards, *place)

    bank = Bank(4, 1)
    bank.push(torch.arange(4.0)[:, None])
    place = (0, 1)
    list(loop(bank, 0, 1))
    kept = []
    for rank in range(2):
        half, place = Bank(2, 1), (rank, 2)
        assert loop(half, rank, 2).start == 2
        kept += half.features.flatten().tolist()
    assert sorted(kept) == [0, 1, 2, 3]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    def loop(ranks: int) -> TrainingLoop:
        return TrainingLoop(
            tmp_path,
            "toy",
            iterations=2,
            seed=0,
            process=Process(torch.device("cpu"), world_size=ranks),
            state={},
            state_of_rank={"bank": nn.Linear(1, 1)},
        )

    list(loop(1))
    with pytest.raises(ValueError, match=r"1 process\(es\), this run has 2"):
        loop(2)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, undisturbed) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop_at=8)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="checkpoint before"):
        ended = train(tmp_path)
    assert_equal(ended, undisturbed[0])
