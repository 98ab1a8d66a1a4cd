"""BatchNorm layers get the statistics of a mixture of source and target, or stay as they are."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl.models import DeepLabV2, adapt_batch_norm, freeze_batch_norm

SEEDS = st.integers(0, 10_000)


def images(seed: int, batches: int = 3, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = 0.2 + torch.rand(2, generator=generator)
    return [scale * torch.randn(4, channels, 8, 9, generator=generator) + shift for _ in range(batches)]


def as_in_training(norm: nn.BatchNorm2d, batches: list[Tensor]) -> nn.BatchNorm2d:
    norm.momentum = None
    norm(torch.cat(batches))
    return norm


def moments(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_mean**2 + norm.running_var


@given(seed=SEEDS, share=st.floats(0, 1), batches=st.integers(1, 4))
def test_statistics_are_those_of_a_mixture(seed: int, share: float, batches: int) -> None:
    """The first two moments of a mixture are the means of its parts'."""
    source = as_in_training(nn.BatchNorm2d(3), images(seed))
    target = as_in_training(nn.BatchNorm2d(3), images(seed + 1, batches))
    wanted = [(1 - share) * a + share * b for a, b in zip(moments(source), moments(target), strict=True)]
    adapt_batch_norm(nn.Sequential(source), images(seed + 1, batches), share)
    torch.testing.assert_close(list(moments(source)), wanted)


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), shift=st.floats(0, 10))
def test_statistics_do_not_depend_on_the_batches(seed: int, sizes: list[int], shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, 3, 2, 2, generator=generator) + shift * i for i, size in enumerate(sizes)]
    apart, together = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    adapt_batch_norm(nn.Sequential(apart), batches, share=0.5)
    adapt_batch_norm(nn.Sequential(together), [torch.cat(batches)], share=0.5)
    torch.testing.assert_close(apart.state_dict(), together.state_dict(), atol=1e-5, rtol=1e-5)


def test_a_layer_of_several_passes_counts_them_all_and_an_unused_one_none() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.unused = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
            self.unused.running_mean.fill_(7)

        def forward(self, image: Tensor) -> Tensor:
            return self.norm(image) + self.norm(image + 2)

    network = Twice()
    adapt_batch_norm(network, [torch.zeros(1, 1, 2, 2)], share=1.0)
    assert network.norm.running_mean.item() == 1
    assert network.norm.running_var.item() == pytest.approx(8 / 7)
    assert network.unused.running_mean.item() == 7


def test_layers_without_weights_are_frozen_as_well() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3)).train()
    freeze_batch_norm(module)
    assert [norm.training for norm in module] == [False, False]
    assert not any(parameter.requires_grad for parameter in module.parameters())


@given(seed=SEEDS, training=st.booleans())
def test_nothing_but_the_statistics_changes(seed: int, training: bool) -> None:
    torch.manual_seed(seed)
    network = DeepLabV2(3, "resnet_tiny", 8, dropout=0.5).train(training)
    network.backbone.bn1.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    batches = [batch[..., :8].abs() for batch in images(seed, 2)]
    adapt_batch_norm(network, batches, 0.0)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    adapt_batch_norm(network, batches, 0.5)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(before[key], value)}
    assert {key.rpartition(".")[2] for key in changed} == {"running_mean", "running_var"}
    assert modes == [part.training for part in network.modules()]
    assert network.backbone.bn1.momentum == 0.1
    assert all(value.grad is None for value in network.parameters())


def test_a_network_is_intact_after_images_that_fail() -> None:
    def damaged() -> Iterator[Tensor]:
        yield torch.rand(1, 3, 32, 32)
        raise OSError("a file is damaged")

    network = DeepLabV2(3, "resnet_tiny", 8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(OSError, match="damaged"):
        adapt_batch_norm(network, damaged())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(part.training for part in network.modules())
    with pytest.raises(ValueError, match="at least one batch"):
        adapt_batch_norm(network, [])
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_network_without_statistics_takes_no_images() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)
    )
    adapt_batch_norm(network, iter(()))


@pytest.mark.parametrize("share", [-0.1, 1.1, torch.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        adapt_batch_norm(nn.BatchNorm2d(3), images(0), share)
