import ast
import inspect
import itertools
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import distill
import evaluate
import warmup
from config import Config, parse, to_toml

CONFIG_FOLDER = Path(__file__).parents[2] / "examples" / "configs"
# The others are laid over one of these.
OVERLAYS = {"cpu", "release", "one_gpu_16gb", "one_gpu_24gb", "one_gpu_80gb"}
CONFIGS = sorted(path for path in CONFIG_FOLDER.glob("*.toml") if path.stem not in OVERLAYS)
MINIMAL = ["--output", "r", "--source.images", "a", "--target.images", "b"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_of_settings_is_read(path: Path) -> None:
    config = parse(Config, ["--config", str(path)])
    assert config.source.given
    assert config.target.given


@given(
    ids=st.dictionaries(st.integers(0, 300), st.integers(0, 18), max_size=5),
    classes=st.lists(st.text("abc äö'\"", min_size=1, max_size=8), min_size=1, max_size=4),
    palette=st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=4),
    rate=st.floats(1e-6, 1),
    flag=st.booleans(),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, ids, classes, palette, rate, flag
) -> None:
    options = ["--self-label.learning-rate", repr(rate), "--warmup.freeze-batch-norm", str(flag)]
    options += ["--classes", *classes]
    options += ["--source.ids", *(str(n) for pair in ids.items() for n in pair)]
    options += ["--palette", *(str(n) for color in palette for n in color)]
    config = parse(Config, MINIMAL + options)
    assert config.source.ids == ids
    assert config.classes == tuple(classes)
    assert config.palette == tuple(palette)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert parse(Config, ["--config", str(path)]) == config


@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
@pytest.mark.parametrize("recipe", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_overlays_are_laid_over_recipes(recipe: str, overlay: str) -> None:
    files = [str(CONFIG_FOLDER / f"{name}.toml") for name in (recipe, overlay)]
    config = parse(Config, ["--config", files[0], "--config", files[1]])
    assert config != parse(Config, ["--config", files[0]])


def test_what_a_later_file_says_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(
        'output = "x"\n[source]\nimages="a"\n[target]\nimages="b"\n[warmup]\niterations = 1'
    )
    second.write_text("[warmup]\niterations = 2\nbatch_size = 8")
    both = ["--config", str(first), "--config", str(second)]
    config = parse(Config, both)
    assert (config.warmup.iterations, config.warmup.batch_size) == (2, 8)
    assert parse(Config, [*both, "--warmup.iterations", "3"]).warmup.iterations == 3
    assert parse(Config, both[2:] + both[:2]).warmup.iterations == 1


def keys(table: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in table.items():
        found += keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def test_the_release_is_a_file_in_which_each_setting_departs_from_the_paper() -> None:
    recipe, release = CONFIG_FOLDER / "gta5_to_cityscapes.toml", CONFIG_FOLDER / "release.toml"
    paper = parse(Config, ["--config", str(recipe)])
    both = parse(Config, ["--config", str(recipe), "--config", str(release)])
    page = (CONFIG_FOLDER.parents[1] / "docs" / "fidelity.md").read_text()
    for key in keys(tomllib.loads(release.read_text())):
        here, there = paper, both
        for part in key.split("."):
            here, there = getattr(here, part), getattr(there, part)
        assert here != there or key == "distill.output_norm", key
        assert key.split(".")[-1] in page, key


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'output = "x"\n[self_label]\niterations = 5\n[source]\nimages="a"\n[target]\nimages="b"'
    )
    config = parse(Config, ["--config", str(path), "--self-label.iterations", "7"])
    assert config.self_label.iterations == 7
    assert config.output == Path("x")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "[self_label]\niteration = 5",
            "self_label.iteration; did you mean self_label.iterations?",
        ),
        ("[self_labels]\niterations = 5", "did you mean self_label.iterations?"),
        ('[sorce]\nimages = "a"', "did you mean source.images?"),
        ("crop = [4, 8]", "there is no setting crop; did you mean views.crop?"),
        ("[model]\ncompile = true", "there is no setting model.compile; did you mean compile?"),
        ("frobnicate = 1", "there is no setting frobnicate"),
        ("self_label = 5", "self_label = 5: it is a table, [self_label]"),
        (
            '[self_label]\niterations = "many"',
            "self_label.iterations = 'many': expected whole number",
        ),
        ("[self_label]\niterations = 1.5", "self_label.iterations = 1.5: expected whole number"),
        ("[warmup]\nfreeze_batch_norm = 1", "warmup.freeze_batch_norm = 1: expected true or false"),
        ("[warmup]\nmomentum = true", "warmup.momentum = True: expected number"),
        ('[warmup]\noptimizer = "adam"', 'expected "sgd" or "adamw"'),
        (
            "[views]\ncrop = [1, 2, 3]",
            "views.crop = [1, 2, 3]: expected [whole number, whole number]",
        ),
        ('classes = "road"', "classes = 'road': expected [text, ...]"),
        ("palette = [[1, 2]]", "palette = [[1, 2]]: expected [[whole number,"),
        ("[source]\nids = { road = 1 }", "source.ids = {'road': 1}: expected { whole number ="),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "mistaken.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as error:
        parse(Config, ["--config", str(path)])
    assert str(error.value).startswith(f"{path}: ")
    assert wanted in str(error.value)


def test_all_mistakes_in_a_file_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mistaken.toml"
    path.write_text('sede = 1\ndevice = "cpu"\n[views]\nwidth = "wide"')
    with pytest.raises(SystemExit) as error:
        parse(Config, ["--config", str(path)])
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_what_is_missing_is_said_with_the_files_that_were_read(tmp_path: Path, capsys) -> None:
    path = tmp_path / "short.toml"
    path.write_text('[source]\nimages = "a"')
    with pytest.raises(SystemExit):
        parse(Config, ["--config", str(path)])
    told = capsys.readouterr()
    assert "--output" in told.out + told.err
    assert "short.toml" in told.out + told.err


def test_hyphens_in_a_file_are_the_command_lines(tmp_path: Path) -> None:
    path = tmp_path / "hyphens.toml"
    path.write_text("[self-label]\nbank-size = 5\nlearning-rate = 1")
    config = parse(Config, [*MINIMAL, "--config", str(path)])
    assert (config.self_label.bank_size, config.self_label.learning_rate) == (5, 1)


def test_mistakes_on_the_command_line_are_named(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(Config, [*MINIMAL, "--self-label.iteration", "5"])
    told = capsys.readouterr()
    assert "--self-label.iterations" in told.out + told.err


def test_a_file_of_settings_can_be_named_with_an_equals_sign() -> None:
    path = CONFIGS[0]
    assert parse(Config, [f"--config={path}"]) == parse(Config, ["--config", str(path)])


@pytest.mark.parametrize("content", [None, b"output = ", b"\xff\xfe"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"broken\.toml"):
        parse(Config, ["--config", str(path)])


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_left_out_where_they_are_not_wanted(capsys, monkeypatch, no_color: str) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(SystemExit):
        parse(Config, ["--help"])
    assert ("\x1b[" in capsys.readouterr().out) == (not no_color)


def test_help_says_what_each_option_is(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(Config, ["--help"])
    told = capsys.readouterr().out
    for text in (
        "--self-label.temperature",
        "Of the softmax over cosines",
        "--source.root",
        "--config FILE",
    ):
        assert text in told


def dataclasses_of(kind: type) -> set[type]:
    hints = get_type_hints(kind)
    inner = (hint for hint in hints.values() if is_dataclass(hint))
    return {kind}.union(*(dataclasses_of(hint) for hint in inner))


@pytest.mark.parametrize(
    "kind",
    sorted(
        set[type]().union(
            *map(dataclasses_of, (Config, warmup.Arguments, distill.Arguments, evaluate.Arguments))
        ),
        key=lambda kind: (kind.__module__, kind.__name__),
    ),
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_every_setting_says_what_it_is_in_one_line(kind: type) -> None:
    assert kind.__doc__
    body = ast.parse(inspect.getsource(kind)).body[0].body
    documented = {
        before.target.id: after.value.value
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    hints = get_type_hints(kind)
    for field in fields(kind):
        text = documented.get(field.name)
        if text is None and is_dataclass(hints[field.name]):
            continue  # the description of its class stands for it
        assert text, f"{kind.__name__}.{field.name} has no description"
        # The help would break a second line in the middle of a sentence.
        assert "\n" not in text, field.name
        if {"size", "width", "crop"} & set(
            field.name.split("_")[-1:]
        ) and "batch" not in field.name:
            said = f"{kind.__doc__} {text}".lower()
            assert "pixel" in said or "channel" in said, f"{field.name}: in which unit?"
