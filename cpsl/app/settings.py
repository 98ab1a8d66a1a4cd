"""Settings as dataclasses: read from TOML files, checked by pydantic, and written again.

Knows no particular setting. A dotted name, such as `self_label.iterations`, is a field of a nested dataclass.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import TypeAdapter, ValidationError

from cpsl.app.mistakes import PATH, describe_mistakes, expected, names

S = TypeVar("S")


class UsageError(SystemExit):
    """A mistake in settings or options; the command prints the message and exits with code 2."""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file in UTF-8, with or without a byte order mark; hyphens in keys become underscores.

    Raises:
        UsageError: The file cannot be read, is no TOML, or has a key twice, with a hyphen and an underscore.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n") + "\n"  # errors then name the last line too
        return _underscored(tomllib.loads(text))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        where = "it is UTF-16" if utf_16 else f"line {content[: error.start].count(10) + 1} is not UTF-8"
        raise UsageError(f"{path} cannot be read: {where}; save the file in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}{_show_line(text, error)}") from error


def _show_line(text: str, error: ValueError) -> str:
    """Returns the line of an error of TOML, and how to write it, to be appended to the error."""
    place = re.search(r"at line (\d+)", str(error))
    if place is None:
        return ""
    line = text.split("\n")[int(place[1]) - 1].strip()
    advice = _correct(line)
    return f"\n    {line}" + (f"\n  {advice}" if advice else "")


def _correct(line: str) -> str:
    r"""Returns how a line with an error is probably to be written, "" if nothing suggests it.

    Example:
        >>> print(_correct('images = "C:\\Users"'))
        in "double quotes" \ begins an escape, write / or: images = 'C:\Users'
        >>> _correct("classes = [road, car]")
        'texts need quotes: classes = ["road", "car"]'
    """
    straight = re.sub("[‘’‚]", "'", re.sub("[“”„«»]", '"', line))
    if straight != line:
        return f"quotes must be straight: {straight}"
    literal = re.sub(r'"([^"\']*\\[^"\']*)"', r"'\1'", line)
    if literal != line:
        return f'in "double quotes" \\ begins an escape, write / or: {literal}'
    key, equals, value = line.partition("#")[0].rstrip().partition("=")
    quoted = value if set(value) & set("\"'") else re.sub(r"[^][{},=]+", _quote, value)
    if value.count('"') % 2:
        return 'a " is missing'
    if quoted.lower() == value.lower():
        return f"write true and false in lower case: {key}={quoted}" if quoted != value else ""
    return f"texts need quotes: {key}{equals}{quoted}"


def _quote(item: re.Match[str]) -> str:
    """Returns an item of a list or table with quotes if it is a text, true and false in lower case."""
    text = item[0].strip()
    if text.lower() in ("true", "false"):
        return item[0].lower()
    quote = "'" if "\\" in text else '"'
    is_text = re.match(r"[A-Za-z~$]|\.*/", text) or "\\" in text
    return item[0].replace(text, f"{quote}{text}{quote}") if is_text else item[0]


def _underscored(table: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in table.items():
        name = re.sub(r"\b-\b", "_", key) if key[:1].isalpha() else key  # no number and no color
        if name in renamed:
            raise ValueError(f"{name} is set twice, with - and with _")
        renamed[name] = _underscored_value(value)
    return renamed


def _underscored_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_underscored_value(item) for item in value]
    return _underscored(value) if isinstance(value, dict) else value


def override(settings: S, table: dict[str, Any], source: str) -> S:
    """Returns settings in which the values of a TOML table replace those before.

    Args:
        settings: Dataclass; its fields may be dataclasses, the tables of the TOML file.
        table: TOML table.
        source: Name of the file, which begins each message.

    Raises:
        UsageError: Keys or values do not fit; the message lists all of them.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Run:
        ...     seed: int = 0
        ...     crop: tuple[int, int] = (64, 128)
        >>> override(Run(seed=1), {"crop": [16, 32]}, "a.toml")
        Run(seed=1, crop=(16, 32))
    """
    kind: Any = type(settings)
    _refuse_empty_paths(kind, table, source)
    with _usage_errors(kind, source):
        # Strict validation refuses true for 1; of JSON, it still takes lists as tuples and texts as paths.
        values = _adapter(kind).validate_json(json.dumps(table, default=str), strict=True)
    replaced: S = _replace(settings, table, values)
    return replaced


def _refuse_empty_paths(kind: type, table: dict[str, Any], source: str) -> None:
    """Raises UsageError for empty paths, which would be the current folder."""
    of_kind = _adapter(kind).json_schema()
    known, definitions = names(of_kind), of_kind.get("$defs", {})
    empty = [name for name, value in flatten(table).items() if value == "" and name in known]
    if wrong := [name for name in empty if expected(known[name], definitions) == PATH]:
        raise UsageError("\n".join(f'{source}: {name}: expected {PATH}, got ""' for name in wrong))


def _replace(settings: Any, table: dict[str, Any], values: Any) -> Any:
    changes = {name: getattr(values, name) for name in table}
    for name, value in changes.items():
        if is_dataclass(value):
            changes[name] = _replace(getattr(settings, name), table[name], value)
    return replace(settings, **changes)


def check(settings: S, source: str) -> S:
    """Returns settings if all values are in their ranges.

    Raises:
        UsageError: Some are not; the message begins with the source and lists all of them.
    """
    kind: Any = type(settings)
    with _usage_errors(kind, source):
        checked: S = _adapter(kind).validate_python(asdict(settings))  # type: ignore[call-overload]
    return checked


@contextmanager
def _usage_errors(kind: type, source: str) -> Iterator[None]:
    """Reports the errors of pydantic in our words, one per line."""
    try:
        yield
    except ValidationError as error:
        lines = describe_mistakes(error.errors(), _adapter(kind).json_schema())
        raise UsageError("\n".join(f"{source}: {line}" for line in lines)) from None


def schema(kind: type) -> dict[str, dict[str, Any]]:
    """Returns the JSON Schema of each setting of a dataclass, and of each table, by dotted name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Stage:
        ...     iterations: int = 5
        >>> @dataclass
        ... class Run:
        ...     warmup: Stage
        >>> schema(Run)["warmup.iterations"]
        {'default': 5, 'title': 'Iterations', 'type': 'integer'}
    """
    return names(_adapter(kind).json_schema())


def to_toml(settings: Any) -> str:
    """Returns a dataclass as the text of a TOML file, without the settings that are None."""
    return tomli_w.dumps(_plain(asdict(settings)))


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested tables by their dotted keys.

    Example:
        >>> flatten({"seed": 0, "views": {"width": 400}})
        {'seed': 0, 'views.width': 400}
    """
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
