from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Config, parse, to_toml

CONFIGS = sorted(Path(__file__).parents[2].glob("examples/configs/*.toml"))
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
        ('output = "x"\n[self_label]\niteration = 5', "--self-label.iterations"),
        ('output = "x"\n[sorce]\nimages = "a"', "--source.images"),
        ('output = "x"\n[self_label]\niterations = "many"', "--self-label.iterations"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, capsys, text: str, wanted: str) -> None:
    path = tmp_path / "mistaken.toml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        parse(Config, ["--config", str(path)])
    told = capsys.readouterr()
    assert wanted in told.out + told.err
    assert "mistaken.toml" in told.out + told.err


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
