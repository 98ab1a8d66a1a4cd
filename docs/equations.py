"""Typesets the equations of the pages as SVG, a hook of mkdocs.

The site needs no script or font from elsewhere: equations look the same in each browser, and work offline.
"""

import html
import re
from typing import Any

import ziamath

# What pymdownx.arithmatex makes of $...$ and $$...$$.
EQUATION = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.S)
GLYPH = re.compile(r'<symbol id="([^"]+)"(?:[^>]*/>|.*?</symbol>)', re.S)
SIZE = 16  # of an em in an equation's own coordinates


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the TeX of a page; a glyph that occurs several times on it is stored once."""
    glyphs: dict[str, str] = {}

    def typeset(match: re.Match[str]) -> str:
        picture = draw(html.unescape(match[2]).strip(), display=match[1] == "div")
        glyphs.update((glyph[1], glyph[0]) for glyph in GLYPH.finditer(picture))
        return GLYPH.sub("", picture)

    content = EQUATION.sub(typeset, content)
    return (
        f'<svg class="glyphs" aria-hidden="true">{"".join(glyphs.values())}</svg>{content}'
        if glyphs
        else content
    )


def draw(tex: str, display: bool) -> str:
    """Returns an equation as SVG that is as large as the text around it, described by its TeX."""
    picture = ziamath.Latex(tex, size=SIZE, inline=not display, color="currentColor").svg()
    head, body = picture.split(">", 1)
    view = re.search(r'viewBox="([^"]+)"', head)
    assert view is not None
    _, top, width, height = (float(value) / SIZE for value in view[1].split())
    shape = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{-(top + height):.3f}em"
    kind = "equation display" if display else "equation"
    label = html.escape(tex)
    return f'<svg class="{kind}" role="img" aria-label="{label}" style="{shape}" viewBox="{view[1]}">{body}'
