"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

from cpsl import Segmenter
from cpsl.data import CITYSCAPES_19
from cpsl.models import DeepLabV2
from export import export

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
    if ".pkl" not in block  # the authors' checkpoints are not here
]


@pytest.fixture(scope="session")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the files that the pages take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    model = DeepLabV2(19, "resnet_tiny", 8).eval()
    Segmenter(model, CITYSCAPES_19, (32, 64)).save(folder / "model.pt")
    Image.new("RGB", (80, 48)).save(folder / "street.jpg")
    return folder


@pytest.mark.parametrize("block", BLOCKS)
def test_code_in_the_documentation_runs(
    block: str, around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(around)
    if "model.onnx" in block:
        pytest.importorskip("onnxruntime", reason="ONNX needs cpsl[export]")
        export(Segmenter.load("model.pt"), Path("model.onnx"))
    exec(compile(block, "docs", "exec"), {})


PICTURES = [
    pytest.param(page, alt, target, id=target)
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md")))
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
]


@pytest.mark.parametrize(("page", "alt", "target"), PICTURES)
def test_pictures_are_there_small_and_described(page: Path, alt: str, target: str) -> None:
    path = page.parent / target
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        picture.load()
    assert len(alt) > 20
