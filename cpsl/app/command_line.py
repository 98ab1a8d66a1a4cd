"""The command line of a run: recipes and files of settings, then options that override them."""

import os
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import tyro

from cpsl.app.config import Config
from cpsl.app.domain import Domain
from cpsl.app.settings import UsageError, check, check_numbers, override, read_toml, schema

RECIPES = Path(str(files("cpsl.app.recipes")))
"""Folder of the recipes."""

S = TypeVar("S")


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def find_settings(name: str) -> Path:
    """Returns the file of a recipe, or of custom settings.

    Args:
        name: Path of a TOML file, or name of a recipe, such as "demo".

    Raises:
        UsageError: There is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    if name in recipe_names():
        return RECIPES / f"{name}.toml"
    raise UsageError(
        f"--config {name}: there is no such file, and no recipe of this name; "
        f"the recipes are {', '.join(recipe_names())}"
    )


def read_layers(names: Sequence[str]) -> Config:
    """Reads recipes and files in order; later ones override earlier ones.

    A file with `base = "NAME"` holds only the differences from that recipe or file.

    Raises:
        UsageError: A file cannot be read, or has keys or values that do not fit.
    """
    return _read_layers(names, Config(), ())


def _read_layers(names: Sequence[str], settings: Config, opened: tuple[Path, ...]) -> Config:
    for name in names:
        path = find_settings(name)
        if path in opened:
            raise UsageError(f"{path}: base = {name!r} leads back to this file")
        table = read_toml(path)
        base = table.pop("base", None)
        if base is not None:
            if not isinstance(base, str):
                raise UsageError(f"{path}: base: expected a recipe or file, got {base!r}")
            beside = path.parent / base
            base = str(beside) if beside.is_file() else base
            settings = _read_layers([base], settings, (*opened, path))
        settings = override(_read_sources(settings, table, path), table, str(path))
    return settings


def _read_sources(settings: Config, table: dict[str, Any], path: Path) -> Config:
    """Takes the tables `[[source]]` out of a file; they replace all sources of the settings."""
    tables = table.get("source")
    if not (isinstance(tables, list) and tables):
        return settings  # a single table [source] changes the first source
    del table["source"]
    first, *others = (override(Domain(), each, f"{path}: source {i}") for i, each in enumerate(tables, 1))
    return replace(settings, source=first, more_sources=tuple(others))


SUMMARY = {
    "adapt": "Adapts a network to unlabeled images: trains all stages, evaluates each, writes "
    "a report. The same command resumes an interrupted run.",
    "check": "Checks data, weights and settings, runs a few steps of each stage, and estimates "
    "time and memory.",
    "demo": "Runs all stages on generated street scenes, in minutes on two CPU cores.",
}

SHORT_HELP = (
    *("output", "source.images", "source.labels", "target.images"),
    *("evaluation.images", "evaluation.labels", "classes", "seed", "device", "precision"),
    *("gradient_accumulation_steps", "workers", "checkpoint_every", "evaluate_every"),
)
"""Settings that the short help lists."""


def parse(arguments: Sequence[str], command: str = "adapt", base: tuple[str, ...] = ()) -> Config:
    """Returns the settings of a run: those of each `--config`, then the options of the command line.

    Args:
        arguments: Command line without the name of the command.
        command: Name of the command, for its help.
        base: Recipes that are read first.

    Raises:
        UsageError: Settings are unknown, of another type or out of range.
        SystemExit: Help was asked for, or an option does not fit.
    """
    if not (arguments or base):
        raise UsageError(
            f"cpsl {command} needs settings: cpsl {command} --config FILE, or try cpsl demo.\n"
            f"cpsl recipes lists the recipes, cpsl {command} --help the options."
        )
    parser = ArgumentParser(
        f"cpsl {command}", "%(prog)s [OPTIONS]", SUMMARY[command], add_help=False, allow_abbrev=False
    )
    about = "recipe or TOML file; later ones override earlier ones"
    parser.add_argument("--config", nargs="+", action="extend", default=[], metavar="NAME", help=about)
    parser.add_argument("--help-all", action="store_true", help="list all settings")
    first, options = parser.parse_known_args(arguments)
    settings = read_layers([*base, *first.config])
    if first.help_all:
        options = ["--help"]
    elif {"-h", "--help"} & set(options):
        _add_settings(parser, settings)
        parser.print_help()
        raise SystemExit(0)
    return parse_arguments(Config, options, command, settings)


def _add_settings(parser: ArgumentParser, settings: Config) -> None:
    """Adds the settings of `SHORT_HELP` to the help of a parser, with their values."""
    known = schema(Config)
    for name in SHORT_HELP:
        value = attrgetter(name)(settings)
        default = "" if value is None else f" [{' '.join(value) if name == 'classes' else value}]"
        choices = known[name].get("enum")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            choices=choices,
            metavar=None if choices else "VALUE",
            help=(known[name]["description"] + default).replace("%", "%%"),
        )


def parse_arguments(kind: type[S], arguments: Sequence[str], command: str, default: S | None = None) -> S:
    """Returns the options of a command.

    Args:
        kind: Dataclass of the options; its docstring is the summary of the help.
        arguments: Command line without the name of the command.
        command: Name of the command.
        default: Values of the options that are not given; those of the dataclass if omitted.

    Raises:
        UsageError: Options are out of range.
        SystemExit: Options are missing, unknown or of another type; or help was asked for.
    """
    if "NO_COLOR" in os.environ:
        tyro._experimental_options["ansi_codes"] = False
    check_numbers(kind, arguments, "command line")
    options = tyro.cli(
        kind,
        args=arguments,
        prog=f"cpsl {command}",
        default=tyro.MISSING_NONPROP if default is None else default,
    )
    return check(options, "command line")
