"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
    if ".pkl" not in block  # the authors' checkpoints are not here
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_in_the_documentation_runs(block: str) -> None:
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
