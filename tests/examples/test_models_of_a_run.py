from pathlib import Path

import pytest
import torch

from config import Config, parse
from cpsl import Segmenter
from cpsl.engine import RepeatedSGD
from cpsl.models import IMAGENET_MEAN, DeepLabV2, save_release_checkpoint
from domains import label_space
from networks import (
    build_model,
    build_optimization,
    compile_networks,
    load_model,
    save_model,
)


def settings(*options: str) -> Config:
    images = ["--source.images", "a", "--target.images", "b", "--classes", "road", "sky"]
    return parse(Config, ["--output", "r", *images, *options])


def test_the_backbone_steps_as_often_as_in_the_release() -> None:
    config = settings("--self-label.repeat-backbone-steps", "True")
    with torch.device("meta"):
        model = DeepLabV2(2, "resnet101", output_norm=True)
        prototypes = {"params": [torch.nn.Parameter(torch.zeros(2, 256))], "lr": 5e-4}
    optimizer = build_optimization(config, config.self_label, model, prototypes).optimizer
    assert isinstance(optimizer, RepeatedSGD)
    counts = {g.get("steps", 1): len(g["params"]) for g in optimizer.param_groups[:-2]}
    # "297 of 312 take 3 momentum steps an iteration, 12 take 4, 3 take 1; the head 1"
    assert counts == {1: 3, 3: 297, 4: 12}
    head, last = optimizer.param_groups[-2:]
    assert len(head["params"]) == len(list(model.head.parameters())) + 2  # with bn_pretrain
    assert (head["lr"], head.get("steps", 1)) == (pytest.approx(5e-4), 1)
    assert last.get("steps", 1) == 1


def test_each_parameter_is_moved_once() -> None:
    config = settings("--model.backbone", "resnet_tiny", "--model.feature-dim", "8")
    model = build_model(config, "random", output_norm=True)
    for stage in (config.warmup, config.self_label, config.distill):
        groups = build_optimization(config, stage, model).optimizer.param_groups
        moved = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(moved) == sorted(map(id, model.parameters()))
        assert all(group.get("steps", 1) == 1 for group in groups)
        assert {round(g["lr"] / stage.learning_rate) for g in groups} == {1, stage.head_multiplier}


def test_a_model_is_saved_with_what_it_is(tmp_path: Path) -> None:
    config = settings("--model.backbone", "resnet_tiny", "--model.feature-dim", "8")
    model = build_model(config, "random", output_norm=True)
    model.mean.fill_(0.25)
    save_model(tmp_path / "model.pt", model, config)
    # Whatever other settings say.
    again = build_model(settings("--model.backbone", "resnet50"), tmp_path / "model.pt")
    assert again.backbone_name == "resnet_tiny"
    segmenter = Segmenter.load(tmp_path / "model.pt")
    assert segmenter.classes == label_space(config)
    assert segmenter.full_size == config.views.full_size
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match="road, sky apart, asked for are sky, road"):
        load_model(tmp_path / "model.pt", ("sky", "road"))


def test_a_checkpoint_of_the_release_is_a_model_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepLabV2(2, "resnet101", 8, output_norm=True)
    save_release_checkpoint(tmp_path / "a.pkl", model)
    again = load_model(tmp_path / "a.pkl", ("road", "sky"))
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match="2 classes, not 3"):
        load_model(tmp_path / "a.pkl", ("road", "sky", "car"))


@pytest.mark.parametrize("colors", [True, False])
def test_colors_of_imagenet_are_a_setting(tmp_path: Path, colors: bool) -> None:
    file = tmp_path / "imagenet.pth"
    torch.save(
        build_model(settings("--model.backbone", "resnet18"), "random").backbone.state_dict(), file
    )
    options = ["--model.imagenet-file", str(file), "--model.backbone", "resnet18"]
    model = build_model(settings(*options, "--model.imagenet-colors", str(colors)), "imagenet")
    wanted = IMAGENET_MEAN if colors else (0.0, 0.0, 0.0)
    assert model.mean.flatten().tolist() == pytest.approx(wanted)


def test_networks_are_compiled_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: whole(module, backend="eager"))
    options = ["--model.backbone", "resnet_tiny", "--model.feature-dim", "8"]
    image = torch.rand(1, 3, 32, 48)
    for asked in (True, False):
        config = settings(*options, "--compile", str(asked))
        model = build_model(config, "random").eval()
        wanted = model(image).logits
        compile_networks(config, model)
        assert (model._compiled_call_impl is not None) == asked
        torch.testing.assert_close(model(image).logits, wanted)
        # What is saved and copied knows nothing of it.
        assert not any("_orig_mod" in key for key in model.state_dict())


def test_a_fused_optimiser_takes_one_step() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="one step an iteration"):
        RepeatedSGD([{"params": [weight], "steps": 2}], 0.1, fused=True)
    optimizer = RepeatedSGD([weight], 0.1, 0.9, fused=True)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)
