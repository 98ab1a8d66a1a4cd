"""Types of settings with the range of their values, and of paths."""

import json
import os
import re
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import AfterValidator, Field

Amount = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Pixels = Annotated[int, Field(ge=16)]  # the smallest input of the networks
Size = tuple[Pixels, Pixels]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Json = Annotated[dict[str, Any], tyro.conf.arg(constructor=json.loads, metavar="JSON")]

T = TypeVar("T")
OfFiles = Annotated[T, tyro.conf.Suppress, Field(json_schema_extra={"option": False})]
"""A setting that files have, and the command line has not."""


def _check_range(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("the first value must not exceed the second")
    return limits


def _check_value_range(limits: tuple[float, float]) -> tuple[float, float]:
    if not -inf < limits[0] < limits[1] < inf:
        raise ValueError("the first value must be less than the second")
    return limits


def _expand(path: str) -> str:
    """Returns a path with the home folder in place of "~"; refuses what backslashes in TOML have become."""
    if re.search(r"[\0-\x1f]", path):
        raise ValueError("a path has no tabs or line breaks: in TOML, write / or 'single quotes' for \\")
    return os.path.expanduser(path)  # unlike Path.expanduser, keeps the name of an unknown user


def _expand_path(path: Path) -> Path:
    return Path(_expand(str(path)))


Location = Annotated[Path, AfterValidator(_expand_path)]
Start = Annotated[str, AfterValidator(_expand)]
"""A word, or the path of a file of weights."""
Range = Annotated[tuple[Positive, Positive], AfterValidator(_check_range)]
ValueRange = Annotated[tuple[float, float], AfterValidator(_check_value_range)]
