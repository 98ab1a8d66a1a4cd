"""BatchNorm of pretrained networks: with statistics of the target, and frozen."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cpsl._internal.distributed import unwrap


@torch.no_grad()
def adapt_batch_norm(network: nn.Module, images: Iterable[Tensor], share: float = 0.25) -> None:
    r"""Mixes the statistics of target images into those of BatchNorm layers, in place, before self-training.

        μ ← (1 - a) μ + a μ',   σ² ← (1 - a) σ² + a σ'² + a (1 - a) (μ - μ')²

    These are mean and variance of a mixture with the share a of target features, whose mean is μ' and whose
    variance σ'² over all images (Schneider et al., 2020; Li et al., 2018, with a = 1). A change of light or
    weather shifts features as a whole, which the statistics undo without any label. What the images show
    differs as well, hence a share: all of the target's statistics often do harm. While they are measured,
    each batch is normalized by itself. Layers that the network does not use stay as they are.

    Args:
        network: Trained on the source; its modes of training and evaluation are kept.
        images: Batches (B, 3, H, W) as the network takes them, such as 50 images; equal on all ranks.
        share: a, 0...1.

    Raises:
        ValueError: There is no batch, or share is not in 0...1.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(3))
        >>> adapt_batch_norm(network, [torch.full((2, 3, 4, 4), 8.0)], share=0.25)
        >>> network[0].running_mean, network[0].running_var
        (tensor([2., 2., 2.]), tensor([12.7500, 12.7500, 12.7500]))
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0...1, got {share}")
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return
    source = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    modes = [(part, part.training) for part in network.modules()]
    target = [_Moments() for _ in norms]
    hooks = [norm.register_forward_hook(each.add) for norm, each in zip(norms, target, strict=True)]
    batches = 0
    try:
        network.eval()
        for norm in norms:
            norm.momentum = 1.0  # the running statistics become those of the batch
            norm.train()
        for batch in images:
            network(batch)
            batches += 1
    finally:
        for norm, state, momentum, hook in zip(norms, source, momenta, hooks, strict=True):
            hook.remove()
            norm.load_state_dict(state)
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
    if not batches:
        raise ValueError("there must be at least one batch of images")
    for norm, old, new in zip(norms, source, target, strict=True):
        if new.count:
            mean, variance = ((1 - share) * old[f"running_{key}"] for key in ("mean", "var"))
            difference = old["running_mean"] - new.mean
            variance += share * new.squares / (new.count - 1) + share * (1 - share) * difference**2
            norm.load_state_dict(old | {"running_mean": mean + share * new.mean, "running_var": variance})


class _Moments:
    """Number, mean and summed squared deviations of the inputs of a layer, joined as in Chan et al., 1979."""

    count = 0
    mean: Tensor
    squares: Tensor

    def add(self, norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """Adds a batch; the running statistics of the layer are those of this batch."""
        count = inputs[0].numel() // inputs[0].shape[1]
        mean, squares = norm.running_mean.float(), norm.running_var.float() * (count - 1)
        if not self.count:
            self.mean, self.squares = torch.zeros_like(mean), torch.zeros_like(squares)
        difference, total = mean - self.mean, self.count + count
        self.squares += squares + difference**2 * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total


def freeze_batch_norm(module: nn.Module) -> None:
    """Freezes the statistics, weights and biases of BatchNorm layers, in place.

    In a `SegmentationNetwork`, only pretrained layers are frozen: new layers have no statistics yet. There, a
    BatchNorm without weights counts as new. Call it after each `module.train()`, which unfreezes the
    statistics.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
        >>> freeze_batch_norm(model)
        >>> model[0].training, model[1].training
        (True, False)
    """
    network: Any = unwrap(module)
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if hasattr(network, "pretrained_layers"):
        pretrained = {id(parameter) for layer in network.pretrained_layers() for parameter in layer}
        norms = [norm for norm in norms if id(norm.weight) in pretrained]
    for norm in norms:
        norm.eval().requires_grad_(False)
