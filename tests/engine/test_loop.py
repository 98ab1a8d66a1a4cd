import os
import signal
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpsl.engine import Optimization, Process, TrainingLoop, load, read_scalars

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


def test_a_signal_writes_a_checkpoint_before_it_stops(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as leave:
        train(tmp_path, stop_at=4, by_signal=True)
    assert leave.value.code == 75
    assert load(tmp_path / "checkpoint.pt")["iteration"] == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("log_every", [4, 100])
def test_numbers_that_are_not_finite_stop_the_stage(tmp_path: Path, log_every: int) -> None:
    def divide_by_zero_once() -> None:
        loop = TrainingLoop(
            tmp_path,
            "toy",
            iterations=8,
            seed=0,
            process=HERE,
            state={},
            checkpoint_every=2,
            log_every=log_every,
        )
        for iteration in loop:
            loop.record(fine=torch.tensor(1.0), broken=torch.tensor(0.0) / (iteration - 2))

    for _ in range(2):  # the second time from the checkpoint
        with pytest.raises(FloatingPointError, match="toy: broken not finite"):
            divide_by_zero_once()
        # What is broken is neither logged nor saved.
        assert load(tmp_path / "checkpoint.pt")["iteration"] == 2
    assert read_scalars(tmp_path) == []


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
