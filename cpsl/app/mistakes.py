"""Mistakes in settings in plain English: the setting, what is allowed, and what was found.

The words follow from the JSON Schema of the setting, never from the validator's own message.
"""

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

Schema = Mapping[str, Any]

PATH = "a path in quotes"
"""What is expected of a setting that names a file or a folder."""

LONGEST = 80
"""Characters of a value that are shown."""


def describe_mistakes(errors: Sequence[Mapping[str, Any]], schema: Schema) -> list[str]:
    """Returns one sentence for each setting, or value in a setting, that is not allowed.

    Args:
        errors: Errors of pydantic, as `ValidationError.errors()` returns them.
        schema: JSON Schema of the settings.

    Example:
        >>> schema = {"type": "object", "properties": {"rate": {"type": "number", "exclusiveMinimum": 0}}}
        >>> describe_mistakes([{"type": "greater_than", "loc": ("rate",), "input": -1}], schema)
        ['rate: expected a number above 0, got -1']
    """
    found: dict[str, str] = {}  # a union has an error for each of its kinds
    for error in errors:
        place, entry = _locate(error["loc"], schema, error["input"])
        found.setdefault(place, _describe(error, entry, schema))
    return [f"{place}: {problem}" for place, problem in found.items()]


def expected(entry: Schema, definitions: Schema) -> str:
    """Returns the values that an entry of a JSON Schema allows, given the `$defs` of the schema.

    Example:
        >>> expected({"type": "array", "prefixItems": [{"type": "integer", "minimum": 16}] * 2}, {})
        'a list of 2 values, each a whole number of at least 16'
    """
    entry = _resolved(entry, definitions)
    if "anyOf" in entry:
        kinds = [expected(kind, definitions) for kind in entry["anyOf"] if kind.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in entry or "const" in entry:
        choices = entry.get("enum", [entry.get("const")])
        return f"{'one of ' * (len(choices) > 1)}{', '.join(map(_shown, choices))}"
    match entry.get("type"):
        case "integer" | "number" as kind:
            return f"a {'whole ' * (kind == 'integer')}number{_limits(entry)}"
        case "array":
            parts = entry.get("prefixItems")
            number = "" if parts is None else f"{len(parts)} "
            return f"a list of {number}values, each {expected((parts or [entry['items']])[0], definitions)}"
        case "string" if entry.get("format") == "path":
            return PATH
        case "boolean":
            return "true or false"
        case "object" if "properties" not in entry:
            return "pairs { key = value }"
        case "object":
            return "a table of settings"
    return "a text in quotes"


def _limits(entry: Schema) -> str:
    least, most = entry.get("minimum"), entry.get("maximum")
    if least is not None and most is not None:
        return f" from {least} to {most}"
    limits = {
        "above": entry.get("exclusiveMinimum"),
        "of at least": least,
        "below": entry.get("exclusiveMaximum"),
        "at most": most,
    }
    return "".join(f" {' and '.join(f'{word} {n}' for word, n in limits.items() if n is not None)}").rstrip()


def _resolved(entry: Schema, definitions: Schema) -> Schema:
    return definitions[entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry


def _locate(location: Sequence[int | str], schema: Schema, value: Any) -> tuple[str, Schema]:
    """Returns the dotted name of the place of an error, and its entry in the schema.

    The location may go on with the kinds of a union, or with the index of a value that is missing.
    """
    definitions, entry, place = schema.get("$defs", {}), schema, list[str]()
    for step in location:
        options = entry.get("anyOf", [entry])
        inner = _resolved(next(o for o in options if o.get("type") != "null"), definitions)
        if isinstance(step, int) and inner.get("type") == "array":
            if isinstance(value, list | tuple) and step >= len(value) and step == location[-1]:
                break
            parts = inner.get("prefixItems", [])
            entry = parts[step] if step < len(parts) else inner.get("items", {})
        elif step in inner.get("properties", {}):
            entry = inner["properties"][step]
        elif isinstance(inner.get("additionalProperties"), Mapping):
            entry = inner["additionalProperties"]
        elif "properties" not in inner:
            break
        place.append(str(step))
    return ".".join(place), entry


def _describe(error: Mapping[str, Any], entry: Schema, schema: Schema) -> str:
    kind, value, location = error["type"], error["input"], error["loc"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"there is no such setting{_intended(location, schema)}"
    if kind == "value_error":  # of a validator of ours
        return f"{error['ctx']['error']}, got {_shown(value)}"
    if location[-1] == "[key]":
        return f"the key {_shown(value)} must be a whole number"
    allowed = expected(entry, schema.get("$defs", {}))
    if kind in ("missing", "missing_argument") and not isinstance(location[-1], int):
        return f"it is missing: expected {allowed}"
    hint = ""
    if isinstance(value, float) and not math.isfinite(value):
        allowed = allowed.replace("a number", "a finite number")
    elif isinstance(value, Mapping) and all(str(key)[:1].isdigit() for key in value):
        hint = "; TOML reads a key with a dot, such as 1.5, as nested tables: write it in quotes"
    elif isinstance(value, str) and (close := get_close_matches(value, entry.get("enum", []), n=1)):
        hint = f"; did you mean {_shown(close[0])}?"
    return f"expected {allowed}, got {_shown(value)}{hint}"


def _intended(location: Sequence[int | str], schema: Schema) -> str:
    """Returns which setting may be meant by the name of one that does not exist."""
    known, name = names(schema), ".".join(map(str, location))
    leaf = [other for other in known if other.endswith(f".{location[-1]}")]
    close = get_close_matches(name, known, cutoff=0.7) or leaf[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def names(schema: Schema) -> dict[str, dict[str, Any]]:
    """Returns the entry of each setting, and of each table, by its dotted name."""
    known: dict[str, dict[str, Any]] = {}

    def collect(table: Schema, prefix: str) -> None:
        for name, entry in table["properties"].items():
            known[prefix + name] = entry
            if "$ref" in entry:
                collect(_resolved(entry, schema["$defs"]), f"{prefix}{name}.")

    collect(schema, "")
    return known


def _shown(value: Any) -> str:
    """Returns a value as in a TOML file, shortened."""
    if isinstance(value, float):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
