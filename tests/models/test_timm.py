import copy
import json
import runpy
import sys
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cpsl.models import SegmentationNetwork, segment
from cpsl.models.adapters.adapted import AdaptedNetwork
from cpsl.models.adapters.timm import _levels, from_timm
from cpsl.models.decoders import LightDecoder

timm = pytest.importorskip("timm")
Conv2dSame = timm.layers.Conv2dSame

WINDOWS = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]}
ENCODERS: dict[str, tuple[dict[str, Any], int | tuple[int, int], int]] = {
    "test_resnet": ({}, 32, 4),
    "test_efficientnet": ({"drop_path_rate": 0.1}, 32, 4),
    "test_convnext": ({}, 32, 4),
    "mobilenetv3_small_050": ({}, 32, 4),
    "test_vit": ({}, 16, 8),
    "vit_small_patch14_dinov2.lvd142m": ({"embed_dim": 24, "depth": 5, "num_heads": 2}, 14, 7),
    "vit_small_patch16_dinov3.lvd1689m": ({"embed_dim": 32, "depth": 4, "num_heads": 2}, 16, 8),
    "swin_tiny_patch4_window7_224": (WINDOWS, 32, 4),
    "swinv2_tiny_window8_256": (WINDOWS, 32, 4),
    "maxvit_rmlp_pico_rw_256": ({"img_size": 64}, 64, 4),
    "vit_relpos_small_patch16_224": (
        {"embed_dim": 24, "depth": 4, "num_heads": 2, "img_size": [32, 48]},
        (32, 48),
        8,
    ),
}
"""Options that make an architecture small, the expected input size, and the stride of the output."""


def build(name: str, **arguments) -> AdaptedNetwork:
    options = ENCODERS[name][0] if name in ENCODERS else {}
    torch.manual_seed(0)
    return from_timm(name, 3, **{"weights": "random", "feature_dim": 8, **options, **arguments})


def fitted(height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
    return (-(-height // size) * size, -(-width // size) * size) if isinstance(size, int) else size


@pytest.mark.parametrize("name", ENCODERS)
def test_every_family_is_trained_on_images_of_any_size(name: str) -> None:
    network, (_, size, stride) = build(name), ENCODERS[name]
    assert isinstance(network, SegmentationNetwork)
    assert network.input_size == size
    assert not network.align_corners
    for height, width in ((70, 110), (96, 33)):
        output = network(torch.rand(2, 3, height, width))
        rows, columns = (extent // stride for extent in fitted(height, width, size))
        assert output.logits.shape == (2, 3, rows, columns)
        assert output.features.shape == (2, 8, rows, columns)
    (output.logits.square().sum() + output.features.square().sum()).backward()
    unused = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused  # which DistributedDataParallel refuses


@pytest.mark.parametrize("name", ENCODERS)
def test_the_spec_builds_the_same_network_without_its_weights(name: str) -> None:
    network = build(name)
    assert network.spec is not None
    arguments = json.loads(json.dumps(dict(network.spec.arguments)))
    rebuilt = from_timm(network.spec.name.removeprefix("timm:"), 3, weights="random", **arguments)
    rebuilt.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 40, 60)
    expected, output = (segment(model.eval(), images) for model in (network, rebuilt))
    assert torch.equal(output.logits, expected.logits)
    assert rebuilt.input_size == network.input_size


@pytest.mark.parametrize("name", ENCODERS)
def test_files_of_weights_are_loaded(name: str, tmp_path) -> None:
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in ENCODERS[name][0].items()}
    torch.manual_seed(1)
    state = timm.create_model(name, **options).state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    loaded = build(name, weights=str(tmp_path / "w.pth")).body.encoder.state_dict()
    shared = {key: value for key, value in loaded.items() if key in state}
    assert len(shared) > len(loaded) // 2
    assert all(torch.equal(value, state[key]) for key, value in shared.items())


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("test_resnet", "light"), ("test_vit", "daformer"), ("swin_tiny_patch4_window7_224", "light")],
)
def test_networks_are_compiled_and_exported(name: str, decoder: str) -> None:
    network, images = build(name, decoder=decoder).eval(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images).logits, network(images).logits)
        if name.startswith("swin"):
            return  # its windows depend on the size
        sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        program = torch.export.export(network, (images,), dynamic_shapes=(sizes,), strict=False).module()
        for other in (torch.rand(1, 3, 70, 110), torch.rand(3, 3, 128, 64)):
            torch.testing.assert_close(program(other)[0], network(other).logits, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "swinv2_tiny_window8_256"])
def test_half_precision_and_copies(name: str) -> None:
    network, images = build(name), torch.rand(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images).logits.square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    half = copy.deepcopy(network).to(torch.bfloat16).eval()
    expected = network.eval()(images).logits
    assert half(images.bfloat16()).logits.dtype == torch.bfloat16
    assert (half(images.bfloat16()).logits - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_layers_hold_the_parameters_of_the_encoder(name: str) -> None:
    network = build(name)
    layers = [[id(parameter) for parameter in layer] for layer in network.pretrained_layers()]
    assert sorted(chain.from_iterable(layers)) == sorted(map(id, network.body.encoder.parameters()))


@given(st.integers(2, 40), st.sampled_from([8, 14, 16]))
def test_four_blocks_of_a_plain_transformer_are_evenly_spaced(depth: int, patch: int) -> None:
    levels, norm = _levels([patch] * depth)
    assert norm
    assert levels[-1] == depth - 1
    assert len(set(levels)) == min(depth, 4)
    gaps = {after - before for before, after in zip((-1, *levels), levels, strict=False)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("strides", "levels"),
    [
        ([2, 4, 8, 16, 32], (1, 2, 3, 4)),
        ([1, 2, 4, 8, 16, 16, 32, 64], (2, 3, 5, 6)),
        ([16, 32, 64], (0, 1)),
        ([64, 128], (1,)),
    ],
)
def test_the_last_map_of_each_stride_from_4_to_32_is_used(
    strides: list[int], levels: tuple[int, ...]
) -> None:
    assert _levels(strides) == (levels, False)


@pytest.mark.parametrize("dilated", [False, True])
def test_paddings_are_those_of_timm_but_independent_of_the_size(dilated: bool) -> None:
    options, levels = ({"output_stride": 16}, [1, 2, 4]) if dilated else ({}, [1, 2, 3, 4])
    torch.manual_seed(0)
    expected = timm.create_model("tf_efficientnetv2_b0", **options).eval()
    network = from_timm(copy.deepcopy(expected), 3, feature_dim=8).eval()
    assert not any(isinstance(module, Conv2dSame) for module in network.modules())
    images = torch.randn(1, 3, 64, 96)
    maps = expected.forward_intermediates(images, indices=levels)[1]
    for level, wanted in zip(network.body.encode(images), maps, strict=True):
        torch.testing.assert_close(level, wanted)


def test_colors_are_normalized_as_for_the_weights() -> None:
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    network = build("tf_efficientnet_lite0")
    assert network.mean.flatten().tolist() == list(config.mean)
    assert network.std.flatten().tolist() == list(config.std)


def test_a_built_network_keeps_its_weights_and_statistics() -> None:
    model = timm.create_model("test_resnet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    network = from_timm(model, 3, feature_dim=8)
    assert network.spec is None
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in network.body.encoder.state_dict().items())
    # The trial pass draws no random numbers: the decoder is initialized as if there had been none.
    torch.manual_seed(5)
    expected = LightDecoder([32, 48, 192, 96], [4, 8, 16, 32], 3, 8).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.body.decoder.state_dict().items())
    with pytest.raises(TypeError, match="already built"):
        from_timm(model, 3, weights="random")


def test_an_option_that_is_no_plain_value_has_no_spec() -> None:
    assert build("test_resnet", act_layer=nn.SiLU).spec is None


def test_position_embeddings_of_another_size_are_interpolated(tmp_path) -> None:
    state = timm.create_model("test_vit", img_size=64).state_dict()
    torch.save(state, tmp_path / "w.pth")
    loaded = build("test_vit", weights=tmp_path / "w.pth").body.encoder.state_dict()
    assert loaded["pos_embed"].shape != state["pos_embed"].shape
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_encoders_inside_of_other_networks_and_safetensors_are_loaded(tmp_path) -> None:
    from safetensors.torch import save_file

    state = timm.create_model("test_resnet").state_dict()
    whole = {f"model.encoder.{key}": value for key, value in state.items()}
    save_file(whole | {"model.head.weight": torch.ones(3)}, tmp_path / "w.safetensors")
    loaded = build("test_resnet", weights=tmp_path / "w.safetensors").body.encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_files_that_do_not_fit_are_named(name: str, tmp_path) -> None:
    state = timm.create_model(name).state_dict()
    key = next(key for key in state if key.endswith(".weight") and state[key].ndim > 1)
    del state[key]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth.*1 of \d+ entries.*{key}.*such as"):
        build(name, weights=tmp_path / "w.pth")
    torch.save({"decoder.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"decoder\.weight"):
        build(name, weights=tmp_path / "w.pth")
    torch.save({"state_dict": {}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth"):
        build(name, weights=tmp_path / "w.pth")
    for absent in ("absent.pth", "absent.safetensors"):
        with pytest.raises(FileNotFoundError, match=absent):
            build(name, weights=tmp_path / absent)
    (tmp_path / "w.safetensors").write_text("<html>")
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        build(name, weights=tmp_path / "w.safetensors")


@pytest.fixture
def hub(monkeypatch) -> dict[str, str]:
    """Disconnects the hub; returns its cache, files by repository."""
    import huggingface_hub

    cache: dict[str, str] = {}

    def unreachable() -> None:
        raise OSError(113, "no route to host")

    def cached(repository: str, file: str, **_) -> str | None:
        return cache.get(repository) if file == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "get_session", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    return cache


def test_an_unreachable_hub_is_named(hub: dict[str, str]) -> None:
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    with pytest.raises(ConnectionError, match=rf"test_resnet.*{repository}.*weights=file") as refused:
        build("test_resnet", weights="pretrained")
    assert "Errno" not in str(refused.value)


def test_weights_in_the_cache_are_used_without_the_hub(hub: dict[str, str], tmp_path) -> None:
    from safetensors.torch import save_file

    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    hub[timm.get_pretrained_cfg("test_resnet").hf_hub_id] = str(tmp_path / "model.safetensors")
    loaded = build("test_resnet", weights="pretrained").body.encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/weights", "timm/resnet18"])
def test_names_that_would_start_a_download_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weights=file"):
        from_timm(name, 3, weights="random")


def test_invalid_names_and_options_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'resnett18'.*resnet18"):
        from_timm("resnett18", 3, weights="random")
    with pytest.raises(ValueError, match=r"'foo' of resnet18.*resnet18\.a1_in1k"):
        from_timm("resnet18.foo", 3, weights="random")
    with pytest.raises(TypeError, match=r"test_resnet.*bogus"):
        from_timm("test_resnet", 3, weights="random", bogus=1)
    for reserved in ("pretrained", "checkpoint_path", "out_indices", "in_chans", "pretrained_cfg_overlay"):
        with pytest.raises(TypeError, match=reserved):
            from_timm("test_resnet", 3, weights="random", **{reserved: 1})
    with pytest.raises(ValueError, match=r"light, daformer.*'heavy'"):
        from_timm("test_resnet", 3, weights="random", decoder="heavy")
    with pytest.raises(ValueError, match="num_classes"):
        from_timm("test_resnet", 0, weights="random")


def test_architectures_without_weights_are_named() -> None:
    name = next(n for n in timm.list_models("vit*") if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(ValueError, match=f'{name}.*weights="random"'):
        from_timm(name, 3)


def test_networks_without_maps_of_the_whole_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inception_v4.*maps of stride 4"):
        from_timm("inception_v4", 3, weights="random")  # whose convolutions are not padded
    with pytest.raises(ValueError, match=r"Linear offers no feature maps.*convnext_tiny"):
        from_timm(nn.Linear(1, 1), 3)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "cpsl.models.adapters.timm")
    module = runpy.run_module("cpsl.models.adapters.timm")  # which imports timm at its first use
    with pytest.raises(ModuleNotFoundError, match="pip install timm"):
        module["from_timm"]("resnet18", 3)
