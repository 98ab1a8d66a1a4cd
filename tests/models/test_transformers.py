import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cpsl.models import resize

transformers = pytest.importorskip("transformers")

from cpsl.models.adapters.transformers import from_transformers  # noqa: E402

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
SEGFORMER = {
    "hidden_sizes": [8, 16, 24, 32],
    "decoder_hidden_size": 48,
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "segformer": ("segformer", SEGFORMER),
    "convnext": ("upernet", {"hidden_size": 32, "backbone_config": CONVNEXT | STAGES}),
    "swin": ("upernet", {"hidden_size": 32, "backbone_config": SWIN | STAGES}),
    "beit": ("beit", VIT | {"image_size": 64, "out_indices": [1, 2, 3, 4]}),
    "data2vec": ("data2vec-vision", VIT | {"image_size": 64, "out_indices": [0, 1, 2, 3]}),
    "dpt": (
        "dpt",
        VIT
        | {"image_size": 64, "backbone_out_indices": [0, 1, 2, 3]}
        | {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16},
    ),
    "dpt hybrid": (
        "dpt",
        VIT
        | {"is_hybrid": True, "image_size": 64, "neck_hidden_sizes": [256, 512, 16, 16]}
        # The backbone is BiT with its first two stages, whose channels are those of the neck.
        | {"backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16},
    ),
    "mobilevit": (
        "mobilevit",
        {
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
            "aspp_out_channels": 16,
        }
        | {"num_attention_heads": 2},
    ),
    "mobilevitv2": ("mobilevitv2", {"width_multiplier": 0.5, "aspp_out_channels": 16}),
    "mobilenet_v2": ("mobilenet_v2", {"depth_multiplier": 0.35}),
}
every = pytest.mark.parametrize(("model", "options"), SMALL.values(), ids=SMALL.keys())


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.logging.set_verbosity_error()
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def build(model: str = "segformer", **options: Any) -> Any:
    return from_transformers(model, 5, weights="random", **(options or SEGFORMER)).eval()


@every
def test_output_is_that_of_transformers(model: str, options: dict[str, Any]) -> None:
    network = build(model, **options)
    module = network.body.module
    fixed = isinstance(network.input_size, tuple)
    images = torch.rand(1, 3, *(network.input_size if fixed else (64, 96)))
    inputs = (images - network.mean) / network.std
    with torch.no_grad():
        output = network(images)
        expected = module(inputs.flip(1) if model.startswith("mobilevit") else inputs).logits
    torch.testing.assert_close(resize(output.logits, expected.shape[2:], network.align_corners), expected)
    classifier = module.get_submodule(network.body.classifier)
    torch.testing.assert_close(classifier(output.features), output.logits)
    assert network.align_corners == (model == "dpt")

    again = from_transformers(
        network.spec.name.removeprefix("transformers:"), 5, weights="random", **network.spec.arguments
    ).eval()
    again.load_state_dict(network.state_dict())
    assert again.input_size == network.input_size
    with torch.no_grad():
        assert torch.equal(again(images).logits, output.logits)
    assert again.spec == network.spec


@every
def test_training(model: str, options: dict[str, Any]) -> None:
    network = copy.deepcopy(build(model, **options)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.rand(2, 3, 60, 70))
    output.logits.float().sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in network.parameters())
    assert not any("auxiliary" in name for name in network.state_dict())
    assert network.pretrained_layers()


def test_compilation_and_export_with_dynamic_sizes() -> None:
    network = build()
    images = torch.rand(2, 3, 64, 96)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))
    sides = {2: 32 * torch.export.Dim("h", min=2, max=64), 3: 32 * torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(network, (images,), dynamic_shapes=(sides,), strict=False)
    images = torch.rand(2, 3, 96, 128)
    torch.testing.assert_close(program.module()(images), network(images))


def test_folder_of_an_encoder(tmp_path: Path) -> None:
    config = transformers.SegformerConfig(**SEGFORMER, num_labels=10)
    encoder = transformers.SegformerForImageClassification(config)
    encoder.save_pretrained(tmp_path)
    network = from_transformers(tmp_path, 5)
    assert network.training
    assert network.body.module.training
    assert network.num_classes == 5
    loaded = network.body.module.segformer.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in encoder.segformer.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["segformer", "convnext"])
def test_file_of_an_encoder(name: str, suffix: str, tmp_path: Path) -> None:
    model, options = SMALL[name]
    if name == "segformer":
        stored = transformers.SegformerForImageClassification(transformers.SegformerConfig(**SEGFORMER))
        encoder = stored.segformer
    else:
        stored = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**CONVNEXT))
        encoder = stored.convnext
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        entries = {f"module.{key}": value for key, value in stored.state_dict().items()}
        torch.save({"state_dict": entries}, path)
    else:
        stored.save_pretrained(tmp_path)
    network = from_transformers(model, 5, weights=path, **options)
    loaded = network.body.module.get_submodule(network.encoder[0].removeprefix("module.")).state_dict()
    found = [key for key in loaded if key in encoder.state_dict()]
    assert len(found) > 20
    assert all(torch.equal(encoder.state_dict()[key], loaded[key]) for key in found)


def test_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.rand(64, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"(?s)other\.pth.*segformer\..*conv1\.weight"):
        from_transformers("segformer", 5, weights=tmp_path / "other.pth", **SEGFORMER)


def test_folder_of_a_network_and_its_image_processor(tmp_path: Path) -> None:
    stored = build().body.module
    stored.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "do_normalize": true}'
    )
    network = from_transformers(str(tmp_path), 5)
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert all(
        torch.equal(network.body.module.state_dict()[key], value)
        for key, value in stored.state_dict().items()
    )
    again = from_transformers("segformer", 5, weights="random", **network.spec.arguments)
    again.load_state_dict(network.state_dict())
    assert "tmp" not in str(network.spec)


def test_folder_of_a_backbone(tmp_path: Path) -> None:
    encoder = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**CONVNEXT))
    encoder.save_pretrained(tmp_path)
    model, options = SMALL["convnext"]
    network = from_transformers(model, 5, weights=tmp_path, **options)
    key = "encoder.stages.0.layers.0.dwconv.weight"
    assert torch.equal(
        network.body.module.backbone.state_dict()[key], encoder.state_dict()[f"convnext.{key}"]
    )
    with pytest.raises(ValueError, match=r"convnext.*segformer"):
        from_transformers("segformer", 5, weights=tmp_path, **SEGFORMER)


def test_encoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    build().body.module.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder.*segformer"):
        from_transformers(tmp_path, 5, depths=[2, 1, 1, 1])


@pytest.mark.parametrize("model", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_mask_classification_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match=r"mask classification.*SegFormer"):
        from_transformers(model, 5, weights="random")


def unreachable(*_: object, **__: object) -> None:
    raise OSError(113, "no route")


@pytest.mark.parametrize("weights", ["pretrained", "random", "encoder.pth"])
def test_without_the_hub_a_folder_or_a_model_type_replaces_a_name(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other weights do not: the configuration is missing as well."""
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    named = r"https://.*nobody/nothing.*config\.json.*no route.*save_pretrained.*segformer.*random"
    with pytest.raises(ConnectionError, match=named) as refused:
        from_transformers("nobody/nothing", 5, weights=weights)
    assert "Errno" not in str(refused.value)
    # What the message names.
    monkeypatch.setattr("huggingface_hub.get_session", unreachable)
    network = from_transformers("segformer", 5, weights="random", **SEGFORMER)
    network.body.module.save_pretrained(tmp_path / "folder")
    torch.save(network.body.module.state_dict(), tmp_path / "encoder.pth")
    found = [
        from_transformers(tmp_path / "folder", 5),
        from_transformers("segformer", 5, weights=tmp_path / "encoder.pth", **SEGFORMER),
    ]
    for other in found:
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def test_without_the_hub_other_weights_replace_those_of_a_cached_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = transformers.SegformerConfig(**SEGFORMER, num_labels=5)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr(transformers.SegformerForSemanticSegmentation, "from_pretrained", unreachable)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(ConnectionError, match=r"nobody/nothing.*weights=.*random"):
        from_transformers("nobody/nothing", 5)
    monkeypatch.setattr("cpsl.models.adapters.transformers._colors", lambda *_: ((0.5,) * 3, (0.5,) * 3))
    assert from_transformers("nobody/nothing", 5, weights="random").num_classes == 5


def test_given_network() -> None:
    config = transformers.UperNetConfig(backbone_config=CONVNEXT | STAGES, hidden_size=32, num_labels=7)
    config.auxiliary_in_channels = 16
    network = from_transformers(transformers.UperNetForSemanticSegmentation(config))
    assert network.num_classes == 7
    assert network.spec.arguments["use_auxiliary_head"] is False
    assert not any("auxiliary" in name for name in network.state_dict())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("segformer",), {}, ValueError, "num_classes"),
        (("segformer", 5), {}, ValueError, "hub or a folder"),
        (("segformer", 5, "random"), {"hiden_sizes": [8]}, TypeError, "hiden_sizes"),
        (("segformer", 5, "random"), {"trust_remote_code": True}, TypeError, "trust_remote_code"),
        (("upernet", 5, "random"), {"backbone": "resnet18"}, TypeError, "backbone_config"),
        (("swin", 5, "random"), {}, ValueError, "upernet"),
        ((nn.Conv2d(3, 4, 1),), {}, TypeError, "from_module"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, num_classes, weights = (*arguments, None, None)[:3]
    options = options | ({"weights": weights} if weights else {})
    with pytest.raises(error, match=message):
        from_transformers(model, num_classes, **options)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        from_transformers("segformer", 5)


def test_code_of_a_repository_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    (tmp_path / "code.py").write_text("raise SystemExit('executed')")
    (tmp_path / "config.json").write_text('{"model_type": "new", "auto_map": {"AutoConfig": "code.Config"}}')
    with pytest.raises(ValueError, match=str(tmp_path)):
        from_transformers(tmp_path, 4, weights="random")
