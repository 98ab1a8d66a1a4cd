import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown import markdown

ROOT = Path(__file__).parents[1]
spec = spec_from_file_location("equations", ROOT / "docs" / "equations.py")
assert spec is not None
assert spec.loader is not None
equations: Any = module_from_spec(spec)
spec.loader.exec_module(equations)
PAGES = sorted((ROOT / "docs").glob("*.md"))


def html_of(text: str) -> str:
    """Returns the HTML of a page as mkdocs passes it to the hook."""
    options = {"pymdownx.arithmatex": {"generic": True}}
    return markdown(
        text, extensions=["pymdownx.arithmatex", "pymdownx.superfences"], extension_configs=options
    )


def check(content: str, number: int) -> None:
    """Checks that a page has this number of equations, and each of their glyphs once."""
    stored = re.findall(r'<symbol id="([^"]+)"', content)
    assert len(stored) == len({*stored})
    assert {*re.findall(r'<use href="#([^"]+)"', content)} <= {*stored}
    assert content.count('class="equation') == number
    assert "arithmatex" not in content


@pytest.mark.parametrize("page", [page for page in PAGES if "$" in page.read_text()], ids=lambda p: p.name)
def test_all_equations_of_a_page_are_drawn(page: Path) -> None:
    text = html_of(page.read_text())
    number = text.count('class="arithmatex"')
    assert number > 100 or page.name != "method.md"
    check(equations.on_page_content(text), number)


PARTS = (
    r"\delta_k",
    r"\frac{1}{N}",
    r"\sum_{n,k}",
    r"\text{subject to} x",
    r"\hat{y}",
    r"\left( x \right)",
    "a < b",
)


@settings(max_examples=10, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=5))
def test_any_sequence_of_equations_is_drawn(parts: list[str]) -> None:
    text = "\n\n".join(f"${part}$ and\n\n$${part} = {part}$$" for part in parts)
    check(equations.on_page_content(html_of(text)), 2 * len(parts))


def test_equations_lie_on_the_baseline_and_grow_with_the_text() -> None:
    flat, deep = equations.draw("x", display=False), equations.draw(r"\frac{x}{y}", display=False)
    drop = [float(re.search(r"vertical-align:(-?[\d.]+)em", found)[1]) for found in (flat, deep)]
    assert -0.2 < drop[0] <= 0
    assert drop[1] < -0.2
    assert re.search(r"width:[\d.]+em;height:[\d.]+em", flat)


def test_the_description_is_the_tex() -> None:
    assert 'aria-label="a &lt; \\delta"' in equations.draw(r"a < \delta", display=True)


def test_a_page_without_equations_stays_as_it_is() -> None:
    assert equations.on_page_content("<p>5 $</p>") == "<p>5 $</p>"
