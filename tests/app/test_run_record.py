import json
from pathlib import Path

import pytest
import torch

from app.conftest import Run
from cpsl.app.run_record import NAME, describe_hardware, read_sessions, record_session
from cpsl.training import Process

PROCESS = Process(torch.device("cpu"))


def test_each_start_is_recorded(tmp_path: Path) -> None:
    record_session(tmp_path, ["adapt", "--output", "a folder"], PROCESS)
    record_session(tmp_path, ["adapt", "--output", "a folder", "--workers", "0"], PROCESS)
    first, second = read_sessions(tmp_path)
    assert first.command == "cpsl adapt --output 'a folder'"
    assert second.command.endswith("--workers 0")
    assert first.started <= second.started
    assert first.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert describe_hardware(PROCESS) == first.hardware


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"sessions": [{}]}', '{"sessions": [{"started": 1}]}']
)
def test_a_missing_or_damaged_record_is_empty(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / NAME).write_text(content)
    assert read_sessions(tmp_path) == []
    record_session(tmp_path, ["adapt"], PROCESS)
    assert len(read_sessions(tmp_path)) == 1


def test_a_run_records_its_command(finished: Run) -> None:
    (session,) = read_sessions(finished.folder)
    assert session.command.startswith("cpsl adapt --config")
    assert json.loads((finished.folder / NAME).read_text())["sessions"][0]["versions"]["cpsl"]
