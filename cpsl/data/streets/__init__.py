"""Generated street scenes: a small source and a small target domain that need no download."""

from cpsl.data.streets.draw import draw_street
from cpsl.data.streets.styles import Style
from cpsl.data.streets.write import write_streets

__all__ = ["Style", "draw_street", "write_streets"]
