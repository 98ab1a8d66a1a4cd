"""Settings in a TOML file: read so that every mistake is named with its file and key, and written.

Knows dataclasses and TOML, not which settings there are. tyro does the same for a command line, but of a
file it knows neither the name nor how a key is written there.
"""

import tomllib
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]
"""Type of each setting, by its dotted name, such as `self_label.iterations`."""


def read_options(path: Path, kind: type) -> list[str]:
    """Reads a file as the options of a command line; `[warmup] momentum = 0` is `--warmup.momentum 0`.

    Args:
        path: TOML file.
        kind: Dataclass of the settings, whose fields may be dataclasses.

    Raises:
        SystemExit: The file cannot be read, is no TOML, or has keys or values that do not fit; all are named.
    """
    table = read_toml(path)
    known = schema(kind)
    pairs = list(_flat(table, known))
    settings = dict(pairs)
    mistakes = [
        mistake for name, value in settings.items() if (mistake := _mistake(name, value, known))
    ]
    mistakes += [
        f"{name} is there twice, with - and with _"
        for name, times in Counter(name for name, _ in pairs).items()
        if times > 1
    ]
    if mistakes:
        raise SystemExit("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", *_words(value))
    ]


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file; ends the program with one line if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} is not a TOML file: {error}") from error


def schema(kind: type) -> Schema:
    """Returns the type of each setting.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Stage:
        ...     iterations: int
        >>> @dataclass
        ... class Run:
        ...     seed: int
        ...     warmup: Stage
        >>> schema(Run)
        {'seed': <class 'int'>, 'warmup.iterations': <class 'int'>}
    """
    known: Schema = {}
    hints, inlined = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            # What tyro.conf.arg(name="") marks stands among the settings around it.
            unnamed = any(getattr(m, "name", None) == "" for m in get_args(inlined[field.name])[1:])
            prefix = "" if unnamed else f"{field.name}."
            known |= {prefix + name: type_ for name, type_ in schema(hint).items()}
        else:
            known[field.name] = hint
    return known


def plain(value: Any) -> Any:
    """Turns settings, `dataclasses.asdict` of them, into what a TOML file can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flat(table: dict[str, Any], known: Schema, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values; a table that is a setting by itself stays whole."""
    for key, value in table.items():
        name = prefix + key.replace("-", "_")
        is_group = any(other.startswith(f"{name}.") for other in known)
        if isinstance(value, dict) and name not in known and (is_group or value):
            yield from _flat(value, known, f"{name}.")
        else:
            yield name, value


def _mistake(name: str, value: Any, known: Schema) -> str:
    """Returns what is wrong with a setting, nothing if it is well."""
    if name in known:
        if _fits(value, known[name]):
            return ""
        return f"{name} = {value!r}: expected {_described(known[name])}"
    group = f"{name}."
    if any(other.startswith(group) for other in known):
        return f"{name} = {value!r}: it is a table, [{name}]"
    close = _similar(name, known)
    return f"there is no setting {name}" + (
        f"; did you mean {' or '.join(close)}?" if close else ""
    )


def _similar(name: str, known: Schema) -> list[str]:
    """Returns the settings that may be meant: spelled alike, or the same word in another table.

    Example:
        >>> known = {"seed": int, "views.crop": int, "warmup.momentum": float}
        >>> _similar("sede", known), _similar("crop", known), _similar("warm_up.momentum", known)
        (['seed'], ['views.crop'], ['warmup.momentum'])
    """
    leaf = name.rpartition(".")[2]
    likeness = {
        other: SequenceMatcher(None, name, other).ratio()
        + 0.35 * (other.rpartition(".")[2] == leaf)
        for other in known
    }
    best = max(likeness.values(), default=0)
    return [other for other, value in likeness.items() if value > max(0.7, best - 0.1)][:3]


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        if parts[1:] == (...,):
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(
            key.removeprefix("-").isdecimal() and _fits(item, parts[1])
            for key, item in value.items()
        )
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    kinds = {float: (int, float), Path: (str,)}
    return isinstance(value, kinds.get(hint, (hint,)))


def _described(hint: Any) -> str:
    """Says which values fit.

    Example:
        >>> _described(tuple[int, int]), _described(Literal["sgd", "adamw"]), _described(Path | None)
        ('[whole number, whole number]', '"sgd" or "adamw"', 'path')
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f'"{part}"' for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(part) for part in parts if part is not type(None))
    if origin is tuple:
        if parts[1:] == (...,):
            return f"[{_described(parts[0])}, ...]"
        return f"[{', '.join(map(_described, parts))}]"
    if origin is dict:
        return "{ whole number = whole number, ... }"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    return names[hint]


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [word for pair in value.items() for word in map(str, pair)]
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [str(value)]
