"""Hook of the site: long names in cells of tables break after a separator, not within a word."""

import re
from typing import Any

CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
CODE = re.compile(r"(?<=<code>)[^<]{16,}(?=</code>)")
SEPARATOR = re.compile(r"(?<=[:/_.])(?=\w)")


def on_page_content(html: str, **context: Any) -> str:
    """Adds the places where a browser may break; they are not copied with the text.

    Example:
        >>> on_page_content("<td><code>timm:vit_large_patch14</code></td>")
        '<td><code>timm:<wbr>vit_<wbr>large_<wbr>patch14</code></td>'
    """
    return CELL.sub(lambda cell: CODE.sub(lambda code: SEPARATOR.sub("<wbr>", code[0]), cell[0]), html)
