"""Options of the command line: their values, what is wrong with them, and their help."""

import ast
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any, NamedTuple

from cpsl.app.settings import UsageError, schema
from cpsl.app.usage import EXAMPLES

RUNS = ("adapt", "check", "demo")
"""Commands with the settings of a run, from files that `--config` names."""

OTHERS = ("check", "demo", "evaluate", "export", "predict", "recipes", "report")
"""Commands that people look for among the options of a run."""


ELSEWHERE = {
    **dict.fromkeys(("epochs", "max_epochs", "steps", "max_steps", "iters", "max_iters"), "iterations"),
    **dict.fromkeys(("lr", "base_lr"), "learning_rate"),
    **dict.fromkeys(("batch", "bs", "samples_per_gpu"), "batch_size"),
    **dict.fromkeys(("num_workers", "jobs"), "workers"),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "device"),
    **dict.fromkeys(("backbone", "encoder", "arch"), "network"),
    **dict.fromkeys(("amp", "fp16", "bf16"), "precision"),
    **dict.fromkeys(("work_dir", "output_dir", "out", "save_dir"), "output"),
    **dict.fromkeys(("checkpoint", "ckpt", "model"), "weights"),
}
"""Names that other programs have for settings."""

DEFAULT_STAGES = ("online.", "source_only.")
"""Tables of the stages that a run has by default; their settings are proposed first."""


class Values(NamedTuple):
    """The values of an option.

    Attributes:
        kinds: Kind of each value: integer, number, path or string.
        most: The largest number of values, None if there may be any number.
        least: The smallest number of values, if there may be any number.
        choices: The only possible values, if there are any.
        is_switch: Whether the option takes no value.
        may_be_none: Whether the word None is a value too.
        pairs: Whether the values are keys with their values.
    """

    kinds: tuple[str, ...]
    most: int | None = 1
    least: int = 0
    choices: tuple[str, ...] = ()
    is_switch: bool = False
    may_be_none: bool = False
    pairs: bool = False

    @property
    def metavar(self) -> str:
        """The values in the help, such as "N N"."""
        names = {"integer": "N", "number": "X", "path": "PATH", "string": "TEXT"}
        if self.pairs:
            return "KEY VALUE ..."
        text = " ".join(names[kind] for kind in self.kinds)
        text = "{" + ",".join(self.choices) + "}" if self.choices else text
        return f"{text} ..." if self.most is None else text

    def __str__(self) -> str:
        words = {"integer": "whole number", "number": "number", "path": "path", "string": "value"}
        if self.pairs:
            return "pairs of a stored value and a class, such as 7 road 26 car"
        if self.choices:
            return f"{'some' if self.most is None else 'one'} of {', '.join(self.choices)}"
        count, word = len(self.kinds), words[self.kinds[0]]
        if self.most is None:
            return f"{word}s" if count == 1 else f"{word}s, {count} for each"
        return f"a {word}" if count == 1 else f"{count} {word}s"


def values_of(entry: Mapping[str, Any]) -> Values:
    """Returns the values of a setting, given its entry in the schema.

    Example:
        >>> str(values_of({"type": "array", "prefixItems": [{"type": "integer"}] * 2}))
        '2 whole numbers'
    """
    if "anyOf" in entry:
        inner = [each for each in entry["anyOf"] if each.get("type") != "null"]
        first = values_of(inner[0])._replace(may_be_none=len(inner) < len(entry["anyOf"]))
        return first if len(inner) == 1 else first._replace(kinds=("string",))
    if "enum" in entry:
        return Values(("string",), choices=tuple(map(str, entry["enum"])))
    kind = entry.get("type", "string")
    if kind == "boolean":
        return Values(("string",), most=0, is_switch=True)
    if kind == "array" and "prefixItems" in entry:
        parts = [values_of(part).kinds[0] for part in entry["prefixItems"]]
        return Values(tuple(parts), most=len(parts))
    if kind == "array":
        # A list that is empty by default may be emptied.
        least = entry.get("minItems", 1 if entry.get("default") else 0)
        return values_of(entry["items"])._replace(most=None, least=least)
    if kind == "object" and entry.get("additionalProperties") is not True:
        return Values(("string",), most=None, pairs=True)
    if kind == "string" and entry.get("format") == "path":
        return Values(("path",))
    return Values((kind if kind in ("integer", "number") else "string",))


@cache
def options_of(kind: type) -> dict[str, dict[str, Any]]:
    """Returns the schema of the settings that are options, by name: all but tables and those of files."""
    described = _attribute_docstrings(kind)
    return {
        name: {"description": described.get(name, ""), **entry}
        for name, entry in schema(kind).items()
        if "$ref" not in entry and "$ref" not in (entry.get("items") or {}) and entry.get("option", True)
    }


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """Returns the docstrings below the fields of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            (tree,) = ast.parse(dedent(inspect.getsource(base))).body
        except (OSError, TypeError):  # a class without a source file
            continue
        assert isinstance(tree, ast.ClassDef)
        for pair in pairwise(tree.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def check_options(kind: type, arguments: Sequence[str], command: str, missing: Sequence[str] = ()) -> None:
    """Checks names, numbers and types of options.

    Args:
        kind: Dataclass of the options.
        arguments: Command line without the name of the command.
        command: Name of the command, for the advice.
        missing: Names of options that must be among the arguments.

    Raises:
        UsageError: Some are wrong; each line of the message names an option, its value, and what is expected.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Run:
        ...     crop: tuple[int, int] = (64, 128)
        >>> check_options(Run, ["--crop", "5"], "adapt")
        Traceback (most recent call last):
        cpsl.app.settings.UsageError: command line: --crop: expected 2 whole numbers, got '5'
    """
    known, given, wrong = options_of(kind), set[str](), list[str]()
    for option, words in _split(arguments):
        name = option[2:].replace("-", "_")
        positive = name.replace(".no_", ".").removeprefix("no_")
        if name not in known and known.get(positive, {}).get("type") == "boolean":
            name = positive
        if option in ("--help", "-h"):
            continue
        given.add(name)
        if not option:
            problem = f"unexpected {words[0]!r}; options begin with --"
            files = ", files of settings follow --config" if "config" in known or command in RUNS else ""
            wrong.append(problem + files)
        elif name not in known:
            wrong.append(f"{option}: there is no such option; {_intended(name, known, command)}")
        elif problem := _problem(values_of(known[name]), words, name):
            wrong.append(f"{option}: {problem}")
    for name in missing:
        if name not in given:
            wrong.append(f"{spell(name)} is missing: {known[name]['description'].rstrip('.')}")
    if wrong:
        example = f"For example: {EXAMPLES[command][0]}" if set(missing) - given else ""
        raise UsageError("\n".join([*(f"command line: {line}" for line in wrong), example]).rstrip())


def _intended(name: str, known: Collection[str], command: str) -> str:
    """Returns which option or command may be meant by the name of one that does not exist."""
    if name in OTHERS and command in RUNS:
        return f"did you mean the command cpsl {name}?"
    last = name.rpartition(".")[2]
    ending = ELSEWHERE.get(last, last)
    same_end = [other for other in known if f".{other}".endswith(f".{ending}")]
    general = ["help", "help-all", *(["config"] if command in RUNS else [])]
    same_end.sort(key=lambda other: not other.startswith(DEFAULT_STAGES))
    close = get_close_matches(name, [*known, *general], n=1, cutoff=0.7)
    meant = same_end[:3] if same_end and ("." not in name or not close) else close
    if meant:
        *others, end = map(spell, meant)
        return f"did you mean {' or '.join(filter(None, [', '.join(others), end]))}?"
    return f"cpsl {command} --help lists the options"


def spell(name: str) -> str:
    """Returns a setting as an option.

    Example:
        >>> spell("self_label.batch_size")
        '--self-label.batch-size'
    """
    return f"--{name.replace('_', '-')}"


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields options with their values; those before the first option have the option ""."""
    option, words = "", list[str]()
    for word in arguments:
        if not (word.startswith("--") or word == "-h"):
            words.append(word)
            continue
        if option or words:
            yield option, words
        option, equals, value = word.partition("=")
        words = [value] if equals else []
    if option or words:
        yield option, words


def _problem(values: Values, words: Sequence[str], name: str) -> str:
    """Returns what is wrong with the values of an option, "" if nothing is."""
    if values.may_be_none and list(words) == ["None"]:
        return ""
    if values.is_switch:
        table, dot, switch = name.rpartition(".")
        off = f"{spell(name)} turns it on, {spell(f'{table}{dot}no_{switch}')} off"
        return f"takes no value, got {' '.join(words)}; {off}" if words else ""
    group = 2 if values.pairs else len(values.kinds)
    fits = len(words) == values.most
    if values.most is None:
        fits = len(words) >= values.least and len(words) % group == 0
    parse = {"integer": int, "number": float}
    try:
        for word, kind in zip(words, values.kinds * len(words), strict=False):
            parse.get(kind, str)(word)
    except ValueError:
        fits = False
    if "" in words and "path" in values.kinds:  # a variable of the shell that is not set
        fits = False
    if fits and (not values.choices or set(words) <= set(values.choices)):
        return ""
    got = " ".join(map(repr, words)) if words else "none"
    close = get_close_matches(words[0], values.choices, n=1) if words else []
    return f"expected {values}, got {got}" + (f"; did you mean {close[0]}?" if close else "")
