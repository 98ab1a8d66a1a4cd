from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpsl import Segmenter
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.datasets import label_space
from cpsl.app.networks import (
    build_model,
    build_optimizer,
    compile_networks,
    custom_builder,
    load_model,
    save_model,
)
from cpsl.authors import RepeatedSGD, save_release_checkpoint
from cpsl.models import IMAGENET_MEAN, DeepLabV2


def settings(*options: str) -> Config:
    images = ["--source.images", "a", "--target.images", "b", "--classes", "road", "sky"]
    return parse(["--output", "r", *images, *options])


def test_the_backbone_takes_the_steps_of_the_authors_code() -> None:
    config = settings("--authors.repeat-backbone-steps")
    with torch.device("meta"):
        model = DeepLabV2(2, "resnet101", output_norm=True)
        prototypes = {"params": [torch.nn.Parameter(torch.zeros(2, 256))], "lr": 5e-4}
    optimizer = build_optimizer(config, config.self_label.optimizer, model, prototypes)
    assert isinstance(optimizer, RepeatedSGD)
    counts = {g.get("steps", 1): len(g["params"]) for g in optimizer.param_groups[:-2]}
    # Counted in the authors' code: 297 of 312 parameters take 3 steps per iteration, 12 take 4, 3 take 1.
    assert counts == {1: 3, 3: 297, 4: 12}
    head, last = optimizer.param_groups[-2:]
    assert len(head["params"]) == len(list(model.head.parameters())) + 2  # with the output norm
    assert (head["lr"], head.get("steps", 1)) == (pytest.approx(5e-4), 1)
    assert last.get("steps", 1) == 1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_parameter_is_in_one_group(name: str) -> None:
    config = settings("--model.network", "deeplabv2:resnet_tiny", "--model.feature-dim", "8")
    model = build_model(config, "random", output_norm=True)
    for stage in (config.warmup, config.self_label, config.distill):
        optimizer = replace(stage.optimizer, name=name)
        groups = build_optimizer(config, optimizer, model).param_groups
        parameters = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(parameters) == sorted(map(id, model.parameters()))
        assert all(group.get("steps", 1) == 1 for group in groups)
        rates = {round(group["lr"] / optimizer.learning_rate) for group in groups}
        assert rates == {1, optimizer.head_multiplier}


def test_a_model_is_saved_with_its_classes_and_size(tmp_path: Path) -> None:
    config = settings("--model.network", "deeplabv2:resnet_tiny", "--model.feature-dim", "8")
    model = build_model(config, "random", output_norm=True)
    model.mean.fill_(0.25)
    save_model(tmp_path / "model.pt", model, config)
    # The file determines the network, not the settings.
    again = build_model(settings("--model.network", "deeplabv2:resnet50"), tmp_path / "model.pt")
    assert again.spec is not None
    assert again.spec.name == "deeplabv2:resnet_tiny"
    segmenter = Segmenter.load(tmp_path / "model.pt")
    assert segmenter.classes == label_space(config)
    assert segmenter.full_size == config.views.full_size
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match=r"model\.pt.*road, sky.*sky, road"):
        load_model(replace(config, classes=("sky", "road")), tmp_path / "model.pt")


def test_a_checkpoint_of_the_authors_is_loaded_as_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepLabV2(2, "resnet101", 8, output_norm=True)
    save_release_checkpoint(tmp_path / "a.pkl", model)
    again = load_model(settings(), tmp_path / "a.pkl")
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match=r"a\.pkl.*2.*3"):
        load_model(replace(settings(), classes=("road", "sky", "car")), tmp_path / "a.pkl")


@pytest.mark.parametrize("start", ["pretrained", "file"])
def test_pretrained_weights_keep_their_color_normalization(tmp_path: Path, start: str) -> None:
    file = tmp_path / "imagenet.pth"
    pretrained = DeepLabV2(2, "resnet18", 8)
    torch.save(pretrained.backbone.state_dict(), file)
    options = ["--model.weights", str(file), "--model.network", "deeplabv2:resnet18"]
    for arguments, mean in (("{}", IMAGENET_MEAN), ('{"mean": [0, 0, 0]}', (0, 0, 0))):
        config = settings(*options, "--model.arguments", arguments)
        model = build_model(config, start if start == "pretrained" else str(file))
        assert model.mean.flatten().tolist() == pytest.approx(mean)
        assert torch.equal(model.backbone.conv1.weight, pretrained.backbone.conv1.weight)


def test_networks_are_compiled_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: whole(module, backend="eager"))
    options = ["--model.network", "deeplabv2:resnet_tiny", "--model.feature-dim", "8"]
    image = torch.rand(1, 3, 32, 48)
    for asked in (True, False):
        config = settings(*options, "--compile" if asked else "--no-compile")
        model = build_model(config, "random").eval()
        wanted = model(image).logits
        compile_networks(config, model)
        assert (model._compiled_call_impl is not None) == asked
        torch.testing.assert_close(model(image).logits, wanted)
        # State dicts and copies are those of the plain network.
        assert not any("_orig_mod" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.arguments", '{"name": "other"}'], "model.arguments.*name.*model.network"),
        (["--model.arguments", '{"weights": "a.pth"}'], "model.arguments.*weights"),
        (["--model.arguments", '{"backbone": "resnet18"}'], "deeplabv2:resnet_tiny.*backbone"),
        (["--model.feature-dim", "8", "--model.arguments", '{"feature_dim": 4}'], "feature_dim"),
        (["--model.network", "math:pi"], "math:pi.*no function"),
    ],
)
def test_wrong_networks_and_arguments_are_named(options: list[str], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        build_model(settings("--model.network", "deeplabv2:resnet_tiny", *options), "random")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("SyntaxError", "def build(:"),
        ("IndentationError", "  x = 1"),
        ("NameError", "absent"),
        ("KeyError", "{}[1]"),
    ],
)
def test_an_error_in_the_file_of_a_custom_network_names_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"broken_{name.lower()}.py"
    path.write_text(f"import math\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=name) as refused:
        custom_builder(f"{path.stem}:build")
    assert f"{path}, line 2" in str(refused.value)
