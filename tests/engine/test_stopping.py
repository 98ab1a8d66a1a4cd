import os
import signal
import subprocess
import sys

import pytest

from cpsl.engine import STOPPED_EXIT_CODE, exit_when_stopped
from cpsl.engine.stopping import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stopped:
        assert not stopped
        os.kill(os.getpid(), number)
        assert stopped
    assert signal.getsignal(number) == before


def test_only_a_second_interrupt_leaves_at_once() -> None:
    def signal_thrice() -> None:
        with StopSignals():
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as leave:
        signal_thrice()
    assert leave.value.code == STOPPED_EXIT_CODE


def test_a_signal_between_the_loops_leaves_with_a_code_of_its_own() -> None:
    program = (
        "import time; from cpsl.engine import exit_when_stopped\n"
        "with exit_when_stopped(): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        process.terminate()
        assert process.communicate()[1] == ""
    assert process.returncode == STOPPED_EXIT_CODE


def test_handlers_come_back_after_work_between_the_loops() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with exit_when_stopped():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
