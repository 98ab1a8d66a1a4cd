import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpsl.app.command_line import parse
from cpsl.app.config import METHODS
from cpsl.app.reporting.facts import describe_adaptation, describe_run, describe_settings
from cpsl.app.settings import flatten, to_toml

DOMAINS = ["--source.images", "data/day/images", "--target.images", "data/dusk/images"]


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (DOMAINS, "Adaptation from day to dusk"),
        (
            ["--source.images", "fog/source/images", "--target.images", "/data/fog/target"],
            "Adaptation from fog/source to fog/target",
        ),
        (["--config", "gta5_to_cityscapes"], "Adaptation from GTA5 to Cityscapes"),
        (["--config", "demo"], "Adaptation from game to real (generated streets)"),
        (["--source.images", "images", "--target.images", "."], "Adaptation from images to images"),
    ],
)
def test_a_run_is_called_by_its_data_sets(words: list[str], title: str) -> None:
    if words[0] == "--config" and words[1] != "demo":
        words = [*words, "--source.root", "a", "--target.root", "b"]
    assert describe_adaptation(parse(words)) == title


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_other_stages_are_hidden_and_all_others_shown(method: str) -> None:
    config = parse([*DOMAINS, "--method", method])
    written, shown = flatten(tomllib.loads(to_toml(config))).keys(), describe_settings(config).keys()
    hidden = {key.partition(".")[0] for key in written - shown}
    assert hidden == ({"warmup", "self_label", "distill"} if method == "online" else {"online"})
    assert not hidden & {key.partition(".")[0] for key in shown}


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        ([], "ImageNet weights"),
        (["--source-only.start", "random"], "random weights"),
        (["--source-only.start", "mine.pt"], "weights of mine.pt"),
        (["--model.weights", "r101.pth"], "weights of r101.pth"),
        (["--model.network", "smp:Unet/resnet34"], "pretrained weights"),
        (["--init-from.source-only", "other.pt"], "weights of other.pt"),
    ],
)
def test_the_initial_weights_are_named(words: list[str], weights: str, tmp_path: Path) -> None:
    """Also those of a first network that another run has trained."""
    config = parse([*DOMAINS, "--output", str(tmp_path / "run"), *words])
    for stage in ("source_only", "online"):
        (config.output / stage).mkdir(parents=True)
        torch.save({}, config.output / stage / "model.pt")
    (config.output / "config.toml").write_text(to_toml(config))
    facts = describe_run(config, "online")
    assert facts["Initial weights"] == [weights]
    assert "Checkpoints" in facts
    first = config.output / "source_only" / "model.pt"
    other = parse([*DOMAINS, "--init-from.source-only", str(first)])
    again = describe_run(replace(other, output=config.output), "online")
    assert again["Initial weights"] == [weights]
    (config.output / "config.toml").write_text(to_toml(other))
    assert describe_run(replace(other, output=config.output), "online")["Initial weights"] == [
        f"weights of {first}"
    ]
