"""A plain PyTorch loop with a network of segmentation_models_pytorch."""

from collections.abc import Iterable

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier, RunningClassMeans
from streets import NUM_CLASSES, Batch, upsample

FEATURE_DIM = 64


class Network(nn.Module):
    """An smp model taken apart: its decoder gives the features, the first layer of its head the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = smp.FPN(
            "tu-mobilenetv3_small_050",
            encoder_weights=None,  # "imagenet" where there is a network
            decoder_pyramid_channels=FEATURE_DIM,
            decoder_segmentation_channels=FEATURE_DIM,
            classes=NUM_CLASSES,
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of images in 0...1, at stride 4."""
        features = self.model.decoder(self.model.encoder(2 * image - 1))
        return self.model.segmentation_head[0](features), features


def adapt(student: nn.Module, batches: Iterable[Batch], *, cpsl: bool) -> nn.Module:
    """Trains a mean teacher with online pseudo labels, and returns the teacher."""
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    teacher.eval()
    parameters = list(student.parameters())
    if cpsl:
        means = RunningClassMeans(NUM_CLASSES, FEATURE_DIM)
        clustering = ClassBalancedPrototypeClustering(NUM_CLASSES, FEATURE_DIM, bank_size=4096)
        rectifier = PseudoLabelRectifier()
        parameters.append(clustering.prototypes)
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)

    student.train()
    for iteration, batch in enumerate(batches):
        logits, features = student(batch.source)
        loss = F.cross_entropy(upsample(logits, batch.label), batch.label, ignore_index=255)
        if cpsl and iteration < 100:  # prototypes start as the classes' means on the source
            means.update(features, batch.label)
            clustering.initialize(means.prototypes, means.distribution)

        with torch.no_grad():
            logits, features = teacher(batch.target)
            soft = logits.softmax(dim=1)
            confidence, labels = soft.max(dim=1)
            if cpsl:
                labels = rectifier(soft, features, clustering.ema_prototypes).labels
        logits, _ = student(batch.strong)
        trusted = (confidence > 0.968).float().mean()
        loss = loss + trusted * F.cross_entropy(logits, labels, ignore_index=255)
        if cpsl:
            clusters = clustering(features, labels)
            loss = loss + 0.1 * clusters.loss

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update_parameters(student)
        if cpsl:
            clustering.update(clusters, momentum=0.99)
    return teacher
