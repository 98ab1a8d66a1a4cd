"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest

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
