import logging
from pathlib import Path

import pytest

from check import TOLD, _tell


@pytest.mark.parametrize("count", [1, TOLD, TOLD + 1, 3 * TOLD])
def test_a_wall_of_problems_is_cut_and_kept_in_a_file(tmp_path: Path, caplog, count: int) -> None:
    problems = [f"source: {index}.png" for index in range(count)] + ["evaluation: a.png"]
    logging.getLogger("cpsl").propagate = True
    _tell(problems, tmp_path / "problems.txt")
    told = [record.getMessage() for record in caplog.records]
    assert told[:TOLD] == problems[: min(count, TOLD)] + ["evaluation: a.png"] * (count < TOLD)
    assert "evaluation: a.png" in told
    assert (tmp_path / "problems.txt").exists() == (count > TOLD)
    if count > TOLD:
        assert told[-1].startswith(f"... and {count - TOLD} more")
        assert (tmp_path / "problems.txt").read_text().splitlines() == problems
