"""Ctrl-C in a terminal, at different moments: no traceback, and what is kept is said."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.tiny import COMMAND, ENVIRONMENT, SETTINGS, streets, write_settings
from cpsl._internal.interrupts import is_command
from cpsl._internal.loading import TEXT
from cpsl.app.usage import after_stop

termios = pytest.importorskip("termios")  # terminals of POSIX

CTRL_C = b"\x03"


def interrupt(
    words: list[object], moment: str, *python: str, columns: int = 80, press: bytes = CTRL_C
) -> tuple[int, str]:
    """Runs the command in a terminal of its own, and presses Ctrl-C once a pattern has appeared.

    Returns the exit code and what was printed, all of it.
    """
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (40, columns))
    process = subprocess.Popen(
        [sys.executable, *python, "-m", "cpsl", *map(str, words)],
        env=ENVIRONMENT,
        preexec_fn=lambda: os.login_tty(end),
    )
    os.close(end)
    printed, pressed, begun = b"", False, time.monotonic()
    while time.monotonic() < begun + 300:
        try:
            printed += os.read(terminal, 4096)
        except OSError:  # the process has ended
            break
        if not pressed and re.search(moment.encode(), printed):
            os.write(terminal, press)
            pressed = True
    os.close(terminal)
    assert pressed, printed.decode()[-2000:]
    return process.wait(timeout=60), printed.decode()


@pytest.mark.parametrize("module", ["numpy", "torch.nn", "pydantic"])
def test_ctrl_c_during_imports_has_no_traceback(module: str) -> None:
    code, printed = interrupt(["demo", "--help"], rf"\| +{re.escape(module)}\b", "-X", "importtime")
    assert code == 130
    assert "Traceback" not in printed
    assert "Interrupted while starting" in printed


@pytest.mark.parametrize("option", ["--help", "--no-such-option"])
def test_a_terminal_shows_that_torch_is_loaded_and_erases_it(option: str) -> None:
    _, printed = interrupt(["demo", option], TEXT, press=b"")
    shown, erased, rest = printed.partition(f"\r{' ' * len(TEXT)}\r")
    assert shown == TEXT
    assert erased
    assert TEXT not in rest
    assert "cpsl demo" in rest


def test_ctrl_c_during_training_keeps_a_checkpoint_and_names_the_command(tmp_path: Path) -> None:
    config = write_settings(tmp_path, streets(tmp_path), SETTINGS.replace("paper", "online"))
    options = ["--config", config, "--output", tmp_path / "run", "--source-only.iterations", 5000]
    code, printed = interrupt(["adapt", *options], r", run .* left", columns=120)
    assert code == 130
    assert "Traceback" not in printed
    assert "stage 1 of 2: source_only |" in printed  # the bar
    assert "Stopping after this iteration" in printed
    assert (tmp_path / "run" / "source_only" / "checkpoint.pt").exists()
    assert "Finished stages and the last checkpoint are kept" in printed
    command = " ".join(map(str, ("-m cpsl adapt", *options)))
    assert command in printed.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)]
)
def test_a_signal_to_all_processes_of_a_run_keeps_a_checkpoint(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    # `timeout`, schedulers and terminals send it to the loaders as well. Nobody reads what is printed.
    settings = SETTINGS.replace("paper", "online").replace("workers = 0", "workers = 1")
    config = write_settings(tmp_path, streets(tmp_path), settings)
    run = tmp_path / "run"
    options = ["--config", config, "--output", run, "--source-only.iterations", 5000]
    process = subprocess.Popen(
        [*COMMAND, "adapt", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # these tests may run under nohup
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, b"")
    assert any(b", run about " in line for line in lines)
    process.stdout.close()
    os.killpg(process.pid, number)
    try:
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
    assert (run / "source_only" / "checkpoint.pt").exists()
    assert "error" not in (run / "log.txt").read_text().lower()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, " adapt --output 'my run'"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"},
            "torchrun --nproc_per_node=4 -m cpsl adapt --output 'my run'",
        ),
        (
            {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"},
            "start all processes as before, of:\n  cpsl adapt --output 'my run'",
        ),
        ({"WORLD_SIZE": "8"}, "start all processes as before, of:\n  cpsl adapt --output 'my run'"),
    ],
)
def test_the_command_to_continue_is_named_whatever_started_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = after_stop("adapt", ["--output", "my run"])
    assert said.endswith(expected)
    assert "Finished stages and the last checkpoint are kept" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python -m cpsl adapt", True),
        ("python -X importtime -m cpsl", True),
        ("python -u /usr/bin/cpsl demo", True),
        ("python -m pytest cpsl", False),
        ("python train.py -m cpsl", False),
        ("python -c code", False),
        ("python", False),
    ],
)
def test_only_the_command_changes_its_process(words: str, expected: bool) -> None:
    assert is_command(words.split()) == expected
