import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cpsl.models import resize

smp = pytest.importorskip("segmentation_models_pytorch")

from cpsl.models.adapters.smp import from_smp  # noqa: E402

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("Unet/resnet18", {"decoder_channels": (32, 16, 16, 8, 8)}),
    ("FPN/mit_b0", {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}),
    ("DeepLabV3Plus/tu-resnet18", {"decoder_channels": 16, "encoder_output_stride": 16}),
    ("PSPNet/tu-tf_mobilenetv3_small_100", {"psp_out_channels": 16}),
    ("Segformer/resnet18", {"decoder_segmentation_channels": 16}),
    ("Linknet/mobilenet_v2", {}),
]


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_output_is_that_of_smp(name: str, options: dict[str, Any]) -> None:
    network = from_smp(name, 4, weights="random", **options).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        output = network(images)
        expected = network.body.module((images - network.mean) / network.std)
    torch.testing.assert_close(resize(output.logits, (64, 96), network.align_corners), expected)
    torch.testing.assert_close(network.body.module.segmentation_head[0](output.features), output.logits)
    again = from_smp(network.spec.name.removeprefix("smp:"), 4, weights="random", **network.spec.arguments)
    again.eval().load_state_dict(network.state_dict())
    assert torch.equal(again(images).logits, output.logits)


def test_vision_transformer() -> None:
    sizes = {"embed_dim": 32, "num_heads": 2}
    network = from_smp(
        "DPT/tu-vit_tiny_patch16_224", 4, weights="random", decoder_fusion_channels=16, **sizes
    )
    module = network.eval().body.module
    images = torch.rand(1, 3, 64, 96)
    output, expected = network(images), module((images - network.mean) / network.std)
    assert network.align_corners
    assert network.input_size == 32
    torch.testing.assert_close(resize(output.logits, (64, 96), True), expected)
    fixed = smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, classes=4, **sizes)
    assert from_smp(fixed).input_size == (224, 224)


@pytest.mark.parametrize(("name", "options"), SMALL[:4])
def test_training(name: str, options: dict[str, Any]) -> None:
    network = copy.deepcopy(from_smp(name, 4, weights="random", **options))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.rand(2, 3, 60, 70))
    output.logits.float().sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in network.parameters())
    assert network.pretrained_layers()


def test_compilation_and_export_with_dynamic_sizes() -> None:
    network = from_smp("FPN/resnet18", 4, weights="random").eval()
    images = torch.rand(2, 3, 64, 96)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images).logits, network(images).logits)
    sides = {2: 32 * torch.export.Dim("h", min=2, max=64), 3: 32 * torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(network, (images,), dynamic_shapes=(sides,), strict=False)
    images = torch.rand(2, 3, 96, 128)
    torch.testing.assert_close(program.module()(images), network(images))


def test_given_network() -> None:
    options = {"encoder_weights": None, "classes": 6, "activation": "softmax2d", "aux_params": {"classes": 3}}
    network = from_smp(smp.FPN("resnet18", **options))
    assert network.num_classes == 6
    assert network.spec.name == "smp:FPN/resnet18"
    assert not any("classification_head" in key for key in network.state_dict())
    # Logits, not probabilities.
    assert not torch.allclose(network(torch.rand(1, 3, 64, 64)).logits.sum(dim=1), torch.tensor(1.0))


def test_weights_of_the_encoder_are_loaded_from_a_file(tmp_path: Path) -> None:
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    network = from_smp("Unet/resnet18", 4, weights=tmp_path / "encoder.pth")
    assert torch.equal(network.body.module.encoder.conv1.weight, encoder.conv1.weight)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_unreachable_weights_are_an_error(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ConnectionError, match=r"https://.*resnet18.*no route.*weights="):
        from_smp(f"Unet/{encoder}", 4)


def test_wrong_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="UnetPlusPlus"):
        from_smp("Unett/resnet18", 4)
    with pytest.raises(ValueError, match="resnet19"):
        from_smp("Unet/resnet19", 4)
    with pytest.raises(ValueError, match="resnet19"):
        from_smp("Unet/resnet19", 4, weights="random")
    with pytest.raises(ValueError, match="num_classes"):
        from_smp("Unet/resnet18")
    with pytest.raises(TypeError, match="aux_params"):
        from_smp("Unet/resnet18", 4, weights="random", aux_params={})
    for architecture in ("Unet", "PAN"):  # SMP would ignore it
        with pytest.raises(TypeError, match=rf"{architecture}.*feature_dim.*decoder_"):
            from_smp(f"{architecture}/resnet18", 4, weights="random", feature_dim=64)
    with pytest.raises(TypeError, match="from_module"):
        from_smp(nn.Conv2d(3, 4, 1))
    replaced = smp.Unet("resnet18", encoder_weights=None)
    replaced.segmentation_head = nn.Sequential(nn.Identity())
    with pytest.raises(TypeError, match="from_module"):
        from_smp(replaced)


@pytest.mark.parametrize("option", ["decoder_chanels", "checkpoint_path", "classes"])
def test_options_that_nothing_reads_are_refused(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        from_smp("Unet/resnet18", 4, weights="random", **{option: 1})


@pytest.mark.parametrize("encoder", ["resnet19", "tu-resnet19", "tu-hf-hub:timm/resnet18"])
def test_unknown_encoders_are_named(encoder: str) -> None:
    with pytest.raises(ValueError, match=encoder):
        from_smp(f"Unet/{encoder}", 4, weights="random")
