"""Options of the command line: every mistake names the option, its value and what is expected."""

import shlex
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tiny import cpsl
from cpsl.app.command_line import parse, parse_arguments
from cpsl.app.config import Config
from cpsl.app.options import ELSEWHERE, RUNS, check_options, options_of, spell, values_of
from cpsl.app.settings import UsageError
from cpsl.app.usage import BEGIN, EXAMPLES, SMALLEST

OPTIONS = options_of(Config)


def kind_of(command: str) -> Any:
    return Config if command in RUNS else import_module(f"cpsl.app.{command}").Arguments


@given(st.sampled_from(sorted(OPTIONS)), st.integers(0, 5), st.sampled_from(["x", "", "1e", "-", "nan?"]))
def test_a_mistake_names_option_value_and_expectation(name: str, count: int, word: str) -> None:
    """Any number of words that are neither numbers nor keywords; an empty one is no path."""
    values, words = values_of(OPTIONS[name]), [word] * count
    textual = {"string"} if word == "" else {"string", "path"}
    text = textual >= set(values.kinds) and not values.choices
    size = 2 if values.pairs else len(values.kinds)
    fits = count % size == 0 and count >= values.least if values.most is None else count == values.most
    if fits and (text or count == 0):
        check_options(Config, [spell(name), *words], "adapt")
        return
    with pytest.raises(UsageError) as refused:
        check_options(Config, [spell(name), *words], "adapt")
    message = str(refused.value)
    assert message.startswith(f"command line: {spell(name)}: ")
    assert "takes no value" in message or str(values) in message
    assert (word if count else "none") in message
    assert len(message.splitlines()) == 1


LISTS = [
    (command, name)
    for command in ("adapt", "evaluate", "predict", "export")
    for name, entry in options_of(kind_of(command)).items()
    if values_of(entry).most is None
]


@pytest.mark.parametrize(("command", "name"), LISTS)
def test_a_list_without_values_is_refused_unless_it_may_be_empty(command: str, name: str) -> None:
    may_be_empty = name == "palette" or name.endswith("ids")
    if may_be_empty:
        check_options(kind_of(command), [spell(name)], command)
        return
    with pytest.raises(UsageError, match=f"{spell(name)}: .*none"):
        check_options(kind_of(command), [spell(name)], command)


@given(st.sampled_from(sorted(OPTIONS)), st.data())
def test_a_misspelled_option_is_named_with_one_that_exists(name: str, data: st.DataObject) -> None:
    if len(name) < 8:
        return
    place = data.draw(st.integers(2, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    if wrong in OPTIONS:
        return
    with pytest.raises(UsageError, match="there is no such option") as refused:
        check_options(Config, [spell(wrong), "1"], "adapt")
    assert spell(wrong) in str(refused.value)
    assert "did you mean --" in str(refused.value)


@pytest.mark.parametrize("option", ["--source.size", "--target.size", "--more-sources"])
def test_settings_of_files_are_no_options(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option}: there is no such option"):
        parse([option, "16", "16"])


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(UsageError) as refused:
        parse(["word", "--seed", "x", "--views.crop", "1", "--nothing-like-this", "--compile", "yes"])
    assert len(str(refused.value).splitlines()) == 5


@dataclass
class Inputs:
    images: Path = Path()
    """Folder of images."""


@dataclass
class More(Inputs):
    flip: bool = False
    """Average over the image and
    its mirror image."""


def test_options_are_described_by_the_texts_below_their_fields() -> None:
    texts = {name: entry["description"] for name, entry in options_of(More).items()}
    assert texts == {"images": "Folder of images.", "flip": "Average over the image and its mirror image."}
    for command in ("evaluate", "predict", "export"):
        assert all(
            e["description"] for e in options_of(import_module(f"cpsl.app.{command}").Arguments).values()
        )


def read(command: str, options: list[str]) -> object:
    if command in RUNS:
        return parse(options, command, ("demo",) if command == "demo" else ())
    return parse_arguments(import_module(f"cpsl.app.{command}").Arguments, options, command)


COMMANDS = [
    *(line for name, lines in EXAMPLES.items() if name not in ("recipes", "report") for line in lines),
    *(line for line, _ in BEGIN),
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_help_are_valid(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_folders.toml").write_text(SMALLEST, encoding="utf-8")
    program, command, *options = shlex.split(line)
    assert program == "cpsl"
    assert read(command, options)


@pytest.mark.parametrize("command", ["adapt", "check"])
def test_a_run_without_options_says_how_to_begin(command: str) -> None:
    ended = cpsl(command)
    assert ended.code == 2
    assert max(map(len, ended.text.splitlines())) <= 80
    for line in (*(first for first, _ in BEGIN), *SMALLEST.splitlines()):
        assert line in ended.text
    assert set(tomllib.loads(SMALLEST)) == {"base", "output", "classes", "source", "target"}


@pytest.mark.parametrize("option", ["source.images", "source.labels", "target.images", "evaluation.labels"])
def test_folders_that_a_data_set_of_its_own_would_not_read_are_refused(option: str, tmp_path: Path) -> None:
    """The scenes of the demo are generated: images of someone's own would be left unread."""
    section, name = option.split(".")
    own = tmp_path / "own.toml"
    own.write_text(f'base = "demo"\n{option} = "pictures"\n')
    several = tmp_path / "several.toml"
    several.write_text(f'[[source]]\ndataset = "gta5"\n{name} = "pictures"\n')
    for arguments, where in [
        (["--config", "demo", f"--{option}", "pictures"], "command line"),
        (["--config", str(own)], str(own)),
        (["--config", str(several)], f"{several}: source 1"),
    ]:
        with pytest.raises(UsageError) as error:
            parse(arguments)
        assert where in str(error.value)
        assert f".{name} is" in str(error.value)
    # Whoever names another data set later no longer means the folders of the file before.
    own.write_text(f'{option} = "pictures"\n')
    settings = parse(["--config", str(own), f"--{section}.dataset", "gta5"])
    assert getattr(settings, section).dataset == "gta5"
    words = [f"--{option}", "pictures", f"--{section}.dataset", "folder", "--classes", "road"]
    settings = parse(["--config", "demo", *words])
    assert getattr(settings, section).dataset == "folder"


@pytest.mark.parametrize("word", ELSEWHERE)
def test_the_words_of_other_programs_lead_to_ours(word: str) -> None:
    with pytest.raises(UsageError) as error:
        check_options(Config, [f"{spell(word)}", "5"], "adapt")
    meant = [name.strip("?,") for name in str(error.value).split() if name.startswith("--")][1:]
    assert meant
    assert all(name.endswith(spell(ELSEWHERE[word])[2:]) for name in meant)
    assert len(meant) == 1 or {"--source-only", "--online"} <= {name.partition(".")[0] for name in meant}
