"""Where long names in tables of the site may break."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

spec = spec_from_file_location("code_breaks", Path(__file__).parents[1] / "docs" / "code_breaks.py")
assert spec is not None
assert spec.loader is not None
code_breaks: Any = module_from_spec(spec)
spec.loader.exec_module(code_breaks)

names = st.from_regex(r"[a-z0-9]{1,9}([:/_.][a-z0-9]{1,9}){0,6}", fullmatch=True)


@given(names)
def test_long_names_in_cells_may_break_after_separators_alone(name: str) -> None:
    cell = code_breaks.on_page_content(f"<td><code>{name}</code></td>")
    assert cell.replace("<wbr>", "") == f"<td><code>{name}</code></td>"
    parts = re.sub("<.?(td|code)>", "", cell).split("<wbr>")
    assert len(parts) == (len(re.split("[:/_.]", name)) if len(name) >= 16 else 1)
    assert all(part[-1] in ":/_." for part in parts[:-1])


@given(names)
def test_other_code_does_not_break(name: str) -> None:
    page = f"<p><code>{name}</code></p><pre><code>{name}</code></pre><td>{name}</td>"
    assert code_breaks.on_page_content(page) == page
