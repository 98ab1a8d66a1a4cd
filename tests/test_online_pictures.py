from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from cpsl import ClassBalancedPrototypeClustering, DiceThresholds, ShareLimits
from cpsl.methods import OnlineSelfLabeling
from cpsl.models import DeepLabV2, ExponentialMovingAverage
from cpsl.testing import training_batches

spec = spec_from_file_location("online_pictures", Path(__file__).parents[1] / "docs" / "online_pictures.py")
assert spec is not None
assert spec.loader is not None
online_pictures: Any = module_from_spec(spec)
spec.loader.exec_module(online_pictures)
PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def test_the_picture_shows_what_the_method_computes() -> None:
    torch.manual_seed(0)
    source, target = training_batches(num_classes=3)
    student = DeepLabV2(3, "resnet_tiny", feature_dim=8)
    teacher = ExponentialMovingAverage(student)
    thresholds, limits = DiceThresholds(3), ShareLimits(torch.tensor([0.5, 0.3, 0.2]), start_updates=1)
    clustering = ClassBalancedPrototypeClustering(
        3, 8, bank_size=64, samples_per_image=16, prototype_update="labels"
    )
    method = OnlineSelfLabeling(
        student, teacher, clustering, thresholds, limits, initial_steps=5, confidence_threshold=0.4
    )
    for _ in range(5):
        list(method.losses(source, target))
        method.update()

    torch.manual_seed(1)
    step = online_pictures.take_step(teacher.module, clustering, thresholds, limits, source, target, 0.4)
    torch.manual_seed(1)
    list(method.losses(source, target))
    assert method.supervision is not None
    assert torch.equal(step.mixed.image.float(), method.supervision[0].float())
    assert torch.equal(step.mixed.labels, method.supervision[1])
    assert step.confident == float(method.metrics["confident"])
    assert (step.probable != step.labels).any()
    agree = step.reliable != 255
    assert 0 < agree.float().mean() < 1
    assert torch.equal(step.reliable[agree], step.labels[agree])

    truth = torch.zeros_like(step.labels)
    drawn = online_pictures.draw(step, target, truth, 0, PALETTE)
    assert drawn.dtype == torch.uint8
    assert len(drawn.flatten(1).unique(dim=1).t()) > 8  # colors
