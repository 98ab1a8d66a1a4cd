import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl.models.adapters.module import from_module
from cpsl.models.adapters.weights import load_weights, read_weights
from cpsl.models.network import check_network, resize, segment


class Pyramid(nn.Module):
    """A small feature pyramid with an auxiliary head, whose output has the size of the image."""

    def __init__(
        self, num_classes: int = 5, align_corners: bool = False, kernel: int = 1, returns: str = "tensor"
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in [(3, 8), (8, 8), (8, 16)]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, 12, 1) for channels in (8, 16))
        self.dropout = nn.Dropout2d(0.5)
        self.classifier = nn.Conv2d(12, num_classes, kernel, padding=kernel // 2)
        self.auxiliary = nn.Conv2d(16, num_classes, 1)
        self.align_corners, self.returns = align_corners, returns

    def forward(self, images: Tensor) -> Any:
        maps = [images]
        for stage in self.encoder:
            maps.append(stage(maps[-1]))
        fine, coarse = (layer(level) for layer, level in zip(self.lateral, maps[-2:], strict=True))
        fused = fine + F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        logits = self.classifier(self.dropout(fused))
        extra = self.auxiliary(maps[-1])
        logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=self.align_corners)
        outputs = {"tensor": logits, "tuple": (logits, extra), "out": {"aux": extra, "out": logits}}
        return outputs[self.returns]


class Tokens(nn.Module):
    """A transformer-like network whose classifier is a linear layer of channels-last maps."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(16))
        self.embed = nn.Conv2d(3, 16, 8, stride=8)
        self.head = nn.Linear(16, 4)
        self.flat = flat

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).permute(0, 2, 3, 1) + self.position
        batch, height, width, _ = tokens.shape
        logits = self.head(tokens.flatten(1, 2) if self.flat else tokens)
        return logits.reshape(batch, height, width, 4).permute(0, 3, 1, 2)


@given(
    num_classes=st.integers(2, 8),
    align_corners=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    returns=st.sampled_from(["tensor", "tuple", "out"]),
    trained=st.booleans(),
)
def test_classifier_and_convention_are_detected(
    num_classes: int, align_corners: bool, kernel: int, returns: str, trained: bool
) -> None:
    module = Pyramid(num_classes, align_corners, kernel, returns)
    if not trained:  # logits are zero everywhere, and resized maps are equal by either convention
        nn.init.zeros_(module.classifier.weight)
    network = from_module(module, input_size=8)
    assert network.body.classifier == "classifier"
    assert (network.num_classes, network.feature_dim) == (num_classes, 12)
    assert network.align_corners is align_corners
    assert check_network(network) is network
    images = torch.rand(2, 3, 40, 64)
    with torch.no_grad():
        output = network.eval()(images)
        expected = module((images - network.mean) / network.std)
    if returns != "tensor":
        expected = expected["out" if returns == "out" else 0]
    torch.testing.assert_close(resize(output.logits, (40, 64), align_corners), expected)
    torch.testing.assert_close(module.classifier(output.features), output.logits)


def test_module_and_random_state_are_unchanged() -> None:
    module = Pyramid()
    module.encoder[1].eval()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    modes = [layer.training for layer in module.modules()]
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = from_module(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert [layer.training for layer in module.modules()] == modes
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    module.eval()
    assert torch.equal(module(images), module.eval()(images))
    assert {f"body.module.{key}" for key in before} | {"mean", "std"} == set(network.state_dict())


def test_all_trained_parameters_have_gradients() -> None:
    network = from_module(Pyramid())
    names = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert names == {"body.module.auxiliary.weight", "body.module.auxiliary.bias"}
    output = network(torch.rand(2, 3, 32, 32))
    output.logits.sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in network.parameters())
    assert network.body.module.classifier._stored is None


def test_copies_are_independent() -> None:
    network = from_module(Pyramid()).eval()
    network(torch.rand(1, 3, 32, 32))
    copied = copy.deepcopy(network)
    images = torch.rand(1, 3, 32, 32)
    expected = network(images)
    assert torch.equal(copied(images).logits, expected.logits)
    with torch.no_grad():
        copied.body.module.classifier.weight.add_(1)
    assert not torch.equal(copied(images).logits, expected.logits)
    assert torch.equal(network(images).logits, expected.logits)


def test_replica_of_data_parallel_has_its_own_output() -> None:
    network = from_module(Pyramid()).eval()
    layer = network.body.module.classifier
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.weight, layer.bias
    layer._stored, replica._stored = (), ()
    replica(torch.rand(1, 12, 4, 4))
    assert layer._stored == ()
    assert len(replica._stored) == 2


def test_gradient_checkpointing_stores_nothing_in_the_backward_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Pyramid):
        def forward(self, images: Tensor) -> Any:
            return checkpoint(super().forward, images, use_reentrant=False)

    network = from_module(Checkpointed())
    network(torch.rand(1, 3, 32, 32)).logits.sum().backward()
    assert network.body.module.classifier._stored is None
    copy.deepcopy(network)


def test_linear_layer_of_maps_is_a_classifier() -> None:
    module = Tokens()
    network = from_module(module, input_size=8)
    output = segment(network, torch.rand(1, 3, 30, 50))
    assert output.logits.shape == (1, 4, 4, 7)
    assert output.features.shape == (1, 16, 4, 7)
    assert network.encoder == ("module.position", "module.embed")
    assert sum(len(layer) for layer in network.pretrained_layers()) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype: torch.dtype) -> None:
    network = from_module(Pyramid(align_corners=True).to(dtype))
    assert network.align_corners
    assert segment(network, torch.rand(1, 3, 32, 32)).logits.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert segment(network, torch.rand(1, 3, 32, 32)).features.dtype == torch.bfloat16


def test_compilation_without_graph_breaks() -> None:
    network = from_module(Pyramid(), input_size=8).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for size in [(32, 32), (40, 48)]:
        images = torch.rand(1, 3, *size)
        assert torch.equal(compiled(images).logits, network(images).logits)
    assert network.body.module.classifier._stored is None


def test_export_with_dynamic_sizes() -> None:
    network = from_module(Pyramid()).eval()
    sides = {2: 8 * torch.export.Dim("h", min=2, max=64), 3: 8 * torch.export.Dim("w", min=2, max=64)}
    shapes = ({0: torch.export.Dim("batch", max=8), **sides},)
    program = torch.export.export(network, (torch.rand(2, 3, 32, 48),), dynamic_shapes=shapes, strict=False)
    images = torch.rand(3, 3, 40, 64)
    torch.testing.assert_close(program.module()(images), network(images))


def test_output_without_detectable_classifier() -> None:
    class Sum(Pyramid):
        def forward(self, images: Tensor) -> Tensor:
            maps = images
            for stage in self.encoder:
                maps = stage(maps)
            return self.auxiliary(maps) + self.auxiliary(maps.flip(2))

    with pytest.raises(ValueError, match="auxiliary"):
        from_module(Sum())
    with pytest.raises(ValueError, match=r"once.*2 calls"):
        from_module(Sum(), "auxiliary")


def test_named_classifier_with_undetectable_resizing() -> None:
    module = nn.Sequential(Pyramid(), nn.Sigmoid())
    with pytest.raises(ValueError, match="align_corners"):
        from_module(module, "0.classifier")
    network = from_module(module, "0.classifier", align_corners=True)
    assert network.align_corners
    assert network.encoder[0] == "module.0.encoder"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("clasifier", ValueError, "classifier"),
        ("encoder.0", TypeError, "encoder.0.0"),
        ("encoder.0.0", ValueError, "height and width"),
        ("dropout", TypeError, "Dropout2d"),
    ],
)
def test_wrong_classifiers_are_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_module(Pyramid(), name)


def test_sequences_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size=1"):
        from_module(Tokens(flat=True), "head")


def test_modules_without_logits_are_refused() -> None:
    class Queries(nn.Module):
        def forward(self, images: Tensor) -> Any:
            output = Queries()
            output.class_queries_logits = images
            return output

    with pytest.raises(TypeError, match="mask classification"):
        from_module(Queries())
    with pytest.raises(TypeError, match=r"logits.*Tensor of shape \(1, 3\)"):
        from_module(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def test_size_of_the_trial_is_named() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm([8, 8, 8]), nn.Conv2d(8, 2, 1))
    with pytest.raises(RuntimeError) as caught:
        from_module(fixed)
    assert "input_size" in caught.value.__notes__[0]
    assert segment(from_module(fixed, input_size=(32, 32)), torch.rand(1, 3, 50, 20)).logits.shape[2:] == (
        8,
        8,
    )


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "backbone.", "encoder.", "model.encoder."]
)
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_prefixes_of_weights_are_recognized(prefix: str, nested: str | None, tmp_path: Any) -> None:
    source, target = Pyramid(), Pyramid()
    entries = {prefix + key: value for key, value in source.encoder.state_dict().items()}
    entries["fc.weight"] = torch.rand(10, 16)
    torch.save({nested: entries, "epoch": 3} if nested else entries, tmp_path / "encoder.pth")
    kept = target.classifier.weight.clone()
    load_weights(target, tmp_path / "encoder.pth", "encoder")
    assert torch.equal(target.encoder[2][0].weight, source.encoder[2][0].weight)
    assert torch.equal(target.classifier.weight, kept)


def test_weights_of_the_whole_network_are_loaded_but_for_other_classes(tmp_path: Any) -> None:
    source, target = Pyramid(num_classes=9), Pyramid()
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    load_weights(target, tmp_path / "whole.pth", "encoder")
    assert torch.equal(target.lateral[1].weight, source.lateral[1].weight)
    assert target.classifier.weight.shape[0] == 5


def test_weights_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.rand(64, 3, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"(?s)other\.pth.*encoder\.0\.0\.bias \(8,\).*conv1\.weight"):
        load_weights(Pyramid(), path, "encoder")
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="epoch"):
        read_weights(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_weights(tmp_path / "absent.safetensors")
