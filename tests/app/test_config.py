import re
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ConfigDict, TypeAdapter, with_config

from app.tiny import cpsl
from cpsl.app import evaluate, export, predict
from cpsl.app.command_line import RECIPES, parse, read_layers, recipe_names
from cpsl.app.config import METHODS, STAGES, Config
from cpsl.app.datasets import label_space
from cpsl.app.domain import Domain
from cpsl.app.settings import UsageError, override, schema, to_toml
from cpsl.app.stages import TRAINERS
from cpsl.app.titles import STAGE_TITLES

OVERLAYS = {"authors", "cpu", "gpu", "one_gpu_16gb", "one_gpu_24gb", "one_gpu_80gb"}

# CPSL (CVPR 2022), section 4.1 and the supplement; see docs/reproduce.md.
PAPER: dict[str, Any] = {
    "model.network": "deeplabv2:resnet101",
    "views.crop": (512, 896),
    "views.full_size": (1024, 2048),
    "views.width": 2200,
    "views.scale": (0.5, 1.5),
    "views.color_transfer": 1,
    "warmup.iterations": 90_000,
    "warmup.batch_size": 4,
    "warmup.optimizer.name": "sgd",
    "warmup.optimizer.learning_rate": 2.5e-4,
    "warmup.optimizer.head_multiplier": 10,
    "warmup.optimizer.momentum": 0.9,
    "warmup.optimizer.weight_decay": 2e-4,
    "warmup.adversarial_weight": 0.01,
    "warmup.discriminator_learning_rate": 1e-4,
    "self_label.iterations": 90_000,
    "self_label.batch_size": 4,
    "self_label.optimizer.name": "sgd",
    "self_label.optimizer.learning_rate": 1e-4,
    "self_label.optimizer.head_multiplier": 5,
    "self_label.optimizer.momentum": 0.9,
    "self_label.optimizer.weight_decay": 2e-4,
    "self_label.prototype_multiplier": 5,
    "self_label.temperature": 0.08,
    "self_label.epsilon": 0.05,
    "self_label.sinkhorn_iterations": 3,
    "self_label.bank_size": 65_536,
    "self_label.sampling": "class_proportional",
    "self_label.ce_weight": 0.1,
    "self_label.rce_weight": 1,
    "self_label.self_label_weight": 0.1,
    "self_label.consistency_weight": 5,
    "self_label.teacher_momentum": 0.999,
    "distill.iterations": 90_000,
    "distill.batch_size": 4,
    "distill.optimizer.name": "sgd",
    "distill.optimizer.learning_rate": 6e-4,
    "distill.optimizer.head_multiplier": 10,
    "distill.confidence_threshold": 0.95,
    "distill.distillation_weight": 1,
}


def value_of(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def leaves(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and key != "arguments" else {}
        found |= inner or {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("recipe", [None, "gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_the_numbers_are_those_of_the_paper(recipe: str | None) -> None:
    config = read_layers([recipe] if recipe else [])
    expected = PAPER | ({"views.color_transfer": 0} if recipe == "synthia_to_cityscapes" else {})
    assert {name: value_of(config, name) for name in expected} == expected


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - OVERLAYS))
def test_each_recipe_is_a_run(name: str) -> None:
    config = parse(["--config", name])
    assert config.source.given
    assert config.target.given
    assert config.stages == METHODS[config.method]


def test_the_example_settings_are_a_run() -> None:
    example = Path(__file__).parents[2] / "examples" / "my_folders.toml"
    for words in ([], ["--config", "cpu"], ["--config", "one_gpu_24gb"]):
        config = parse(["--config", str(example), *words])
        assert config.source.given
        assert config.target.given


@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
@pytest.mark.parametrize("recipe", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_overlays_change_a_recipe(recipe: str, overlay: str) -> None:
    assert parse(["--config", recipe, "--config", overlay]) != parse(["--config", recipe])


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - OVERLAYS))
def test_a_recipe_holds_differences_only(name: str) -> None:
    table = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    base = table.pop("base", None)
    below = read_layers([base] if base else [])
    for key, value in leaves(table).items():
        before = value_of(below, key)
        assert value != (list(before) if isinstance(before, tuple) else before), key


def test_each_deviation_of_the_authors_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text(encoding="utf-8")
    table = tomllib.loads((RECIPES / "authors.toml").read_text(encoding="utf-8"))
    for key in leaves(table):
        assert key.rpartition(".")[2] in page, key
    authors = parse(["--config", "gta5_to_cityscapes", "--config", "authors"]).authors
    assert all(getattr(authors, f.name) != f.default for f in fields(authors))


def test_a_reversed_range_is_named() -> None:
    with pytest.raises(UsageError, match=r"views\.scale"):
        parse(["--views.scale", "2", "1"])


@pytest.mark.parametrize("limits", [(5.0, 1.0), (1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_of_values_increases(limits: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"source\.value_range"):
        override(Config(), {"source": {"value_range": list(limits)}}, "settings")


def test_later_layers_override_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('output = "x"\n[warmup]\niterations = 1')
    second.write_text("[warmup]\niterations = 2\nbatch_size = 8")
    both = [f"--config={first}", "--config", str(second)]
    config = parse(both)
    assert (config.warmup.iterations, config.warmup.batch_size) == (2, 8)
    assert parse(["--config", str(first), str(second)]) == config
    assert parse([*both, "--warmup.iterations", "3"]).warmup.iterations == 3
    assert parse(both[1:] + both[:1]).warmup.iterations == 1


def test_values_of_a_file_with_several_parts_are_replaced_as_a_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("palette = [[1, 2, 3], [4, 5, 6]]\n[source]\nids = { 7 = 0, -1 = 255 }")
    second.write_text("[source.ids]\n8 = 1")
    files = ["--config", str(first), str(second)]
    assert parse(files[:2]).source.ids == {7: 0, -1: 255}
    assert parse(files).source.ids == {8: 1}
    options = parse([*files, "--source.ids", "9", "2", "-4", "3", "--palette", "7", "8", "9"])
    assert (options.source.ids, options.palette) == ({9: 2, -4: 3}, ((7, 8, 9),))


SOURCES = """
[[source]]
images = "a"
ids = { 7 = 0 }
weight = 1
[[source]]
images = "b"
from-target = true
weight = 2
"""


def test_a_file_has_one_source_or_several(tmp_path: Path) -> None:
    several, single = tmp_path / "a.toml", tmp_path / "b.toml"
    several.write_text(SOURCES)
    single.write_text('[source]\nimages = "c"')
    first, second = (
        Domain(images=Path("a"), ids={7: 0}, weight=1.0),
        Domain(images=Path("b"), from_target=True, weight=2.0),
    )
    config = parse(["--config", str(several)])
    assert config.sources == (first, second)
    # Several sources replace those before; a single table and the options change the first.
    assert parse(["--config", "demo", "--config", str(several)]).sources == (first, second)
    changed = replace(first, images=Path("c"))
    assert parse(["--config", str(several), "--config", str(single)]).sources == (changed, second)
    assert parse(["--config", str(several), "--source.images", "c"]).sources == (changed, second)
    assert parse(["--config", str(single)]).sources == (Domain(images=Path("c")),)
    written = tmp_path / "c.toml"
    written.write_text(to_toml(config), encoding="utf-8")
    assert parse(["--config", str(written)]) == config


def test_a_mistake_in_one_of_several_sources_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(SOURCES.replace("weight = 2", "weigth = 2"))
    with pytest.raises(UsageError, match=r"a\.toml: source 2: weigth.*weight"):
        parse(["--config", str(path)])
    path.write_text(SOURCES.replace("weight = 2", "weight = 0"))
    with pytest.raises(UsageError, match=r"source 2: weight"):
        parse(["--config", str(path)])


@pytest.mark.parametrize("value", ["true", '"1"', "1.1", "-0.1"])
def test_the_share_of_color_transfer_is_a_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"[views]\ncolor_transfer = {value}")
    with pytest.raises(UsageError, match=r"views\.color_transfer"):
        parse(["--config", str(path)])
    path.write_text("[views]\ncolor_transfer = 1")
    assert parse(["--config", str(path), "--views.color-transfer", "0"]).views.color_transfer == 0


def test_a_file_is_based_on_a_recipe_or_on_the_file_beside_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('base = "cpu"\noutput = "x"\n[warmup]\nbatch_size = 6')
    second.write_text('base = "a.toml"\n[warmup]\niterations = 7')
    warmup = parse(["--config", str(second)]).warmup
    assert (warmup.iterations, warmup.batch_size, warmup.start) == (7, 6, "source_only")
    first.write_text('base = "b.toml"')
    with pytest.raises(UsageError, match=r"b\.toml.*base"):
        parse(["--config", str(second)])


def test_settings_are_complete_when_written(tmp_path: Path) -> None:
    config = parse(["--config", "miniature"])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert parse(["--config", str(path)]) == config
    written = leaves(tomllib.loads(path.read_text(encoding="utf-8")))
    assert set(written) >= {
        name
        for name, setting in schema(Config).items()
        if "$ref" not in setting and setting.get("default", {}) not in (None, {})
    }


def test_stages_before_a_model_from_a_file_are_omitted() -> None:
    words = ["--output", "r", "--method", "paper", "--init-from.warmup", "a.pkl"]
    assert parse(words).stages == METHODS["paper"][1:]
    assert parse([*words, "--init-from.distill-1", "b.pt"]).stages == METHODS["paper"][3:]
    assert parse(["--output", "r", "--init-from.online", "a.pt"]).stages == ("online",)


def test_each_stage_of_a_method_has_settings_and_can_be_read_from_a_file() -> None:
    config = Config()
    for stage in STAGES:
        assert config.settings_of(stage).iterations > 0
        assert getattr(config.init_from, stage) is None
        assert stage in STAGE_TITLES
        assert stage in TRAINERS


def test_each_setting_has_a_description_in_one_line() -> None:
    described = with_config(ConfigDict(use_attribute_docstrings=True))
    settings = schema(Config)
    for kind in (evaluate.Arguments, predict.Arguments, export.Arguments):
        settings |= TypeAdapter(described(kind)).json_schema()["properties"]
    for name, setting in settings.items():
        if "$ref" not in setting:
            assert setting["description"].endswith("."), name
            assert "\n" not in setting["description"], name
    assert all(hint.__doc__ for hint in get_type_hints(Config).values() if is_dataclass(hint))


@pytest.mark.parametrize("name", recipe_names())
def test_a_folder_named_like_a_recipe_does_not_hide_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_layers([name])
    monkeypatch.chdir(tmp_path)
    for other in recipe_names():
        Path(other).mkdir()
    Path("mine.toml").write_text(f'base = "{name}"', encoding="utf-8")
    assert read_layers([name]) == read_layers(["mine.toml"]) == expected


@pytest.mark.parametrize("name", recipe_names())
def test_the_commands_of_recipes_read_those_of_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [cpsl("recipes", name, *more).text for more in ([], ["--complete"])]
    demo = cpsl("demo", "--help").text
    monkeypatch.chdir(tmp_path)
    for other in recipe_names():
        Path(other).write_text("seed = 7", encoding="utf-8")
    assert [cpsl("recipes", name, *more).text for more in ([], ["--complete"])] == expected
    assert cpsl("demo", "--help").text == demo
    assert read_layers([name]).seed == 7  # a file that --config names comes first


@pytest.mark.parametrize("section", ["source", "[source]", "evaluation"])
@pytest.mark.parametrize("command", ["adapt", "check"])
def test_labels_in_folders_need_the_names_of_their_classes(
    tmp_path: Path, section: str, command: str
) -> None:
    """The default, Cityscapes' classes, would make road, sidewalk and building of anyone's 0, 1 and 2."""
    file = tmp_path / "a.toml"
    text = f'[target]\nimages = "t"\n[{section}]\nimages = "i"\nlabels = "my_labels"\n'
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        parse(["--config", str(file)], command)
    assert all(word in str(error.value) for word in ("my_labels", "classes = [", "cityscapes-19"))
    for line in re.findall(r"classes = \[.*?\]", str(error.value)):  # either of the lines solves it
        file.write_text(f"{line}\n{text}", encoding="utf-8")
        config = parse(["--config", str(file)], command)
        (tmp_path / "again.toml").write_text(to_toml(config), encoding="utf-8")
        assert parse(["--config", str(tmp_path / "again.toml")]) == config


def test_layouts_with_classes_of_their_own_need_no_names() -> None:
    words = ["--source.dataset", "gta5", "--source.root", "a", "--target.images", "b"]
    assert parse(words).classes == ("cityscapes-19",)
    assert len(label_space(parse(words))) == 19
