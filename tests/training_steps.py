"""Small methods and batches for the tests of the training steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.data import SourceBatch, TargetBatch
from cpsl.limits import ShareLimits
from cpsl.methods import AdversarialWarmup, Distillation, OnlineSelfLabeling, SelfLabeling
from cpsl.models import DeepLabV2, Discriminator, ExponentialMovingAverage
from cpsl.testing import training_batches

K, D = 3, 8
METHODS = ("warmup", "self_labeling", "distillation", "online")

Method = AdversarialWarmup | SelfLabeling | Distillation | OnlineSelfLabeling
Wrap = Callable[[nn.Module], nn.Module]


def network(seed: int = 0) -> DeepLabV2:
    """Returns a network without dropout, so that passes can be repeated."""
    torch.manual_seed(seed)
    model = DeepLabV2(K, "resnet_tiny", D)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model


def build(name: str, wrap: Wrap = lambda module: module, **options: Any) -> Method:
    """Builds a method of small networks, always with the same weights.

    Args:
        name: One of METHODS.
        wrap: Wraps each part that is trained.
        options: Options of the method.
    """
    if name == "warmup":
        return AdversarialWarmup(wrap(network()), wrap(Discriminator(K, width=4)), **options)
    if name == "distillation":
        return Distillation(wrap(network()), network(seed=1), **options)
    student = network()
    teacher = ExponentialMovingAverage(network(seed=1))
    closed_form = {"sampling": "stratified", "prototype_update": "assignments"} if name == "online" else {}
    clustering = ClassBalancedPrototypeClustering(K, D, bank_size=256, samples_per_image=64, **closed_form)
    clustering.initialize(torch.randn(K, D), torch.tensor([0.5, 0.3, 0.2]))
    if name == "online":
        # The teacher is confident about a part of the pixels; the prototypes are not those of the source.
        teacher.module.head.classify.weight.data.mul_(30)
        options = {"confidence_threshold": 0.6, "masked_patch": 8, "initial_steps": 0, **options}
        # A class has reached its limit.
        options["limits"] = ShareLimits(torch.tensor([0.8, 0.1, 0.1]), start_updates=0)
        return OnlineSelfLabeling(wrap(student), teacher, clustering, **options)
    return SelfLabeling(wrap(student), teacher, wrap(clustering), **options)


def batches(name: str, seed: int = 0, **options: Any) -> tuple[SourceBatch, TargetBatch]:
    """Returns batches with the pseudo labels that a method needs."""
    return training_batches(K, soft=name != "distillation", seed=seed, **options)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Returns copies of all gradients that are not zero, by the name of the parameter."""
    named = ((name, parameter.grad) for name, parameter in module.named_parameters())
    return {name: grad.clone() for name, grad in named if grad is not None and grad.any()}


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.01, momentum=0.9)
