"""The protocol of a network: its check, its call at any size, its geometry, its layers, its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl import ClassBalancedPrototypeClustering, Segmenter
from cpsl.data import LabelSpace, class_colors
from cpsl.methods import OnlineSelfLabeling
from cpsl.models import (
    DeepLabV2,
    ExponentialMovingAverage,
    NetworkSpec,
    SegmentationOutput,
    build_network,
    check_network,
    parameter_groups,
    resize,
    segment,
)
from cpsl.models.build import call_builder, check_rebuilds
from cpsl.models.network import fit_input, layers_of
from cpsl.testing import training_batches
from small_networks import Patches, build_patches

ATTRIBUTES = ("num_classes", "feature_dim", "align_corners", "input_size", "pretrained_layers")


@given(
    wrong=st.dictionaries(st.sampled_from(ATTRIBUTES), st.sampled_from([None, "3", 0, -1, 1.5]), min_size=1)
)
def test_all_that_a_network_lacks_is_listed(wrong: dict[str, Any]) -> None:
    network = Patches()
    for name, value in wrong.items():
        setattr(network, name, value)
    with pytest.raises(TypeError) as error:
        check_network(network)
    for name in ATTRIBUTES:
        assert (f"{name}" in str(error.value)) == (name in wrong)


@pytest.mark.parametrize("other", [None, (Patches(), 3), Patches])
def test_what_is_no_module_is_named(other: Any) -> None:
    with pytest.raises(TypeError, match=f"nn.Module.*{type(other).__name__}"):
        check_network(other)


def test_a_network_is_found_in_its_wrappers() -> None:
    network = Patches()
    assert check_network(network) is network
    average = ExponentialMovingAverage(nn.DataParallel(network))
    assert isinstance(check_network(average), Patches)
    assert check_network(nn.DataParallel(network)) is network


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.one_of(st.integers(1, 20), st.tuples(st.integers(1, 40), st.integers(1, 40))),
)
def test_images_are_enlarged_to_an_accepted_size(height: int, width: int, accepted: Any) -> None:
    images = torch.rand(1, 3, height, width)
    fitted = fit_input(images, accepted)
    if isinstance(accepted, int):
        for before, after in zip(images.shape[2:], fitted.shape[2:], strict=True):
            assert after % accepted == 0
            assert before <= after < before + accepted
    else:
        assert fitted.shape[2:] == accepted
    assert fit_input(fitted, accepted) is fitted


@given(st.integers(2, 9), st.integers(2, 9), st.booleans(), st.booleans())
def test_resizing_keeps_what_is_linear(height: int, width: int, align_corners: bool, across: bool) -> None:
    """A ramp over the image has the same values, sampled on the grid and resized, as on the pixels."""

    def ramp(count: int) -> Tensor:
        cells = (torch.arange(count) + 0.5) / count
        return torch.linspace(0, 1, count) if align_corners else cells

    size = (4 * height, 4 * width)
    rows, columns = (ramp(height)[:, None], ramp(width)[None])
    maps = columns.expand(height, width) if across else rows.expand(height, width)
    wanted = ramp(size[1])[None].expand(size) if across else ramp(size[0])[:, None].expand(size)
    inner = (slice(2, -2), slice(2, -2))  # outside of the outermost centers values are constant
    got = resize(maps[None, None].contiguous(), size, align_corners)[0, 0]
    torch.testing.assert_close(got[inner], wanted[inner])


def test_a_network_runs_in_its_own_precision() -> None:
    network = Patches().to(torch.bfloat16)
    output = segment(network, torch.rand(2, 3, 30, 33))
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.shape == (2, 3, 8, 9)


class Returns(Patches):
    """Returns something else."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "error", "named"),
    [
        (torch.zeros(1, 3, 8, 8), TypeError, "Tensor"),
        ((torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, 8)), TypeError, "tuple"),
        (SegmentationOutput(torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, 8)), ValueError, "logits"),
        (SegmentationOutput(torch.zeros(1, 3, 8, 8), torch.zeros(1, 9, 8, 8)), ValueError, "features"),
        (SegmentationOutput(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 4, 4)), ValueError, "features"),
    ],
)
def test_other_outputs_are_refused(value: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        segment(Returns(value), torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_of_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"{dtype}.*divide by 255"):
        segment(Patches(), torch.ones(1, 3, 8, 8, dtype=dtype))


def test_layers_are_disjoint_and_in_order() -> None:
    with torch.device("meta"):
        network = DeepLabV2(3, "resnet50", 8, output_norm=True)
    layers = network.pretrained_layers()
    assert len(layers) == 1 + 3 + 4 + 6 + 3  # the stem and the blocks
    found = [id(parameter) for layer in layers for parameter in layer]
    names = {id(p): name for name, p in network.named_parameters()}
    wanted = [id(p) for p in network.backbone.parameters() if "output_norm" not in names[id(p)]]
    assert found == wanted


def test_blocks_of_one_stage_are_layers_of_their_own() -> None:
    encoder = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 3),
            "stages": nn.ModuleList(
                [nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))}) for _ in range(2)]
            ),
            "norm": nn.LayerNorm(4),
        }
    )
    assert [len(layer) for layer in layers_of(encoder)] == [2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["resnet101", "timm", "timm:", "other:name", "my_package.module:build", ""])
def test_unknown_names_are_refused_and_not_imported(name: str) -> None:
    with pytest.raises(ValueError, match="LIBRARY:NETWORK"):
        build_network(name, 3)


def test_unknown_arguments_are_named_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"deeplabv2:resnet_tiny.*color.*feature_dim"):
        build_network("deeplabv2:resnet_tiny", 3, weights="random", color=3)


def test_weights_are_never_silently_random(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet_tiny"):
        build_network("deeplabv2:resnet_tiny", 3)
    with pytest.raises(FileNotFoundError, match=r"no\.pt"):
        build_network("deeplabv2:resnet_tiny", 3, weights=tmp_path / "no.pt")


def test_a_network_of_ones_own_gets_the_arguments_that_it_takes() -> None:
    network = call_builder(build_patches, "small_networks:build_patches", 5, "random", {"features": 6})
    assert (network.num_classes, network.feature_dim) == (5, 6)
    assert network.spec == NetworkSpec("small_networks:build_patches", {"features": 6})
    assert check_rebuilds(network, build_patches).feature_dim == 6

    def build(num_classes: int, weights: str) -> Patches:
        return Patches(num_classes, features={"random": 2, "pretrained": 4}.get(weights, 8))

    for weights, features in (("random", 2), ("pretrained", 4), ("a.pt", 8)):
        assert call_builder(build, "m:build", 3, weights, {}).feature_dim == features
    with pytest.raises(ValueError, match=r"m:build.*weights.*a\.pt"):
        call_builder(build_patches, "m:build", 3, "a.pt", {})
    with pytest.raises(TypeError, match=r"m:build.*color"):
        call_builder(build_patches, "m:build", 3, "random", {"color": 3})
    with pytest.raises(TypeError, match=r"Conv2d.*num_classes"):
        call_builder(lambda classes: nn.Conv2d(3, classes, 1), "m:build", 3, "random", {})
    with pytest.raises(ValueError, match=r"m:build.*3 classes.*4"):
        call_builder(lambda classes: Patches(3), "m:build", 4, "random", {})


def test_rebuilding_draws_no_random_numbers() -> None:
    network = build_network("deeplabv2:resnet_tiny", 3, weights="random", feature_dim=8)
    state = torch.get_rng_state()
    check_rebuilds(network)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.floats(0.1, 1), st.floats(0, 20))
def test_each_parameter_is_in_one_group_and_rates_grow_towards_the_output(decay: float, head: float) -> None:
    network = build_network("deeplabv2:resnet_tiny", 3, weights="random", feature_dim=8)
    groups = parameter_groups(network, 0.5, head_multiplier=head, layer_decay=decay)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, network.parameters()))
    *pretrained, new = groups
    assert new["lr"] == 0.5 * head
    rates = {id(parameter): group["lr"] for group in pretrained for parameter in group["params"]}
    of_layers = [{rates[id(parameter)] for parameter in layer} for layer in network.pretrained_layers()]
    assert all(len(rate) == 1 for rate in of_layers)
    values = [rate.pop() for rate in of_layers]
    assert values == [0.5 * decay ** (len(values) - 1 - depth) for depth in range(len(values))]


@pytest.mark.parametrize(
    "layers",
    [
        lambda network: None,
        lambda network: list(network.encode.parameters()),
        lambda network: [list(network.encode.parameters())] * 2,
        lambda network: [list(Patches().encode.parameters())],
    ],
    ids=["none", "without lists", "twice", "of another network"],
)
def test_pretrained_layers_are_lists_of_parameters_of_the_network(layers: Any) -> None:
    network = Patches()
    network.pretrained_layers = lambda: layers(network)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"pretrained_layers.*Patches"):
        parameter_groups(network, 1e-3)


@pytest.mark.parametrize("size", [np.int64(4), np.int64(8), (np.int64(32), np.int64(64))])
def test_attributes_may_be_scalars_of_numpy(size: Any) -> None:
    torch.manual_seed(0)
    plain, network = Patches(align_corners=False), Patches()
    network.load_state_dict(plain.state_dict())
    plain.input_size = size if isinstance(size, tuple) else int(size)
    attributes = {"num_classes": np.int64(3), "feature_dim": np.int64(8), "align_corners": np.bool_(False)}
    for name, value in {**attributes, "input_size": size}.items():
        setattr(network, name, value)
    assert check_network(network) is network
    batches, losses = training_batches(3), []
    classes = LabelSpace(("a", "b", "c"), class_colors("abc"))
    for each in (plain, network):
        clustering = ClassBalancedPrototypeClustering(3, 8, bank_size=64, prototype_update="labels")
        clustering.initialize(torch.eye(3, 8), torch.ones(3))
        torch.manual_seed(0)
        method = OnlineSelfLabeling(each, ExponentialMovingAverage(each), clustering, initial_steps=0)
        losses.append(method(*batches).item())
    assert losses[0] == losses[1]
    image = torch.randint(256, (3, 30, 50), dtype=torch.uint8)
    scores = [Segmenter(each.eval(), classes, (30, 50)).predict(image).scores for each in (plain, network)]
    assert torch.equal(*scores)


def test_attributes_that_a_name_does_not_restore_are_named() -> None:
    network = build_network("deeplabv2:resnet_tiny", 3, weights="random", feature_dim=8)
    network.align_corners = False
    with pytest.raises(ValueError, match="align_corners"):
        check_rebuilds(network)
