import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, with_config

from cpsl.app.command_line import parse as parse_run
from cpsl.app.command_line import parse_arguments, read_layers
from cpsl.app.config import Config
from cpsl.app.settings import UsageError, override, read_toml, schema, to_toml

Byte = Annotated[int, Field(ge=0, le=255)]
Pixels = Annotated[int, Field(ge=16)]


@dataclass(frozen=True)
class Stage:
    """A stage."""

    iterations: Annotated[int, Field(ge=1)] = 10
    """Number of steps."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    name: Literal["sgd", "adamw"] = "sgd"
    freeze: bool = True


@with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))
@dataclass(frozen=True)
class Run:
    """A run."""

    output: Path = Path("run")
    seed: int = 0
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[Byte, Byte, Byte], ...] = ()
    crop: tuple[Pixels, Pixels] | None = None
    ids: dict[int, int] = field(default_factory=dict)
    debug: bool = False
    warm_up: Stage = field(default_factory=lambda: Stage(iterations=20))
    """The first stage."""


def parse(*words: str) -> Run:
    return parse_arguments(Run, words, "test")


def read(path: Path) -> Run:
    return override(Run(), read_toml(path), str(path))


@given(
    seed=st.integers(-(2**40), 2**40),
    ids=st.dictionaries(st.integers(-3, 300), st.integers(0, 18), max_size=5),
    classes=st.lists(st.text("abc äö'\"=", min_size=1, max_size=8), max_size=4),
    palette=st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=4),
    rate=st.floats(1e-6, 1),
    freeze=st.booleans(),
)
def test_command_line_and_file_agree(
    tmp_path_factory: pytest.TempPathFactory, seed, ids, classes, palette, rate, freeze
) -> None:
    words = ["--output", "r", "--seed", str(seed), "--classes", *classes, "--crop", "16", "32"]
    words += ["--warm-up.rate", repr(rate), "--ids", *(str(n) for pair in ids.items() for n in pair)]
    words += ["--palette", *(str(n) for color in palette for n in color)]
    words += ["--warm-up.freeze" if freeze else "--warm-up.no-freeze"]
    run = parse(*words)
    stage = Stage(iterations=20, rate=rate, freeze=freeze)
    classes, palette = tuple(classes), tuple(palette)
    assert run == Run(Path("r"), seed, classes, palette, (16, 32), ids, False, stage)
    path = tmp_path_factory.mktemp("settings") / "a.toml"
    path.write_text(to_toml(run), encoding="utf-8")
    assert read(path) == run


def test_options_have_several_spellings() -> None:
    assert parse("--output=a b", "--seed=-3").seed == -3
    assert parse("--warm_up.no-freeze") == parse("--warm-up.no_freeze")
    assert parse("--output=-x").output == Path("-x")
    assert parse("--warm-up.rate=0.5", "--classes", "a", "b").classes == ("a", "b")
    assert parse("--output", "a", "--seed", "1", "--seed", "2").seed == 2


def test_hyphens_and_a_byte_order_mark_are_accepted_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('output = "r"\n[warm-up]\niterations = 5\n', encoding="utf-8-sig")
    assert read(path).warm_up.iterations == 5


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        ("[warm_up]\niteration = 5", "warm_up.iteration", "warm_up.iterations"),
        ("[warmup]\niterations = 5", "warmup", "warm_up"),
        ("[sorce]", "sorce", ""),
        ("[warm_up]\n1-2 = 3", "warm_up.1-2", ""),
        ("rate = 1.0", "rate", "warm_up.rate"),
        ("warm_up = 5", "warm_up", "5"),
        ('[warm_up]\niterations = "many"', "warm_up.iterations", "whole number.*many"),
        ("[warm_up]\niterations = 1.5", "warm_up.iterations", "whole number.*1.5"),
        ("[warm_up]\niterations = true", "warm_up.iterations", "whole number.*true"),
        ("[warm_up]\niterations = 0", "warm_up.iterations", "1.*0"),
        ("[warm_up]\nrate = 0", "warm_up.rate", "0"),
        ("[warm_up]\nrate = true", "warm_up.rate", "number.*true"),
        ("[warm_up]\nrate = nan", "warm_up.rate", "nan"),
        ("[warm_up]\nfreeze = 1", "warm_up.freeze", "true or false.*1"),
        ('[warm_up]\nname = "adam"', "warm_up.name", "sgd.*adamw.*adam"),
        ("crop = [16, 32, 48]", "crop", "2 values"),
        ("crop = [15, 32]", "crop", "16.*15"),
        ('classes = "road"', "classes", "road"),
        ("palette = [[1, 2]]", "palette", "2"),
        ("palette = [[1, 2, 256]]", "palette", "255.*256"),
        ("ids = { road = 1 }", "ids", "road.*whole number"),
        ("output = 1979-05-27T07:32:00Z\nseed = 1979-05-27", "seed", "1979"),
        ("seed = 1\nseed-= 2", "seed", ""),
        ("[warm-up]\nrate = 1\n[warm_up]\nrate = 2", "warm_up", "twice"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, name: str, hint: str) -> None:
    path = tmp_path / "mistaken.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"mistaken\.toml.*{name}.*{hint}"):
        read(path)


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "mistaken.toml"
    path.write_text('sede = 1\n[warm_up]\nrate = "high"')
    with pytest.raises(UsageError, match="sede") as error:
        read(path)
    assert "warm_up.rate" in str(error.value)
    with pytest.raises(UsageError, match=r"crop\.0") as error:
        parse("--crop", "1", "16", "--warm-up.rate", "0")
    assert "warm_up.rate" in str(error.value)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--warm-up.iteration", "5"], "--warm-up.iterations"),
        (["--crop", "16"], "crop"),
        (["--crop", "16", "x"], "crop"),
        (["--ids", "1", "2", "3"], "ids"),
        (["--palette", "1", "2"], "palette"),
        (["--seed"], "seed"),
        (["--seed", "1", "2"], "2"),
        (["--debug", "true"], "true"),
        (["--debug=1"], "1"),
        (["--warm-up", "1"], "--warm-up"),
        (["--no-seed"], "--no-seed"),
        (["word"], "word"),
        (["--warm-up.name", "adam"], "--warm-up.name"),
    ],
)
def test_a_mistake_in_options_is_named(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert named in f"{capsys.readouterr().err}{ended.value.code}"


@pytest.mark.parametrize("content", [None, b"output = ", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.toml"):
        read_toml(path)


@given(st.lists(st.text("abcxUntr019 ", min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_paths_of_windows_in_double_quotes_are_refused_with_the_line_to_write(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], at_end: bool
) -> None:
    folder, path = tmp_path_factory.mktemp("windows"), "C:\\" + "\\".join(names) + "\\" * at_end
    file = folder / "a.toml"
    file.write_text(f'[target]\nimages = "{path}"', encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.toml") as refused:
        parse_run(["--config", str(file)])
    if "TOML: " not in str(refused.value):  # all are valid escapes, of tabs and line breaks
        assert "target.images" in str(refused.value)
        assert "single quotes" in str(refused.value)
        return
    _, line, advice = str(refused.value).split("\n")
    assert line.strip() == f'images = "{path}"'
    assert tomllib.loads(advice.partition(" or: ")[2]) == {"images": path}


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("images = “source/images”", 'images = "source/images"'),
        ("images = ‘source/images’  # here", "images = 'source/images'  # here"),
        ("images = source/images", 'images = "source/images"'),
        ("images = ../source # here", 'images = "../source"'),
        ("images = C:\\Users\\me", "images = 'C:\\Users\\me'"),
        ("classes = [traffic light, car]", 'classes = ["traffic light", "car"]'),
        ("ids = { 7 = road, 8 = 255 }", 'ids = { 7 = "road", 8 = 255 }'),
        ("debug = True", "debug = true"),
        ('images = "source/images', 'a " is missing'),
    ],
)
def test_the_line_of_an_error_is_shown_with_the_one_that_is_meant(
    tmp_path: Path, line: str, meant: str
) -> None:
    (tmp_path / "a.toml").write_text(f"seed = 3\n  {line}\nworkers = 0", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.toml") as refused:
        read_toml(tmp_path / "a.toml")
    _, shown, advice = str(refused.value).split("\n")
    assert shown.strip() == line
    assert advice.endswith(meant)


def test_numbers_that_are_no_toml_get_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("crop = [010, .5]")
    with pytest.raises(UsageError, match=r"a\.toml") as refused:
        read_toml(tmp_path / "a.toml")
    assert str(refused.value).split("\n")[1:] == ["    crop = [010, .5]"]


def test_the_home_folder_is_found_in_settings_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # of Windows
    tables = '[source]\nimages = "~/a"\n[online]\nstart = "~/w.pth"\n[init_from]\nwarmup = "~x/w.pth"'
    (tmp_path / "a.toml").write_text(tables)
    config = parse_run(["--config", "~/a.toml", "--target.images=~/b", "--model.weights", "~/c"])
    assert config.source.images == tmp_path / "a"
    assert config.target.images == tmp_path / "b"
    assert config.model.weights == tmp_path / "c"
    assert config.online.start == str(tmp_path / "w.pth")
    assert config.init_from.warmup == Path("~x/w.pth")


def test_descriptions_and_defaults_are_known() -> None:
    assert schema(Run)["warm_up.iterations"]["description"] == "Number of steps."
    assert schema(Run)["warm_up"]["description"] == "The first stage."
    assert schema(Run)["debug"]["default"] is False


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "settings.toml"
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path.write_bytes(f'{mark}output = "run"\nclasses = ["straße"]\n'.encode(encoding, "ignore"))
    with pytest.raises(UsageError, match="UTF-8") as refused:
        read_toml(path)
    assert str(path) in str(refused.value)
    if encoding.startswith("utf-16"):
        assert "UTF-16" in str(refused.value)
    else:
        assert "line 2" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--seed abc", ["--seed", "whole number", "'abc'"]),
        ("--seed=1.5", ["--seed", "'1.5'"]),
        ("--views.crop 16 x", ["--views.crop", "2 whole numbers", "'x'"]),
        ("--views.full-size a b", ["--views.full-size", "'a'", "'b'"]),
        ("--self-label.temperature warm", ["--self-label.temperature", "a number", "'warm'"]),
        ("--warmup.optimizer.learning_rate 1e-", ["--warmup.optimizer.learning_rate", "'1e-'"]),
    ],
)
def test_an_option_that_is_no_number_is_named(options: str, names: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_run(["--output", "run", *options.split()])
    assert all(name in str(refused.value) for name in names)
    assert "literal" not in str(refused.value)


def test_numbers_of_all_forms_are_accepted() -> None:
    words = "--seed -3 --views.evaluation-size None --views.crop 16 32 --self-label.temperature 1e-2"
    assert parse_run(["--output", "run", *words.split()]).self_label.temperature == 0.01


PATHS = [name for name in schema(Config) if name.partition(".")[2] in ("images", "labels", "root", "cache")]


@pytest.mark.parametrize("name", ["output", "model.weights", "init_from.online", "source[0].labels", *PATHS])
def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, name: str) -> None:
    """Neither in a file, nor as an option, such as a variable of the shell that is not set."""
    table, bracket, key = name.partition("[0].")
    file = tmp_path / "a.toml"
    file.write_text(f'[[{table}]]\n{key} = ""' if bracket else f'{name} = ""', encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{key or name}: .*a path.*got"):
        read_layers([str(file)])
    if not bracket:
        with pytest.raises(UsageError, match=r": .*a path.*got"):
            parse_run([f"--{name.replace('_', '-')}", ""])


@pytest.mark.parametrize("name", schema(Config))
def test_an_empty_text_is_a_mistake_or_a_value(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'{name} = ""', encoding="utf-8")
    with suppress(UsageError):
        read_layers([str(file)])
