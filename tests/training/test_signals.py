import os
import signal
import subprocess
import sys

import pytest

from cpsl._internal.interrupts import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE
from cpsl.training.signals import StopSignals, exit_when_stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_recorded_and_handlers_are_restored(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stopped:
        assert not stopped
        os.kill(os.getpid(), number)
        assert stopped
    assert signal.getsignal(number) == before


def test_only_a_second_interrupt_exits_at_once() -> None:
    def signal_thrice() -> None:
        with StopSignals():
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as leave:
        signal_thrice()
    assert leave.value.code == INTERRUPTED_EXIT_CODE


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, STOPPED_EXIT_CODE), (signal.SIGINT, INTERRUPTED_EXIT_CODE)]
)
def test_a_signal_outside_of_loops_exits_with_its_own_code(number: int, code: int) -> None:
    program = (
        "import time; from cpsl.training.signals import exit_when_stopped\n"
        "with exit_when_stopped(): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        process.send_signal(number)
        assert process.communicate()[1] == ""
    assert process.returncode == code


def test_handlers_are_restored_after_work_outside_of_loops() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with exit_when_stopped():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
