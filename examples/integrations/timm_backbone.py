"""A backbone of timm under this library's DeepLabV2, in a loop with this library's teacher."""

from collections.abc import Iterable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier, RunningClassMeans
from cpsl.models import DeepLabV2, ExponentialMovingAverage
from streets import NUM_CLASSES, Batch, upsample


class Backbone(nn.Module):
    """One level of a timm network; `channels` and `stride` are all that `DeepLabV2` asks for.

    Args:
        name: Any network of timm that has `features_only`, also transformers.
        level: Which of its maps, as timm counts them.
    """

    def __init__(self, name: str = "regnetx_002", level: int = 2) -> None:
        super().__init__()
        self.network = timm.create_model(name, features_only=True, out_indices=(level,))
        self.channels: int = self.network.feature_info.channels()[0]
        self.stride: int = self.network.feature_info.reduction()[0]

    def forward(self, image: Tensor) -> Tensor:
        """Returns (B, channels, h, w) of normalised images (B, 3, H, W)."""
        features: Tensor = self.network(image)[0]
        return features


class Network(DeepLabV2):
    """DeepLabV2 on that backbone, with dilations for small images."""

    def __init__(self) -> None:
        half = (0.5, 0.5, 0.5)
        super().__init__(
            NUM_CLASSES, Backbone(), feature_dim=64, mean=half, std=half, dilations=(1, 2, 4)
        )


def adapt(student: DeepLabV2, batches: Iterable[Batch], *, cpsl: bool) -> nn.Module:
    """Trains a mean teacher with online pseudo labels, and returns the teacher."""
    teacher = ExponentialMovingAverage(student)
    parameters = list(student.parameters())
    if cpsl:
        means = RunningClassMeans(NUM_CLASSES, student.feature_dim)
        clustering = ClassBalancedPrototypeClustering(
            NUM_CLASSES, student.feature_dim, bank_size=4096
        )
        rectifier = PseudoLabelRectifier()
        parameters.append(clustering.prototypes)
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)

    student.train()
    for iteration, batch in enumerate(batches):
        source = student(batch.source)
        logits = upsample(source.logits, batch.label)
        loss = F.cross_entropy(logits, batch.label, ignore_index=255)
        if cpsl and iteration < 100:  # prototypes start as the classes' means on the source
            means.update(source.features, batch.label)
            clustering.initialize(means.prototypes, means.distribution)

        with torch.no_grad():
            target = teacher.module(batch.target)
            soft = target.logits.softmax(dim=1)
            confidence, labels = soft.max(dim=1)
            if cpsl:
                labels = rectifier(soft, target.features, clustering.ema_prototypes).labels
        trusted = (confidence > 0.968).float().mean()
        logits = student(batch.strong).logits
        loss = loss + trusted * F.cross_entropy(logits, labels, ignore_index=255)
        if cpsl:
            clusters = clustering(target.features, labels)
            loss = loss + 0.1 * clusters.loss

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(student, momentum=0.99)
        if cpsl:
            clustering.update(clusters, momentum=0.99)
    return teacher.module
