"""Reads the section "Example:" of docstrings as code, an extension of griffe.

Griffe knows the section "Examples:" only, and takes the other for a paragraph with quotations.
"""

import re
from typing import Any

import griffe


class SingularExample(griffe.Extension):
    """Renames the section in each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
