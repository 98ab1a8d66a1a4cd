"""The command that repeats a run whose stages had few steps, with more."""

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from cpsl.app.command_line import parse, read_layers, recipe
from cpsl.app.comparable import SHORTEST
from cpsl.app.config import PREVIOUS, Config
from cpsl.app.options import spell
from cpsl.app.run_record import read_sessions
from cpsl.app.stages import trained_stages


@cache
def recipe_steps(stage: str, name: str = "cpu") -> int:
    """Returns the steps of a stage in a recipe; those of `cpu` are the fewest for images of one's own.

    Example:
        >>> recipe_steps("online"), recipe_steps("online", "demo")
        (1000, 240)
    """
    return read_layers([str(recipe(name))]).settings_of(stage).iterations


def usual_steps(steps: Mapping[str, int], name: str = "cpu", least: int = 0) -> dict[str, int]:
    """Returns the steps in a recipe of the stages that have fewer than half of them, or fewer than `least`.

    Example:
        >>> usual_steps({"source_only": 500, "online": 150})
        {'online': 1000}
    """
    usual = {stage: recipe_steps(stage, name) for stage in steps}
    return {stage: count for stage, count in usual.items() if steps[stage] < max(count / 2, least)}


def lacking_steps(config: Config) -> dict[str, int]:
    """Returns the usual steps of the stages that were trained in far fewer."""
    steps = {stage: config.settings_of(stage).iterations for stage in trained_stages(config)}
    return usual_steps(steps, "demo" if config.target.streets else "cpu", SHORTEST)


def short_stages(config: Config) -> dict[str, int]:
    """Returns the steps of the stages that were trained too short for their results to mean anything."""
    steps = {stage: config.settings_of(stage).iterations for stage in trained_stages(config)}
    return {stage: count for stage, count in steps.items() if count < SHORTEST}


def longer_run(config: Config) -> str:
    """Returns the command, without the program's name, of a longer run; "" if no stage had few steps.

    It is what was typed, without a small number of steps and with another folder. Stages whose files of
    settings have few steps get those of a recipe. If the files have gone, it names the run's own.
    """
    if not (few := lacking_steps(config)):
        return ""
    sessions = read_sessions(config.output)
    typed = [shlex.split(session.command)[1:] for session in sessions[-1:]]
    dropped = {"--output", *map(_option, few)}
    name = f"{config.output}_longer" if config.output.name else "longer"
    for command, *options in [*typed, ["adapt", "--config", str(config.output / "config.toml")]]:
        words = _without(options, dropped)
        try:
            again = parse(words, command, (str(recipe("demo")),) if command == "demo" else ())
        except SystemExit:  # a file has gone
            continue
        for option, count in {_option(stage): usual for stage, usual in lacking_steps(again).items()}.items():
            words += [option, str(count)]
        return shlex.join([command, *words, "--output", Path(name).as_posix()])
    return ""


def _option(stage: str) -> str:
    return spell(f"{'distill' if stage in PREVIOUS else stage}.iterations")


def _without(words: list[str], dropped: set[str]) -> list[str]:
    """Returns the words of a command line without some options and their values.

    Example:
        >>> _without(["--seed", "1", "--output", "a", "--online.iterations=9"], {"--output"})
        ['--seed', '1', '--online.iterations=9']
    """
    kept, rest = list[str](), iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name.replace("_", "-") not in dropped:
            kept.append(word)
        elif not equals:
            next(rest, None)  # the value
    return kept
