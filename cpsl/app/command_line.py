"""The command line of a run: recipes and files of settings, then options that override them."""

import inspect
import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn, TypeVar

import tyro

from cpsl.app.config import Config
from cpsl.app.domain import Domain
from cpsl.app.options import RUNS, check_options, options_of, spell, values_of
from cpsl.app.settings import UsageError, check, flatten, override, read_toml
from cpsl.app.sizes import choose_sizes
from cpsl.app.usage import EXAMPLES, SUMMARY, examples, how_to_begin, how_to_use

RECIPES = Path(str(files("cpsl.app.recipes")))
"""Folder of the recipes."""

S = TypeVar("S")


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def list_recipes(name: str) -> str:
    """Returns a message with the names of the recipes, and with the one that an unknown name resembles."""
    close = get_close_matches(name, recipe_names(), n=1)
    meant = f"did you mean {close[0]}? The" if close else "the"
    return f"{meant} recipes are {', '.join(recipe_names())}"


def recipe(name: str) -> Path:
    """Returns the file of a recipe, whatever files the current folder has."""
    return RECIPES / f"{name}.toml"


def find_settings(name: str) -> Path:
    """Returns the file of a recipe, or of custom settings.

    Args:
        name: Path of a TOML file, or name of a recipe, such as "demo".

    Raises:
        UsageError: There is neither.
    """
    path = Path(os.path.expanduser(name))
    if path.exists() and not path.is_dir():  # a pipe of the shell is no regular file
        return path
    if name in recipe_names():
        return recipe(name)
    raise UsageError(
        f"--config {name}: there is no such file, and no recipe of this name; {list_recipes(name)}"
    )


def read_layers(names: Sequence[str], given: set[str] | None = None) -> Config:
    """Reads recipes and files in order; later ones override earlier ones.

    A file with `base = "NAME"` holds only the differences from that recipe or file. `given` takes the dotted
    names of the settings in the files.

    Raises:
        UsageError: A file cannot be read, or has keys or values that do not fit.
    """
    return _read_layers(names, Config(), set() if given is None else given)


def _read_layers(
    names: Sequence[str], settings: Config, given: set[str], opened: tuple[Path, ...] = ()
) -> Config:
    """Reads the layers, and adds the dotted names of the settings in them to `given`."""
    for name in names:
        path = find_settings(name)
        if path in opened:
            raise UsageError(f"{path}: base = {name!r} leads back to this file")
        table = read_toml(path)
        base = table.pop("base", None)
        if base is not None:
            if not isinstance(base, str):
                raise UsageError(f"{path}: base: expected a recipe or file, got {base!r}")
            beside = recipe(base) if path.parent == RECIPES else path.parent / base
            base = str(beside) if beside.is_file() else base
            settings = _read_layers([base], settings, given, (*opened, path))
        settings = _read_sources(settings, table, path)
        named = set(flatten(table))
        settings = override(settings, table, str(path))
        _check_read(settings, named, str(path))
        given |= named
    return settings


def _check_read(settings: Config, named: set[str], where: str) -> None:
    """Refuses images and labels that a file or the command line names for a data set with its own."""
    for section in ("source", "target", "evaluation"):
        kind = getattr(settings, section).dataset
        for setting in (f"{section}.images", f"{section}.labels"):
            if setting in named and kind != "folder":
                raise UsageError(
                    f'{where}: {setting} is a setting of dataset = "folder", not of "{kind}"; '
                    f'add {section}.dataset = "folder"'
                )


def _read_sources(settings: Config, table: dict[str, Any], path: Path) -> Config:
    """Takes the tables `[[source]]` out of a file; they replace all sources of the settings."""
    tables = table.get("source")
    if not (isinstance(tables, list) and tables):
        return settings  # a single table [source] changes the first source
    del table["source"]
    sources = []
    for i, each in enumerate(tables, 1):
        where = f"{path}: source {i}"
        sources.append(override(Domain(), each, where))
        _check_read(replace(settings, source=sources[-1]), {f"source.{name}" for name in each}, where)
    first, *others = sources
    return replace(settings, source=first, more_sources=tuple(others))


SHORT_HELP = {
    "output": "",
    "source.images": "Folder of the labeled images to train on.",
    "source.labels": "Folder of their labels, named like the images.",
    "target.images": "Folder of the unlabeled images to adapt to.",
    "evaluation.images": "Folder of labeled target images, only for the IoU; may be omitted.",
    "evaluation.labels": "Folder of their labels, named like the images.",
    "classes": "",
    "method": "",
    **dict.fromkeys(("seed", "device", "precision", "gradient_accumulation_steps"), ""),
    **dict.fromkeys(("workers", "checkpoint_every", "evaluate_every"), ""),
}
"""Settings that the short help lists, with what to say of them in place of their description."""


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
        raise UsageError(how_to_begin(command))
    parser = _parser(command, SUMMARY[command])
    about = "recipe or TOML file; later ones override earlier ones"
    parser.add_argument("--config", nargs="*", action="append", default=[], metavar="NAME", help=about)
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("--help-all", action="store_true", help="list all settings")
    first, options = parser.parse_known_args(arguments)
    if [] in first.config:
        raise UsageError(
            "command line: --config: expected a recipe or a TOML file, got none; cpsl recipes lists recipes"
        )
    options_given = {option.partition("=")[0].lstrip("-").replace("-", "_") for option in options}
    layers = [*base, *(name for names in first.config for name in names)]
    settings = _read_layers(layers, Config(), given := set(options_given))
    if first.help_all:
        options = ["--help"]
    elif first.help:
        drawn = settings.target.dataset != "folder"  # images of its own, as those of the demo
        short = {
            name: about
            for name, about in SHORT_HELP.items()
            if not (drawn and name.endswith((".images", ".labels")))
        }
        _add_options(parser, Config, settings, short)
        parser.print_help()
        raise SystemExit(0)
    else:
        check_options(Config, options, command)
    if "NO_COLOR" in os.environ:
        tyro._experimental_options["ansi_codes"] = False
    settings = tyro.cli(Config, args=options, prog=f"cpsl {command}", default=settings)
    _check_read(settings, options_given, "command line")
    if "classes" not in given:
        _refuse_unnamed_classes(settings)
    return choose_sizes(check(settings, "command line"), given)


def _refuse_unnamed_classes(settings: Config) -> None:
    """Refuses labels in folders whose classes nothing names: the default is for data sets of streets."""
    for domain in (*settings.sources, settings.evaluation):
        if domain.dataset == "folder" and domain.labels is not None:
            raise UsageError(
                f"classes must name the classes in {domain.labels}, in the order of their indices, such as "
                'classes = ["road", "car"] at the top of the file; classes = ["cityscapes-19"] if the labels '
                "are train ids of Cityscapes"
            )


def parse_arguments(kind: type[S], arguments: Sequence[str], command: str, default: S | None = None) -> S:
    """Returns the options of a command.

    Args:
        kind: Dataclass of the options; its docstring is the summary of the help.
        arguments: Command line without the name of the command.
        command: Name of the command.
        default: Values of the options that are not given; those of the dataclass if omitted.

    Raises:
        UsageError: Options are missing, unknown, of another type, or out of range.
        SystemExit: Help was asked for.
    """
    missing = [] if default is not None else _required(kind)
    if {"-h", "--help", "--help-all"} & set(arguments):
        parser = _parser(command, str(inspect.getdoc(kind)))
        parser.add_argument("-h", "--help", action="store_true", help="show this help")
        _add_options(parser, kind, default, required=_required(kind))
        parser.print_help()
        raise SystemExit(0)
    if missing and not arguments:
        raise UsageError(how_to_use(command, [spell(name) for name in missing]))
    check_options(kind, arguments, command, missing)
    chosen = tyro.cli(
        kind,
        args=arguments,
        prog=f"cpsl {command}",
        default=tyro.MISSING_NONPROP if default is None else default,
    )
    return check(chosen, "command line")


class CommandParser(ArgumentParser):
    """Options of a command without settings: mistakes raise UsageError, with an example."""

    def __init__(self, command: str, summary: str) -> None:
        super().__init__(
            f"cpsl {command}",
            description=fill(summary, 78),
            epilog=examples(command),
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"command line: {message}\nFor example: {EXAMPLES[self.command][0]}")


def _required(kind: Any) -> list[str]:
    """Returns the fields of a dataclass without a default."""
    return [
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    ]


def _parser(command: str, summary: str) -> ArgumentParser:
    end = examples(command) if command in EXAMPLES else ""
    if command in RUNS:
        end = f"cpsl {command} --help-all lists all settings, docs/your_data.md explains files.\n\n{end}"
    return ArgumentParser(
        f"cpsl {command}",
        "%(prog)s [OPTIONS]",
        fill(summary, 78),
        end.replace("%", "%%"),
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )


def _add_options(
    parser: ArgumentParser,
    kind: type,
    settings: Any,
    texts: Mapping[str, str] | None = None,
    required: Sequence[str] = (),
) -> None:
    """Adds options to the help of a parser, with their values or else their defaults.

    `texts` has the names of some options, and texts in place of their descriptions, if not empty.
    """
    known = options_of(kind)
    for name, text in (texts or dict.fromkeys(known, "")).items():
        entry = known[name]
        value = entry.get("default") if settings is None else attrgetter(name)(settings)
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        shown = "" if value is None or value is False or value in ("", {}) else f" [{value}]"
        if name in required:
            shown = " (required)"
        values, about = values_of(entry), f"{text or entry['description']}{shown}".replace("%", "%%")
        if values.is_switch:
            parser.add_argument(spell(name), action="store_true", help=about)
        else:
            parser.add_argument(spell(name), metavar=values.metavar, help=about)
