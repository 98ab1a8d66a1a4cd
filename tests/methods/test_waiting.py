"""A training step never synchronizes with the device: no value is read, no shape depends on one."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import cpsl.models.ema
from cpsl import ClassBalancedPrototypeClustering, DiceThresholds, PseudoLabelRectifier, ShareLimits
from cpsl.authors import AuthorsClustering, AuthorsSelfLabeling, probability_distillation
from cpsl.methods import AdversarialWarmup, Distillation, OnlineSelfLabeling, SelfLabeling
from cpsl.models import DeepLabV2, Discriminator, ExponentialMovingAverage
from cpsl.testing import training_batches
from cpsl.training import Optimization, autocast

CLASSES, WIDTH = 5, 8
Method = AdversarialWarmup | SelfLabeling | Distillation | OnlineSelfLabeling


def network() -> DeepLabV2:
    return DeepLabV2(CLASSES, "resnet_tiny", WIDTH)


def warmup() -> Method:
    return AdversarialWarmup(network(), Discriminator(CLASSES, width=4))


def self_labeling() -> Method:
    clustering = ClassBalancedPrototypeClustering(CLASSES, WIDTH, bank_size=128, samples_per_image=16)
    student = network()
    return SelfLabeling(student, ExponentialMovingAverage(student), clustering)


def self_labeling_of_the_authors() -> Method:
    clustering = AuthorsClustering(
        CLASSES,
        WIDTH,
        bank_size=128,
        samples_per_image=16,
        sampling="uniform",
        image_by_image=True,
        dot_product_bank_scores=True,
        logit_assignments=True,
    )
    student = network()
    return AuthorsSelfLabeling(
        student,
        ExponentialMovingAverage(student, "training"),
        clustering,
        PseudoLabelRectifier(),
        rectify_features=True,
        crop_bank_labels=True,
        contrast_weight=0.001,
    )


def distillation() -> Method:
    return Distillation(network(), network().eval())


def distillation_of_the_authors() -> Method:
    return Distillation(network(), network().eval(), loss=probability_distillation)


def online(mixing: Literal["class", "cut"] = "class") -> Method:
    clustering = ClassBalancedPrototypeClustering(
        CLASSES, WIDTH, bank_size=128, samples_per_image=16, sampling="stratified", prototype_update="labels"
    )
    student = network()
    teacher = ExponentialMovingAverage(student)
    thresholds = DiceThresholds(CLASSES)
    limits = ShareLimits(torch.ones(CLASSES), start_updates=1)
    # The first step has initial prototypes, the second has not.
    return OnlineSelfLabeling(
        student, teacher, clustering, thresholds, limits, mixing=mixing, initial_steps=1
    )


METHODS = [
    warmup,
    self_labeling,
    self_labeling_of_the_authors,
    distillation,
    distillation_of_the_authors,
    online,
    partial(online, "cut"),
]


@pytest.mark.parametrize("build", METHODS)
def test_a_step_reads_no_value(
    build: Callable[[], Method], fake_cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A deep copy of a fake tensor would belong to a copy of its mode.
    monkeypatch.setattr(cpsl.models.ema, "copy", SimpleNamespace(deepcopy=lambda _: network()))
    method = build()
    soft = isinstance(method, SelfLabeling)
    source, target = training_batches(CLASSES, soft=soft, device=fake_cuda)
    for _ in range(2):
        for _loss in method.losses(source, target):  # autograd needs a real device
            pass
        method.update(torch.ones((), dtype=torch.bool, device=fake_cuda))
    with pytest.raises(DataDependentOutputException):
        torch.ones(1, device=fake_cuda).item()


@pytest.mark.cuda
@pytest.mark.parametrize("build", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_does_not_synchronize(build: Callable[[], Method], precision: str) -> None:
    device = torch.device("cuda", 0)
    method = build().to(device)
    source, target = training_batches(CLASSES, soft=isinstance(method, SelfLabeling), device=device)
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-4, 0.9, fused=True)
    optimization = Optimization(optimizer, 10, precision=precision, module=method)

    def step() -> None:
        losses = method.losses(source, target)
        with autocast(device, precision):
            for loss in losses:
                optimization.backward(loss)
        method.update(optimization.step())

    step()  # allocations and compilations of the first step may synchronize
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
