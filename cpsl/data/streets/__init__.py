"""Generated street scenes: a source and a target domain without a download."""

from cpsl.data.streets.styles import Style
from cpsl.data.streets.write import draw_street, write_streets

__all__ = ["Style", "draw_street", "write_streets"]
