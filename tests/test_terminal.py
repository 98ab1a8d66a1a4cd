"""Text for a terminal of any width."""

import io
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl._internal.terminal import columns_of, columns_taken, fit, wrap
from cpsl.training import Process, logger, start_logging
from cpsl.training.log import text_table

letters = st.characters(codec="ascii", categories=["L", "N", "P"]) | st.sampled_from("汽车é")
words = st.text(letters, min_size=1, max_size=9)
texts = st.lists(words, max_size=30).map(" ".join)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(texts, st.integers(20, 200))
def test_words_are_kept_whole_and_in_order_in_lines_that_fit(text: str, columns: int) -> None:
    wrapped = wrap(text, columns)
    assert wrapped.split() == text.split()
    assert all(columns_taken(line) <= columns for line in wrapped.split("\n"))


@given(texts, st.integers(20, 200))
def test_indented_lines_and_breaks_stay(text: str, columns: int) -> None:
    command = f"  cpsl adapt {text}"
    assert wrap(f"{text}\n\n{command}\n", columns).endswith(f"\n\n{command}\n")


@given(st.lists(st.tuples(words, st.integers().map(str)), min_size=2))
def test_columns_of_a_table_are_aligned_whatever_the_letters(rows: list[tuple[str, str]]) -> None:
    lines = text_table(rows).splitlines()
    assert len({columns_taken(line) for line in lines}) == 1
    assert [tuple(line.split()) for line in lines] == rows


def test_rows_of_a_table_stay_whole() -> None:
    row = "traffic light  50.4  50.0  +0.4"
    assert wrap(f"one two three four\n{row}", 12) == f"one two\n  three four\n{row}"


def test_only_a_terminal_gets_wrapped_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert fit("a " * 30, io.StringIO()) == "a " * 30
    assert max(map(len, fit("a " * 30, Terminal()).split("\n"))) <= 20


def test_the_width_is_that_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns_of(io.StringIO()) == 80
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream, os.fdopen(ours):
        termios.tcsetwinsize(stream.fileno(), (24, 133))
        assert columns_of(stream) == 133
        termios.tcsetwinsize(stream.fileno(), (0, 0))  # of some build machines
        assert columns_of(stream) == 80
        monkeypatch.setenv("COLUMNS", "61")
        assert columns_of(stream) == 61


def test_messages_are_wrapped_in_the_terminal_and_whole_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    start_logging(tmp_path, Process(torch.device("cpu")))
    logger.info("one " * 20)
    logger.handlers.clear()
    assert max(map(len, terminal.getvalue().splitlines())) <= 40
    assert "one " * 20 in (tmp_path / "log.txt").read_text()
