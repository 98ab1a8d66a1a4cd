"""`cpsl` as a whole: its help, its mistakes, its exit codes."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cpsl.__main__ as command
from app.conftest import Run
from app.tiny import ENVIRONMENT, cpsl
from cpsl import __version__
from cpsl.app.command_line import recipe_names
from cpsl.app.usage import EXAMPLES


def assert_fits_a_terminal(text: str, lines: int) -> None:
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= lines


def test_help_fits_a_screen() -> None:
    for words in ([], ["--help"], ["-h"]):
        ended = cpsl(*words)
        assert ended.code == 0
        assert_fits_a_terminal(ended.text, 24)
        assert all(name in ended.text for name in command.COMMANDS)
    assert cpsl("--version").text == f"cpsl {__version__}\n"


@pytest.mark.parametrize("name", command.COMMANDS)
def test_each_command_has_a_short_help_of_its_own_options(name: str) -> None:
    ended = cpsl(name, "--help")
    assert ended.code == 0
    assert_fits_a_terminal(ended.text, 60)
    assert "\nexamples:\n" in ended.text
    assert ("--help-all" in ended.text) == (name in ("adapt", "check", "demo"))
    assert f"usage: cpsl {name}" in ended.text
    if name in ("evaluate", "predict", "export"):
        assert "--self-label" not in ended.text


def test_the_help_of_a_run_lists_all_settings_on_request() -> None:
    short, long = cpsl("adapt", "--help").text, cpsl("adapt", "--help-all").text
    assert "--self-label.temperature" not in short
    assert "--self-label.temperature" in long
    assert_fits_a_terminal(long, 620)


@pytest.mark.parametrize("name", ["check", "predict", "export", "report"])
def test_commands_of_one_process_refuse_several(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(variable, "2" if variable == "WORLD_SIZE" else "1")
    words = {
        "check": ["--config", "miniature"],
        "predict": ["--weights", "a.pt", "--input", "a", "--output", "b"],
        "export": ["--weights", "a.pt", "--output", "a.onnx"],
        "report": ["run"],
    }
    ended = cpsl(name, *words[name])
    assert ended.code == 1
    assert f"cpsl {name}" in ended.text
    assert "torchrun" in ended.text
    assert not list(tmp_path.iterdir())


def test_help_shows_the_values_of_the_recipe() -> None:
    assert "[runs/demo]" in cpsl("demo", "--help").text
    assert "(default: lite0)" in cpsl("adapt", "--config", "cpu", "--help-all").text
    assert "(default: deeplabv2:resnet101)" in cpsl("adapt", "--help-all").text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["adpt"], "did you mean adapt?"),
        (["adapt", "--confg", "cpu"], "did you mean --config?"),
        (["adapt", "--config", "cpuu"], "did you mean cpu?"),
        (["adapt", "--config", "cpu", "--output", ""], "--output: expected a path, got ''"),
        (["adapt"], "cpsl demo"),
        (["check"], "cpsl demo"),
        (["adapt", "--check"], "--check"),
        (["adapt", "--output", "r", "--views.crop", "5"], "2 whole numbers, got '5'"),
        (["adapt", "--output", "r", "--seed"], "a whole number, got none"),
        (["adapt", "--output", "r", "--method", "papers"], "did you mean paper?"),
        (["adapt", "--output", "r", "--no-seed"], "--no-seed"),
        (["evaluate", "--weights"], "--weights: expected a path, got none"),
        (["predict", "--weights", "a", "--input", "b", "--output", "c", "--write", "color"], "colors"),
        (["adapt", "settings.toml"], "settings.toml"),
        (["adapt", "--config"], "--config"),
        (["adapt", "--config", "no_recipe"], "no_recipe"),
        (["adapt", "--config", "no_file.toml"], "no_file.toml"),
        (["adapt", "--output", "r", "--self-label.iteration", "5"], "--self-label.iterations"),
        (["adapt", "--output", "r", "--warmup.iterations", "-5"], "warmup.iterations"),
        (["adapt", "--output", "r", "--seed", "many"], "seed"),
        (["adapt", "--output", "r", "--compile", "True"], "True"),
        (["evaluate", "--weights", "model.pt", "--sizes", "1"], "--sizes"),
        (["evaluate"], "--weights"),
        (["predict", "--weights", "model.pt"], "--input"),
        (["predict", "--flip", "yes"], "yes"),
        (["export", "--weights", "a", "--output", "b", "--size", "5", "7"], "size"),
        (["recipes", "no_recipe"], "no_recipe"),
        (["report", "run", "another"], "another"),
        (["predict", "photo.png"], "photo.png"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cpsl(*words)
    assert ended.code == 2
    assert named in ended.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(set(command.COMMANDS) - {"demo", "recipes"}))
def test_a_command_without_arguments_says_how_to_begin(name: str) -> None:
    ended = cpsl(name)
    assert ended.code == 2
    assert "usage:" not in ended.text
    assert f"cpsl {name} needs " in ended.text
    assert re.search(rf"^  cpsl {name} \S", ended.text, re.MULTILINE)  # a whole command
    assert_fits_a_terminal(ended.text, 24)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_an_unknown_option_is_named_without_a_usage_line(name: str) -> None:
    ended = cpsl(name, "--frobnicate")
    assert ended.code == 2
    assert "--frobnicate" in ended.text
    assert "usage:" not in ended.text


@pytest.mark.parametrize("line", [*EXAMPLES["recipes"], *EXAMPLES["report"]])
def test_the_examples_of_recipes_and_report_are_valid(line: str) -> None:
    ended = cpsl(*line.partition(" > ")[0].split()[1:])
    if "report" in line:  # there is no such run
        assert "runs/my is not a run" in ended.text
    else:
        assert ended.code == 0


def test_recipes_are_listed_and_printed() -> None:
    listed = cpsl("recipes").text
    assert_fits_a_terminal(listed, 24)
    assert [line.split()[0] for line in listed.splitlines()] == recipe_names()
    assert 'base = "cpu"' in cpsl("recipes", "demo").text


def test_a_recipe_is_completed_to_settings_of_the_same_meaning(tmp_path: Path) -> None:
    complete = tmp_path / "complete.toml"
    complete.write_text(cpsl("recipes", "demo", "--complete").text, encoding="utf-8")
    assert "temperature = 0.08" in complete.read_text(encoding="utf-8")
    again = cpsl("adapt", "--config", complete, "--help-all").text
    assert again.split("\n\n", 2)[2] == cpsl("demo", "--help-all").text.split("\n\n", 2)[2]


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "tomli_w" else find_spec(name))
    ended = cpsl("adapt", "--config", "demo")
    assert ended.code == 1
    assert "tomli_w" in ended.text
    assert "pip install 'cpsl[train]'" in ended.text


def test_a_run_is_resumed_by_its_own_settings(finished: Run) -> None:
    ended = cpsl("adapt", "--config", finished.folder / "config.toml")
    assert ended.code == 0, ended.text
    assert ended.text.count("already finished") == 6


@pytest.mark.parametrize(
    ("started", "before", "expected"),
    [
        ("/bin/cpsl", None, "PASSIVE 300"),
        ("-m", None, "PASSIVE 300"),
        ("cpsl", "ACTIVE", "ACTIVE None"),
        ("cpsl", "PASSIVE", "PASSIVE None"),
        ("script.py", None, "None None"),
        ("", None, "None None"),
    ],
)
def test_waiting_threads_of_the_command_leave_the_cores_to_others(
    started: str, before: str | None, expected: str
) -> None:
    """The variables are set before torch is loaded, by the command and not by the library."""
    code = f"""
import os, sys
sys.argv = [{started!r}]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Finder())
import cpsl
"""
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in waiting}
    if before is not None:
        environment["OMP_WAIT_POLICY"] = before
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert done.stdout == f"{expected}\n"
