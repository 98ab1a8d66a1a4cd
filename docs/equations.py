"""Renders the equations of the pages as MathML, a hook of mkdocs.

Browsers display MathML natively: the site needs no script or font from elsewhere, and works offline.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $...$ and $$...$$.
EQUATION = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.S)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the TeX of a page."""

    def to_mathml(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2]).strip(), display=display)

    return EQUATION.sub(to_mathml, content)
