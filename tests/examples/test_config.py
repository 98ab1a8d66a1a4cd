import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Config, parse, to_toml

CONFIG_FOLDER = Path(__file__).parents[2] / "examples" / "configs"
# The others are laid over one of these.
OVERLAYS = {"release", "one_gpu_16gb", "one_gpu_24gb", "one_gpu_80gb"}
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
