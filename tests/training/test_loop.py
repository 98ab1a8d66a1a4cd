import logging.handlers
import os
import re
import signal
from collections.abc import Container, Iterator
from contextlib import nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpsl.memory import PixelMemoryBank
from cpsl.training import Optimization, Process, TrainingLoop, load, logger, read_scalars, start_process
from cpsl.training.loop import MAX_SKIPPED, WINDOW
from ranks import start_ranks

HERE = Process(torch.device("cpu"))
ITERATIONS = 12


class StoppedError(Exception):
    pass


def train(
    folder: Path, stop_at: int | None = None, by_signal: bool = False, number: int = signal.SIGTERM
) -> dict[str, Any]:
    """Trains a toy with momentum, dropout and noise; stopped in the middle of an iteration if asked to.

    Returns the state of its weights, optimizer and schedule.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimization = Optimization(torch.optim.SGD(model.parameters(), 0.1, 0.9), ITERATIONS)
    torch.rand(17)  # the random state before the loop does not matter
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
            os.kill(os.getpid(), number)
        loss = (model(torch.randn(6, 4)) - 1).square().mean()
        optimization.backward(loss)
        loop.step(optimization.step())
        loop.record({"loss": loss})
    return deepcopy({"model": model.state_dict(), "optimization": optimization.state_dict()})


def assert_equal(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(folder), read_scalars(folder)


@settings(max_examples=8)
@given(stops=st.lists(st.integers(0, ITERATIONS - 1), min_size=1, max_size=3), by_signal=st.booleans())
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


def test_ctrl_c_has_the_exit_code_of_a_shell(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as leave:
        train(tmp_path, 4, by_signal=True, number=signal.SIGINT)
    assert leave.value.code == 130
    assert load(tmp_path / "checkpoint.pt")["iteration"] == 5


@pytest.mark.parametrize("stop_at", [4, ITERATIONS - 1])
def test_a_signal_writes_a_checkpoint_before_it_stops(tmp_path: Path, stop_at: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leave:
        train(tmp_path, stop_at, by_signal=True)
    assert leave.value.code == 75
    assert load(tmp_path / "checkpoint.pt")["iteration"] == stop_at + 1
    assert signal.getsignal(signal.SIGTERM) == before


def toy_batch(number: int, broken: bool) -> torch.Tensor:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
    if broken:
        inputs[2, 1] = torch.nan
    return inputs


def train_with_broken_batches(
    folder: Path, broken: Container[int], by_hand: bool = False, **options: Any
) -> dict[str, Any]:
    """Trains a toy; in iterations with a broken batch it does nothing, by the loop's means or by hand."""
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
    for iteration in loop:
        if by_hand and iteration in broken:
            for group in sgd.param_groups:
                group["lr"] = 0.1 * (1 - (iteration + 1) / ITERATIONS) ** 0.9
            optimization._schedules[0].last_epoch += 1
            continue
        loss = (model(toy_batch(iteration, iteration in broken)) - 1).square().mean()
        optimization.backward(loss)
        loop.record({"loss": loss})
        loop.step(optimization.step(), [f"image {iteration}"])
    return deepcopy({"model": model.state_dict(), "optimizer": sgd.state_dict()["state"]})


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logger, "propagate", False)
    caplog.handler.setLevel("WARNING")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@settings(max_examples=6)
@given(broken=st.sets(st.integers(0, ITERATIONS - 1), max_size=MAX_SKIPPED))
def test_a_run_ends_as_if_it_did_nothing_in_broken_iterations(
    tmp_path_factory: pytest.TempPathFactory, broken: set[int]
) -> None:
    folders = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("by_hand")
    got = train_with_broken_batches(folders[0], broken)
    wanted = train_with_broken_batches(folders[1], broken, by_hand=True)
    torch.testing.assert_close(got, wanted)  # the rates by hand are rounded otherwise
    for mine, theirs in zip(*map(read_scalars, folders), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("trace", [False, True])
def test_a_skipped_step_is_reported_with_its_images(
    tmp_path: Path, log: pytest.LogCaptureFixture, trace: bool
) -> None:
    train_with_broken_batches(tmp_path, {5}, trace_non_finite=trace)
    assert len(log.messages) == 1
    assert re.search(r"toy: step 6 .* loss .*image 5", log.messages[0])
    assert ("student.0 (Linear)" in log.messages[0]) == trace


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


@pytest.mark.parametrize(
    ("inputs", "first"),
    [
        (-9.0, "the output of student.1 (Root)"),
        (0.0, "the gradient of the output of student.0 (Linear)"),  # of √0
    ],
)
def test_tracing_names_the_first_module(
    tmp_path: Path, log: pytest.LogCaptureFixture, inputs: float, first: str
) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), Root())
    nn.init.ones_(model[0].weight)
    optimization = Optimization(torch.optim.SGD(model.parameters(), 0.0), 3, module=model)
    loop = TrainingLoop(
        tmp_path,
        "toy",
        iterations=3,
        seed=0,
        process=HERE,
        state={"student": model, "optimization": optimization},
        trace_non_finite=True,
    )
    for iteration in loop:
        loss = model(torch.full((1, 1), inputs if iteration == 1 else 4.0)).sum()
        optimization.backward(loss)
        loop.record({"loss": loss})
        loop.step(optimization.step())
    assert len(log.messages) == 1
    assert "step 2" in log.messages[0]
    assert first in log.messages[0]
    assert "unknown" in log.messages[0]


def test_without_tracing_no_module_is_observed(tmp_path: Path) -> None:
    def hooks(trace: bool) -> list[int]:
        loop = TrainingLoop(
            tmp_path / str(trace), "toy", iterations=2, seed=0, process=HERE, state={}, trace_non_finite=trace
        )
        return [len(nn.modules.module._global_forward_hooks) for _ in loop]

    assert hooks(False) == [0, 0]
    assert hooks(True) == [1, 1]
    assert not nn.modules.module._global_forward_hooks


def steps(folder: Path, flags: list[str], **options: Any) -> None:
    """Runs a loop whose steps are applied, skipped, or overflow."""
    weight = nn.Linear(1, 1)
    loop = TrainingLoop(
        folder, "toy", iterations=len(flags), seed=0, process=HERE, state={"student": weight}, **options
    )
    for iteration in loop:
        loop.record({"loss": torch.ones(())})
        applied, overflowed = (
            torch.tensor(flags[iteration] == wanted) for wanted in ("applied", "overflowed")
        )
        loop.step(applied, ["image"], overflowed)


def on_ranks(rank: int, ranks: int, folder: Path) -> None:
    handler = logging.handlers.BufferingHandler(100)
    logger.addHandler(handler)
    with start_process("cpu") as process:
        layer = nn.Linear(1, 1)
        optimization = Optimization(torch.optim.SGD(layer.parameters(), 0.1), 3)
        loop = TrainingLoop(folder, "toy", iterations=3, seed=0, process=process, state={"student": layer})
        learner = process.parallel(layer)
        for iteration in loop:
            loss = learner(torch.ones(1, 1)).sum()
            if iteration == 1 and rank == 1:
                loss = loss * torch.nan
            optimization.backward(loss)
            loop.record({"loss": loss})
            loop.step(optimization.step(), [f"image of rank {rank}"])
    messages = [record.getMessage() for record in handler.buffer]
    torch.save({"messages": messages, **layer.state_dict()}, folder / f"{rank}.pt")


def stop_and_resume(rank: int, ranks: int, folder: Path) -> None:
    """Stops two ranks after three iterations, or resumes; each value tells its iteration and rank."""
    with start_process("cpu") as process, suppress(StoppedError):
        resumed = (folder / "checkpoint.pt").exists()
        loop = TrainingLoop(
            folder, "toy", iterations=4, seed=0, process=process, state={}, checkpoint_every=3, log_every=4
        )
        for iteration in loop:
            if iteration == 3 and not resumed:
                raise StoppedError
            loop.record({"value": torch.tensor(10.0 * rank + iteration)})


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_values_of_all_ranks_are_averaged_after_a_restart(tmp_path: Path, ranks: int) -> None:
    start_ranks(stop_and_resume, 2, tmp_path)
    start_ranks(stop_and_resume, ranks, tmp_path)
    values = [10 * rank + iteration for rank in range(2) for iteration in range(3)]
    values += [10 * rank + 3 for rank in range(ranks)]
    [row] = read_scalars(tmp_path)
    assert row["value"] == pytest.approx(sum(values) / len(values))


def test_a_skipped_step_names_the_images_of_the_rank_with_the_bad_loss(tmp_path: Path) -> None:
    start_ranks(on_ranks, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["messages"] == second["messages"]
    assert_equal(first["weight"], second["weight"])
    assert first["weight"].isfinite()
    (message,) = first["messages"]
    assert "step 2" in message
    assert "image of rank 1" in message
    assert "image of rank 0" not in message


def test_overflows_of_float16_are_counted_apart(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    steps(tmp_path, ["overflowed"] * 16 + ["applied"] * 4, log_every=10)
    assert log.messages == []
    assert [row["overflowed"] for row in read_scalars(tmp_path)] == pytest.approx([1.0, 0.6])


@settings(max_examples=10)
@given(st.integers(1, 30), st.sampled_from([1, 7, 1000]))
def test_more_than_ten_skipped_steps_of_a_hundred_stop_the_stage(
    tmp_path_factory: pytest.TempPathFactory, apart: int, checkpoint_every: int
) -> None:
    """One of `apart` steps is skipped."""
    flags = ["skipped" if step % apart == 0 else "applied" for step in range(30 * apart)]
    folder = tmp_path_factory.mktemp("skipped")
    if WINDOW / apart > MAX_SKIPPED:
        with pytest.raises(FloatingPointError, match=rf"toy: step {10 * apart + 1} .*image"):
            steps(folder, flags, checkpoint_every=checkpoint_every)
    else:
        steps(folder, flags, checkpoint_every=checkpoint_every)


def test_skipped_steps_are_counted_across_a_restart(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # the second time from the checkpoint
        with pytest.raises(FloatingPointError, match=r"toy: step 12 .*image 11"):
            train_with_broken_batches(tmp_path, range(1, 99))
    assert len(log.messages) == 11 + 4
    state = load(tmp_path / "checkpoint.pt")["state"]["student"]
    assert all(value.isfinite().all() for value in state.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)
    loop = TrainingLoop(
        tmp_path, "toy", iterations=8, seed=0, process=HERE, state={"student": layer}, checkpoint_every=2
    )

    def train() -> None:
        for iteration in loop:
            layer.weight.data /= iteration - 2

    with pytest.raises(FloatingPointError, match="toy: weight of the student"):
        train()
    assert load(tmp_path / "checkpoint.pt")["iteration"] == 2


@pytest.mark.parametrize(("value", "saved"), [(torch.inf, True), (torch.nan, False)])
def test_a_buffer_may_be_infinite_but_not_undefined(tmp_path: Path, value: float, saved: bool) -> None:
    """Masks of attention are infinite."""
    layer = nn.Linear(1, 1)
    layer.register_buffer("mask", torch.tensor([0.0, value]))
    loop = TrainingLoop(tmp_path, "toy", iterations=1, seed=0, process=HERE, state={"student": layer})
    with nullcontext() if saved else pytest.raises(FloatingPointError, match="mask of the student"):
        list(loop)
    assert (tmp_path / "checkpoint.pt").exists() == saved


def test_processes_that_read_different_checkpoints_are_stopped(tmp_path: Path) -> None:
    class Differing(Process):
        def gather(self, value: Any) -> list[Any]:
            return [value, 5]

    process = Differing(torch.device("cpu"), world_size=2)
    with pytest.raises(RuntimeError, match=r"toy.*0, 5"):
        TrainingLoop(tmp_path, "toy", iterations=9, seed=0, process=process, state={})


class Equal(Process):
    """One of several processes that are not started, and would all do the same."""

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world_size


def test_another_number_of_processes_divides_the_bank(tmp_path: Path) -> None:
    def loop(part: Any, rank: int, ranks: int) -> TrainingLoop:
        return TrainingLoop(
            tmp_path,
            "toy",
            iterations=2,
            seed=0,
            process=Equal(torch.device("cpu"), rank, ranks),
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
            process=Equal(torch.device("cpu"), world_size=ranks),
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
