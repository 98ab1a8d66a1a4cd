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

from cpsl.app.mistakes import describe_mistakes, names

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
        return _underscored(tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        where = "it is UTF-16" if utf_16 else f"line {content[: error.start].count(10) + 1} is not UTF-8"
        raise UsageError(f"{path} cannot be read: {where}; save the file in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error


def _underscored(table: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in table.items():
        name = re.sub(r"\b-\b", "_", key)  # but not the sign of a number
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
    with _usage_errors(kind, source):
        # Strict validation refuses true for 1; of JSON, it still takes lists as tuples and texts as paths.
        values = _adapter(kind).validate_json(json.dumps(table, default=str), strict=True)
    replaced: S = _replace(settings, table, values)
    return replaced


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
