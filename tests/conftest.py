"""Fixtures of all tests. Tests marked `cuda` are skipped without CUDA."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

settings.register_profile("default", deadline=None, max_examples=25)
settings.load_profile("default")

# Results are compared bit for bit with those of other processes, which have one thread as well.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
"""Outputs of the authors' code; its README.md describes them."""
SHARED = Path(os.environ.get("CPSL_SHARED", Path(__file__).parents[2] / "shared"))
"""Optional photographs of the real data sets, which are not distributed with the project."""

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture
def golden() -> Callable[[str], Arrays]:
    """Returns a function that reads one file of golden vectors."""

    def read(name: str) -> Arrays:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return read


@pytest.fixture
def real() -> Path:
    """Returns the folder of photographs in the layouts of GTA5, SYNTHIA and Cityscapes."""
    path = SHARED / "real"
    if not path.exists():
        pytest.skip(f"needs the optional photographs in {path}")
    return path


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the logger `cpsl` after each test."""
    log = logging.getLogger("cpsl")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", log.level)
    log.setLevel(logging.NOTSET)


@pytest.fixture
def fake_cuda() -> Iterator[torch.device]:
    """Yields a fake CUDA device: its tensors have no values, so that every synchronization fails."""
    with FakeTensorMode(), torch.device("cuda"):
        try:
            torch.empty(2)[:1]
        except RuntimeError:
            pytest.skip("PyTorch 2.6 cannot index fake CUDA tensors without a GPU")
        yield torch.device("cuda")


def pytest_configure(config: pytest.Config) -> None:
    """Gives the run a temporary folder of its own: tests and doctests write gigabytes in all.

    `--basetemp FOLDER` keeps the files of the tests that fail.
    """
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist inherit the folder
        folder = tempfile.mkdtemp(prefix="cpsl-tests-")
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        # After multiprocessing has removed its own folder in there, which has priority -100.
        Finalize(None, shutil.rmtree, (folder, True), exitpriority=-200)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
