"""Advice on settings that are valid: it names the setting, and following it ends the advice."""

import errno
import os
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cpsl.app.checking.settings import advice, open_domains, unset_folders, validate
from cpsl.app.command_line import parse, recipe_names
from cpsl.app.config import Config
from cpsl.app.datasets import LABEL_SETTINGS, size_of_source
from cpsl.app.settings import override, to_toml
from cpsl.training import Process

DATA = ["--source.images", "a", "--source.labels", "b", "--target.images", "c"]
SHAPES = {"a": (30, 40), "b": (40, 40), "c": (24, 60), "d": (60, 80), "labels": (30, 40)}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders of two images of one shape each."""
    for name, (height, width) in SHAPES.items():
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("RGB", (width, height)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def advised(config: Config) -> list[str]:
    return advice(config, open_domains(config).datasets)


def options_in(text: str) -> list[str]:
    return shlex.split(text.splitlines()[-1])


def run(folders: Path, sources: str, *options: str, target: str = "a") -> Config:
    """Returns the settings of a run with sources; one in upper case has labels of the target."""
    lines = [f'classes = ["x"]\n[target]\nimages = "{folders / target}"']
    for name in sources:
        lines.append(
            f'[[source]]\nimages = "{folders / name.lower()}"\nlabels = "{folders / "labels"}"\n'
            f"from_target = {str(name.isupper()).lower()}"
        )
    file = folders / "run.toml"
    file.write_text("\n".join(lines).replace("\\", "/"), encoding="utf-8")
    return parse(["--config", str(file), "--method", "paper", "--output", str(folders / "run"), *options])


@pytest.mark.parametrize("option", LABEL_SETTINGS)
@pytest.mark.parametrize("name", ["target", "evaluation"])
def test_settings_of_labels_without_labels_are_named(folders: Path, option: str, name: str) -> None:
    values = {
        "ids": {7: "road"},
        "label_pattern": "*_x",
        "first_id": 1,
        "tolerance": 1,
        "label_orientation": "stored",
    }
    config = run(folders, "a")
    datasets = open_domains(config).datasets
    domain = replace(config.target, **{option: values.get(option, True)})
    (warning,) = advice(replace(config, **{name: domain}), datasets)
    assert warning.startswith(f"{name}: ")
    assert option in warning
    labeled = replace(domain, labels=folders / "labels")
    assert not advice(replace(config, **{name: labeled}), datasets)


def test_a_folder_that_may_not_be_read_is_named_without_numbers_of_the_system(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    config = run(folders, "a")
    monkeypatch.setattr(os, "scandir", refuse)
    problems = open_domains(config).problems
    assert problems
    for problem in problems.values():
        assert "change the permissions" in problem
        assert str(folders) in problem
        assert "Errno" not in problem


SEVERAL = ["ad", "ab", "ba", "bb", "acb", "cAd", "dA"]


@pytest.mark.parametrize("sources", SEVERAL)
def test_each_of_several_sources_keeps_its_shape(folders: Path, sources: str) -> None:
    config = run(folders, sources)
    assert not advised(config)
    for name, source in zip(sources, config.sources, strict=True):
        height, width = size_of_source(config, source)
        assert width == config.views.full_size[1]
        assert height / width == pytest.approx(SHAPES[name.lower()][0] / SHAPES[name.lower()][1])
    (folders / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert parse(["--config", str(folders / "again.toml")]) == config


@pytest.mark.parametrize(
    ("sources", "distorted"), [*zip(SEVERAL, ["", "2", "1", "12", "23", "1", ""], strict=True)]
)
def test_sources_of_another_shape_than_the_size_of_all_are_named(
    folders: Path, sources: str, distorted: str
) -> None:
    size = ["--views.full-size", "30", "40"]
    texts = advised(run(folders, sources, *size))
    assert [text.partition(":")[0] for text in texts] == [f"source {number}" for number in distorted]
    config = run(folders, sources, *size)
    lines = iter([text.splitlines()[-1] for text in texts])
    changed = [
        override(source, tomllib.loads(next(lines)), "advice") if str(number) in distorted else source
        for number, source in enumerate(config.sources, 1)
    ]
    assert not advised(replace(config, source=changed[0], more_sources=tuple(changed[1:])))


@pytest.mark.parametrize("name", ["target", "evaluation"])
def test_a_size_of_its_own_is_a_setting_of_sources(folders: Path, name: str) -> None:
    options = ["--evaluation.images", str(folders / "d"), "--workers", "0"]
    process = Process(torch.device("cpu"))
    config = run(folders, "a", *options)
    assert not validate(override(config, {"source": {"size": [30, 60]}}, "a"), process)
    (problem,) = validate(override(config, {name: {"size": [30, 60]}}, "a"), process)
    assert problem.startswith(f"{name}: ")
    assert "size" in problem


def test_labeled_images_of_the_target_in_another_shape_are_named(folders: Path) -> None:
    (text,) = advised(run(folders, "aB"))
    assert text.startswith("source 2:")


@pytest.mark.parametrize("source", "abcd")
def test_a_single_source_keeps_its_shape_by_the_option(folders: Path, source: str) -> None:
    assert not advised(run(folders, source))
    options = ["--views.full-size", "30", "40"]
    texts = advised(run(folders, source, *options))
    assert len(texts) == (source in "bc")
    for text in texts:
        assert not advised(run(folders, source, *options, *options_in(text)))


@pytest.mark.parametrize(
    ("iterations", "warmup", "long"), [(1000, 1500, True), (1000, 201, True), (1000, 200, False)]
)
def test_a_long_warm_up_of_the_learning_rate_is_named(
    folders: Path, iterations: int, warmup: int, long: bool
) -> None:
    options = ["--method", "online", "--online.iterations", str(iterations)]
    texts = advised(run(folders, "a", *options, "--online.warmup-iterations", str(warmup)))
    assert ["online.warmup_iterations" in text for text in texts] == [True] * long
    for text in texts:
        assert not advised(run(folders, "a", *options, *options_in(text)))
    assert not advised(run(folders, "a", "--online.warmup-iterations", "9999", "--method", "paper"))
    given = ["--init-from.online", "model.pt", "--online.warmup-iterations", "9999"]
    assert not advised(run(folders, "a", "--method", "online", *given))


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_warm_up_in_a_part_of_the_stage(folders: Path, name: str) -> None:
    words = ["--target.dataset", "folder", "--target.images", str(folders / "a")]
    words += ["--views.full-size", "30", "40", "--output", str(folders / "run")]
    config = parse(["--config", name, *words])
    datasets = open_domains(config).datasets
    if "source" not in datasets:
        datasets["source"] = datasets["target"]
    assert not [text for text in advice(config, datasets) if "warmup" in text]


@pytest.mark.parametrize(
    ("words", "unset"),
    [
        ([], ["source.images", "source.labels", "target.images"]),
        (["--source.images", "a", "--target.images", "b"], ["source.labels"]),
        (["--source.images", "a", "--target.images", "b", "--init-from.online", "no.pt"], []),
        (["--source.images", "a", "--source.labels", "b", "--target.dataset", "gta5"], ["target.root"]),
        (
            [
                "--source.images",
                "a",
                "--source.labels",
                "b",
                "--target.images",
                "c",
                "--evaluation.labels",
                "d",
            ],
            ["evaluation.images"],
        ),
    ],
)
def test_a_folder_that_is_not_set_is_named_with_its_option(words: list[str], unset: list[str]) -> None:
    config = parse(["--config", "cpu", "--classes", "x", *words])
    said = [problem for problem in validate(config, Process(torch.device("cpu"))) if "not set" in problem]
    assert [problem.split()[0] for problem in said] == unset
    for setting, problem in zip(unset, said, strict=True):
        assert f"--{setting} FOLDER" in problem
        assert f"[{setting.partition('.')[0]}]" in problem
    assert "\n".join(said).count("cpsl adapt") == bool(unset)


def test_the_folders_of_several_sources_are_named_by_their_tables(folders: Path) -> None:
    config = run(folders, "ab")
    others = tuple(replace(source, labels=None) for source in config.more_sources)
    (problem,) = unset_folders(replace(config, more_sources=others)).values()
    assert problem.startswith("source 2.labels")
    assert "[[source]]" in problem
    assert "--source" not in problem
