"""Clustering, aligner, bank and class means keep their precision in a network of half precision."""

import copy
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl import ClassBalancedPrototypeClustering, DistributionAligner, PixelMemoryBank, RunningClassMeans

K, D = 4, 6


def build(prototype_update: Literal["gradient", "assignments"] = "gradient") -> nn.ModuleDict:
    clustering = ClassBalancedPrototypeClustering(
        K, D, bank_size=40, samples_per_image=10, momentum=0.9, prototype_update=prototype_update
    )
    return nn.ModuleDict({"clustering": clustering, "means": RunningClassMeans(K, D), "net": nn.Linear(2, 2)})


def types(module: nn.Module) -> dict[str, torch.dtype]:
    return {key: value.dtype for key, value in module.state_dict().items()}


def train(modules: nn.ModuleDict, features: Tensor, labels: Tensor, steps: int = 3) -> None:
    clustering, means = modules["clustering"], modules["means"]
    optimizer = torch.optim.AdamW([clustering.prototypes], lr=1e-3)
    torch.manual_seed(0)
    means.update(features, labels)
    clustering.initialize(*means.compute())
    for _ in range(steps):
        output = clustering(features, labels)
        if clustering.prototypes.requires_grad:
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        clustering.update(output)


@pytest.mark.parametrize(
    "module",
    [
        ClassBalancedPrototypeClustering(K, D, bank_size=8),
        DistributionAligner(K),
        PixelMemoryBank(8, D),
        RunningClassMeans(K, D),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_conversion_to_a_lower_precision_is_not_applied(module: nn.Module) -> None:
    before, values = types(module), copy.deepcopy(module.state_dict())
    network = nn.Sequential(nn.Linear(2, 2), module)
    for lower in (network.half, network.bfloat16, network.float, lambda: network.type(torch.float16)):
        lower()
        assert types(module) == before
    assert all(torch.equal(value, values[key]) for key, value in module.state_dict().items())
    assert network[0].weight.dtype == torch.float16

    assert {v.device.type for v in network.to("meta", torch.bfloat16).state_dict().values()} == {"meta"}
    assert types(module) == before
    network.to_empty(device="cpu").double()
    assert {v.dtype for v in module.state_dict().values() if v.is_floating_point()} == {torch.float64}


@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    update=st.sampled_from(["gradient", "assignments"]),
    seed=st.integers(0, 10_000),
)
def test_half_precision_computes_what_float32_computes(
    dtype: torch.dtype, update: Literal["gradient", "assignments"], seed: int
) -> None:
    torch.manual_seed(seed)
    exact = build(update)
    converted = copy.deepcopy(exact).to(dtype)
    assert isinstance(converted["clustering"].prototypes, nn.Parameter)
    features, labels = torch.randn(2, D, 5, 5).to(dtype), torch.randint(K, (2, 5, 5))
    train(exact, features.float(), labels)
    train(converted, features, labels)
    for name in ("clustering", "means"):
        for key, value in exact[name].state_dict().items():
            assert torch.equal(converted[name].state_dict()[key], value), key


@pytest.fixture
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_default_dtype_of_half_precision_changes_nothing(default_dtype: None) -> None:
    """Lightning's `bf16-true` sets it while modules are built and while they compute."""
    torch.manual_seed(0)
    features, labels = torch.randn(2, D, 5, 5, dtype=torch.float32), torch.randint(K, (2, 10, 10))
    built = build()
    expected = copy.deepcopy(built)
    train(built, features, labels)
    torch.set_default_dtype(torch.float32)
    assert types(built["clustering"]) == types(build()["clustering"])
    train(expected, features, labels)
    for name in ("clustering", "means"):
        for key, value in expected[name].state_dict().items():
            assert torch.equal(built[name].state_dict()[key], value), key


def test_a_distribution_of_counts_is_exact_for_any_default_dtype(default_dtype: None) -> None:
    aligner = DistributionAligner(2, initial=torch.tensor([1000, 1]))
    torch.testing.assert_close(aligner.distribution[1].item(), 1 / 1001)
