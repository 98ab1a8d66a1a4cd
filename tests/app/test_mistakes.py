import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cpsl.app import evaluate, export, predict
from cpsl.app.config import Config
from cpsl.app.mistakes import expected
from cpsl.app.settings import UsageError, check, override, schema

KINDS = [Config, *(module.Arguments for module in (evaluate, export, predict))]
SETTINGS = [(kind, name) for kind in KINDS for name in schema(kind)]
FOREIGN = re.compile(
    "Input|should|valid |validation|Value error|Field required|Unexpected|keyword|argument|Tuple|dataclass|"
    "pydantic|errors[.]|https?:|function-|constrained|NoneType|Traceback|item"
)
"""Words of pydantic's messages, types and links."""

VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(),
        st.sampled_from(["", "x", "7", "nan", "1.5", "#zzz", "*"]),
    ),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["5", "a", "1.5", "#ff"]), inner, max_size=2),
    max_leaves=5,
)


def table_of(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@given(st.sampled_from([name for kind, name in SETTINGS if kind is Config]), VALUES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_value_of_any_setting_brings_words_of_the_validator(name: str, value: Any) -> None:
    try:
        override(Config(), table_of(name, value), "a.toml")
    except UsageError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"a.toml: {name}")
            said = line.partition(", got ")[0]
            assert not FOREIGN.search(said.replace(name, "")), line
            assert "expected" in said or "no such setting" in said or "got" in line


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_every_setting_says_what_it_allows(kind: type, name: str) -> None:
    definitions = TypeAdapter(kind).json_schema().get("$defs", {})
    allowed = expected(schema(kind)[name], definitions)
    assert re.fullmatch(r"(a|an|one of|pairs|true|text)\b.*", allowed), allowed
    assert not FOREIGN.search(allowed)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"views": {"crop": [15, 32]}}, ["views.crop.0", "whole number of at least 16", "15"]),
        ({"views": {"crop": [16]}}, ["views.crop", "2 values", "[16]"]),
        ({"views": {"source_size": [1, 64]}}, ["views.source_size.0", "at least 16", "1"]),
        ({"views": {"color_transfer": 2.5}}, ["views.color_transfer", "from 0 to 1", "2.5"]),
        ({"source_only": {"optimizer": {"layer_decay": 0}}}, ["layer_decay", "above 0 and at most 1", "0"]),
        ({"source": {"weight": float("inf")}}, ["source.weight", "finite number above 0", "inf"]),
        (
            {"source": {"ids": {"1": {"5": 0}}}},
            ["source.ids.1: ", "whole number or a text", "quotes", '{"5": 0}'],
        ),
        ({"source": {"ids": {"road": 0}}}, ["source.ids", '"road"', "#ff0000"]),
        ({"palette": [[0, 0, 0], [0, 256, 0]]}, ["palette.1.1", "from 0 to 255", "256"]),
        ({"online": {"mixing": "clas"}}, ["online.mixing", '"class", "cut", "none"', 'did you mean "class"']),
        ({"online": 5}, ["online", "a table of settings", "5"]),
        ({"debug": 1}, ["debug", "true or false", "1"]),
        ({"output": 7}, ["output", "a path in quotes", "7"]),
        ({"online": {"iteration": 7}}, ["online.iteration", "no such setting", "online.iterations"]),
        ({"classes": [f"class {i}" for i in range(150)] + [1]}, ["classes.150", "text", "1"]),
    ],
)
def test_a_mistake_names_key_range_and_value(table: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        override(Config(), table, "a.toml")
    (line,) = str(refused.value).splitlines()
    assert all(part in line for part in named), line
    assert len(line) < 300


@given(st.floats(allow_nan=False).filter(lambda share: not 0 <= share <= 1))
@settings(deadline=None)
def test_options_out_of_range_are_named_like_settings(share: float) -> None:
    wrong = json.loads(json.dumps({"views": {"color_transfer": share}}))
    views = Config().views.__class__(color_transfer=wrong["views"]["color_transfer"])
    with pytest.raises(UsageError, match=r"command line: views\.color_transfer: expected a .*from 0 to 1"):
        check(Config(views=views), "command line")
    with pytest.raises(UsageError, match=r"size\.0: expected a whole number of at least 16, got 3"):
        check(export.Arguments(Path("a"), Path("b"), size=(3, 64)), "command line")
