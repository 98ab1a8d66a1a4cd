"""The progress of a stage, in a terminal of any width and in the log."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl._internal.durations import describe_duration
from cpsl.training import Process, TrainingLoop, logger, progress, start_logging
from cpsl.training.display import Position, Progress, State, describe_bar, describe_line

HERE = Process(torch.device("cpu"))
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}

states = st.builds(
    State,
    st.sampled_from(["source_only", "self_label", "online"]),
    st.builds(Position, st.integers(1, 5), st.just(5), st.integers(0, 400_000)),
    done=st.integers(0, 90_000),
    total=st.just(90_000),
    step_seconds=st.none() | st.floats(0.001, 100),
    loss=st.none() | st.floats(0, 99),
    evaluated=st.sampled_from(["", "mIoU 41.4"]),
)


@given(st.floats(0, 1e8))
def test_a_duration_is_right_to_a_twentieth_and_has_at_most_two_units(seconds: float) -> None:
    parts = re.findall(r"(\d+) (s|min|h|d)", describe_duration(seconds))
    assert 1 <= len(parts) <= 2
    described = sum(int(number) * SECONDS[unit] for number, unit in parts)
    assert described == pytest.approx(seconds, rel=0.05, abs=0.5)


@given(states, st.integers(40, 250))
def test_a_bar_fits_the_terminal_and_shows_what_there_is_room_for(state: State, columns: int) -> None:
    before, after = describe_bar(state, columns)
    written = f"{before} || {state.done}/{state.total}, {after}"
    assert len(written) + 5 <= max(columns, 50)
    if columns >= 120:
        assert state.title in before
        for part in ("" if state.loss is None else f"loss {state.loss:.3f}", state.evaluated, state.left):
            assert part in after


@given(states)
def test_the_time_left_is_unknown_until_it_is_measured(state: State) -> None:
    line = describe_line(state)
    assert (" left" in line) == (state.step_seconds is not None)
    assert state.title in line
    known = state.step_seconds is not None and state.position.later_iterations > 0
    assert (f", stage {state.left}, run about " in line) == known
    if state.step_seconds is not None:
        assert f" {describe_duration(state.step_seconds * (state.total - state.done))}" in line
        assert line.endswith(" left")


def lines(folder: Path) -> list[str]:
    return [line for line in (folder / "log.txt").read_text().splitlines() if "stage 1 of" in line]


def test_the_log_has_a_line_for_each_tenth_or_minute(tmp_path: Path) -> None:
    start_logging(tmp_path, HERE)
    with Progress(State("toy", Position(), 0, 1000), HERE) as progress:
        for done in range(1, 1001):
            progress.advance(1.0, "")
            progress.report(6.0 * done, {"loss": 1.0})  # a tenth takes ten minutes
    logger.handlers.clear()
    written = lines(tmp_path)
    assert 30 < len(written) < 150
    assert "1000 of 1000, loss 1.000, 0 s left" in written[-1]
    for tenth in range(1, 11):
        assert any(f"toy, {100 * tenth} of 1000" in line for line in written)


def test_a_fast_stage_does_not_flood_the_log(tmp_path: Path) -> None:
    start_logging(tmp_path, HERE)
    with Progress(State("toy", Position(), 0, 1000), HERE) as progress:
        for done in range(1, 1001):
            progress.advance(0.001, "")
            progress.report(0.02 * done, {"loss": 1.0})
    logger.handlers.clear()
    assert 2 <= len(lines(tmp_path)) <= 5


def test_a_bar_is_in_the_terminal_and_its_lines_in_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    start_logging(tmp_path, HERE)
    with Progress(State("toy", Position(1, 2, 500), 0, 1000), HERE) as progress:
        for done in range(1, 1001):
            progress.advance(1.0, "mIoU 41.4")
            progress.report(6.0 * done, {"loss": 1.0})
            if done == 500:
                logger.info("a message")
    logger.handlers.clear()
    printed = capsys.readouterr()
    assert "stage 1 of" not in printed.out
    assert "a message" in printed.out
    assert "toy" in printed.err
    assert "1000/1000" not in printed.out
    assert lines(tmp_path)
    assert all("mIoU 41.4" in line for line in lines(tmp_path))


def test_a_loop_reports_its_place_and_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpsl.training.display.SHORTEST", 0.0)
    start_logging(tmp_path, HERE)
    position = Position(1, 3, 8)
    folder = tmp_path / "toy"
    loop = TrainingLoop(
        folder, "toy", iterations=4, seed=0, process=HERE, state={}, log_every=1, position=position
    )
    for _ in loop:
        loop.record({"loss": torch.tensor(0.25)})
        loop.evaluated = "mIoU 41.4"
    logger.handlers.clear()
    written = lines(tmp_path)
    assert len(written) == 4
    assert "stage 1 of 3: toy, 1 of 4, loss 0.250, mIoU 41.4" in written[0]
    assert "left" not in written[0]  # the speed of the first iteration is not that of others
    assert "stage 1 of 3: toy, 4 of 4, loss 0.250, mIoU 41.4, stage 0 s, run about 0 s left" in written[-1]


def test_a_bar_of_images_says_the_time_left_like_that_of_a_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    seconds = iter(range(0, 10_000, 60))
    monkeypatch.setattr("cpsl.training.log.time.perf_counter", lambda: next(seconds))
    assert list(progress("abcd", "evaluation", HERE, total=4, mininterval=0)) == list("abcd")
    assert list(progress(iter("abcd"), "frames", HERE)) == list("abcd")
    written = capsys.readouterr().err
    for text in ("1/4, 3 min left", "2/4, 2 min left", "3/4, 1 min left", "4/4, 0 s left"):
        assert text in written
    assert written.count("left") == 4  # the number of frames is unknown
