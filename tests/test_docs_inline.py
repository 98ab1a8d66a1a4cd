"""Code within the sentences of the documentation is right: options, commands and names exist."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

from cpsl.__main__ import COMMANDS
from cpsl.app import evaluate, export, predict
from cpsl.app.config import Config
from cpsl.app.options import options_of, spell

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
SETTINGS = (Config, evaluate.Arguments, export.Arguments, predict.Arguments)
SCRIPTS = [
    path
    for folder in ("benchmarks", "cpsl/app", "docs", "tests/robustness")
    for path in (ROOT / folder).rglob("*.py")
]

OTHERS = {
    "torchrun": {"--max-restarts", "--nproc_per_node"},
    "Slurm": {"--gpus-per-node", "--gpus-per-task"},
    "Docker": {"--shm-size"},
    "tensorboard": {"--logdir"},
    "the authors' code": {"--no_resume", "--student_init"},
}
"""Options of other programs."""


@cache
def options() -> set[str]:
    """Returns all options of the commands, of the scripts and of other programs."""
    known = {spell(name) for kind in SETTINGS for name in options_of(kind)}
    written = {option for path in SCRIPTS for option in re.findall(r'"(--[a-z-]+)"', path.read_text())}
    return known.union(written, {"--help"}, *OTHERS.values())


def spans(page: Path) -> Iterator[str]:
    """Yields the code within the sentences of a page."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    yield from re.findall(r"`([^`\n]+)`", text)


def is_option(word: str) -> bool:
    """Returns whether a word such as `--seed` or `--output=DIR` is an option, or `--source.*` several."""
    name = word.partition("=")[0]
    if name.endswith("*"):
        return any(option.startswith(name[:-1]) for option in options())
    return name in options()


def mistake(span: str) -> str:
    """Returns what is wrong with a piece of code, "" if nothing is found."""
    words = span.split()
    if wrong := [word for word in words if word.startswith("--") and not is_option(word)]:
        return f"there is no option {wrong[0]}"
    if words[0] == "cpsl" and len(words) > 1 and words[1] not in {*COMMANDS, "--help", "--version"}:
        return f"there is no command {words[1]}"
    if words[0] == "make" and len(words) > 1 and f"\n{words[1]}:" not in (ROOT / "Makefile").read_text():
        return f"there is no target {words[1]}"
    if re.fullmatch(r"cpsl(\.\w+)+", span) and not span.endswith((".py", ".toml")):
        try:
            resolve_name(span)
        except (ImportError, AttributeError) as error:
            return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_commands_and_names_in_the_text_exist(page: Path) -> None:
    assert not {span: found for span in spans(page) if (found := mistake(span))}


@pytest.mark.parametrize(
    "span",
    ["--trace-nonfinite", "--init-from.warm-up FILE", "cpsl train", "make nothing", "cpsl.training.Nothing"],
)
def test_mistakes_in_the_text_are_detected(span: str) -> None:
    assert mistake(span)
