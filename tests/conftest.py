"""What the tests share: the golden vectors, a little real input, and the skip of GPU tests."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

settings.register_profile("default", deadline=None, max_examples=25)
settings.load_profile("default")

# Not part of the project: they lie beside the checkout, or where CPSL_SHARED says.
SHARED = Path(os.environ.get("CPSL_SHARED", Path(__file__).parents[2] / "shared"))

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture
def golden() -> Callable[[str], Arrays]:
    """Returns a function that reads one file of the release's outputs."""

    def read(name: str) -> Arrays:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"the release's outputs are not here: {path}")
        with np.load(path) as arrays:
            return dict(arrays)

    return read


@pytest.fixture
def real() -> Path:
    """Returns the folder of real street images."""
    path = SHARED / "real"
    if not path.exists():
        pytest.skip(f"the real images are not here: {path}")
    return path


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test the log as it is before anything has begun to log."""
    log = logging.getLogger("cpsl")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", log.level)
    log.setLevel(logging.NOTSET)


@pytest.fixture
def fake_cuda() -> Iterator[torch.device]:
    """Yields a CUDA device whose tensors have no values: whatever waits for one fails, on any machine."""
    with FakeTensorMode(), torch.device("cuda"):
        try:
            torch.empty(2)[:1]
        except RuntimeError:
            pytest.skip(
                "without a GPU this version of PyTorch (2.6) cannot index a fake one's tensors"
            )
        yield torch.device("cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
