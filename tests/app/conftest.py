"""A finished run that the tests share; they must not change it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from app.tiny import cpsl, streets, write_settings


class Run(NamedTuple):
    """A run.

    Attributes:
        config: File of its settings.
        folder: Folder of its results.
        printed: What the command printed.
    """

    config: Path
    folder: Path
    printed: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    config = write_settings(folder, streets(folder))
    ended = cpsl("adapt", "--config", config, "--output", folder / "run")
    assert ended.code == 0, ended.text
    return Run(config, folder / "run", ended.text)
