"""Networks and components that do not fit each other are refused before the first step."""

from typing import Any

import pytest
from torch import nn

from cpsl import ClassBalancedPrototypeClustering
from cpsl.methods import AdversarialWarmup, Distillation, OnlineSelfLabeling, SelfLabeling
from cpsl.models import ExponentialMovingAverage
from small_networks import Patches


def clustering(classes: int = 3, features: int = 8, **options: Any) -> ClassBalancedPrototypeClustering:
    return ClassBalancedPrototypeClustering(classes, features, bank_size=16, **options)


@pytest.mark.parametrize("method", [OnlineSelfLabeling, SelfLabeling])
@pytest.mark.parametrize(
    ("teacher", "clusters", "error", "named"),
    [
        (None, clustering(), TypeError, "None"),
        (Patches(), clustering(), TypeError, "ExponentialMovingAverage.*Patches"),
        (ExponentialMovingAverage(Patches(4)), clustering(), ValueError, "teacher.*num_classes.*3.*4"),
        (ExponentialMovingAverage(Patches(3, 4)), clustering(), ValueError, "teacher.*feature_dim.*8.*4"),
        (ExponentialMovingAverage(Patches()), clustering(5), ValueError, "clustering.*num_classes.*3.*5"),
        (ExponentialMovingAverage(Patches()), clustering(3, 4), ValueError, "clustering.*feature_dim.*8.*4"),
        (
            ExponentialMovingAverage(Patches()),
            clustering(ignore_index=-1),
            ValueError,
            "ignore_index.*255.*-1",
        ),
        (ExponentialMovingAverage(Patches()), nn.Linear(1, 1), TypeError, "clustering.*Linear"),
    ],
)
def test_teacher_and_clustering_fit_the_student(
    method: Any, teacher: Any, clusters: Any, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        method(Patches(), teacher, clusters)


def test_the_teacher_of_a_distillation_is_another_module_of_as_many_classes() -> None:
    student = Patches()
    with pytest.raises(ValueError, match="same module"):
        Distillation(student, student)
    assert all(parameter.requires_grad for parameter in student.parameters())
    with pytest.raises(ValueError, match=r"num_classes.*3.*4"):
        Distillation(student, Patches(4))
    Distillation(student, Patches(3, features=4))


@pytest.mark.parametrize(
    "build",
    [
        AdversarialWarmup,
        lambda student: Distillation(student, Patches(256)),
        lambda student: OnlineSelfLabeling(student, ExponentialMovingAverage(student)),
        lambda student: SelfLabeling(
            student, ExponentialMovingAverage(student), clustering(256, ignore_index=-1)
        ),
    ],
)
def test_a_class_255_is_refused_since_it_would_be_ignored(build: Any) -> None:
    with pytest.raises(ValueError, match=r"num_classes 256.*255"):
        build(Patches(256))
