import copy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from cpsl.models import build_network, resize
from cpsl.models.adapters.torchvision import from_torchvision

NAMES = ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"]


@pytest.mark.parametrize("name", NAMES)
def test_output_is_that_of_torchvision(name: str) -> None:
    network = from_torchvision(name, 4, weights="random").eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        output = network(images)
        expected = network.body.module((images - network.mean) / network.std)["out"]
    assert not network.align_corners
    torch.testing.assert_close(resize(output.logits, (64, 96), False), expected)
    head = network.body.module.classifier
    if name.startswith("lraspp"):
        weight = torch.cat([head.low_classifier.weight, head.high_classifier.weight], dim=1)
        bias = head.low_classifier.bias + head.high_classifier.bias
    else:
        weight, bias = head[-1].weight, head[-1].bias
    logits = torch.nn.functional.conv2d(output.features, weight, bias)
    torch.testing.assert_close(logits, output.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES[:2])
def test_network_is_rebuilt_from_its_spec(name: str) -> None:
    network = from_torchvision(name, 4, weights="random").eval()
    library, _, model = network.spec.name.partition(":")
    assert library == "torchvision"
    again = from_torchvision(model, 4, weights="random", **network.spec.arguments).eval()
    again.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images).logits, network(images).logits)


@pytest.mark.parametrize("name", NAMES[:2])
def test_training(name: str) -> None:
    network = copy.deepcopy(from_torchvision(name, 4, weights="random"))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.rand(2, 3, 60, 70))
    assert output.logits.dtype == torch.bfloat16
    output.logits.float().sum().backward()
    assert all(value.requires_grad and value.grad is not None for value in network.parameters())
    assert sum(map(len, network.pretrained_layers())) == len(list(network.body.module.backbone.parameters()))


def test_compilation_and_export_with_dynamic_sizes() -> None:
    network = from_torchvision(NAMES[1], 4, weights="random").eval()
    images = torch.rand(2, 3, 64, 96)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images).logits, network(images).logits)
    sides = {2: 16 * torch.export.Dim("h", min=2, max=64), 3: 16 * torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(network, (images,), dynamic_shapes=(sides,), strict=False)
    images = torch.rand(2, 3, 96, 80)
    torch.testing.assert_close(program.module()(images), network(images))


def test_auxiliary_classifier_of_a_given_network_is_removed() -> None:
    module = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=True
    )
    network = from_torchvision(module)
    assert network.num_classes == 7
    assert network.spec is None
    assert not any("aux" in key for key in network.state_dict())


def test_weights_of_encoder_or_network_are_loaded_from_a_file(tmp_path: Path) -> None:
    encoder = torchvision.models.mobilenet_v3_large(weights=None)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    network = from_torchvision(NAMES[1], 4, weights=tmp_path / "encoder.pth")
    assert torch.equal(network.body.module.backbone["0"][0].weight, encoder.features[0][0].weight)
    whole = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4)
    torch.save({"model": whole.state_dict()}, tmp_path / "whole.pth")
    network = from_torchvision(NAMES[1], 4, weights=str(tmp_path / "whole.pth"))
    assert torch.equal(
        network.body.module.classifier.low_classifier.bias, whole.classifier.low_classifier.bias
    )


def test_unreachable_weights_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError(OSError(113, "no route"))

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(ConnectionError, match=r"https://.*mobilenet_v3_large.*no route.*weights=") as refused:
        from_torchvision(NAMES[1], 4)
    assert "Errno" not in str(refused.value)


def test_wrong_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="deeplabv3_resnet50"):
        from_torchvision("deeplabv3", 4)
    with pytest.raises(ValueError, match="num_classes"):
        from_torchvision("fcn_resnet50")
    with pytest.raises(TypeError, match="aux_loss"):
        build_network("torchvision:fcn_resnet50", 4, weights="random", aux_loss=True)
    with pytest.raises(TypeError, match="color"):  # which torchvision would ignore
        build_network("torchvision:fcn_resnet50", 4, weights="random", color=1)
    with pytest.raises(TypeError, match="from_module"):
        from_torchvision(nn.Conv2d(3, 4, 1))
