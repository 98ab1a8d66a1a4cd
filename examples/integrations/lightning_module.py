"""A Lightning module: Lightning owns the loop, the module the step."""

from collections.abc import Iterable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier, RunningClassMeans
from cpsl.models import DeepLabV2, ExponentialMovingAverage
from streets import NUM_CLASSES, Batch, upsample

FEATURE_DIM = 64


class Network(DeepLabV2):
    """A small network; any that gives logits and features will do."""

    def __init__(self) -> None:
        super().__init__(NUM_CLASSES, "resnet_tiny", FEATURE_DIM, dilations=(1, 2, 4))


class MeanTeacher(lightning.LightningModule):
    """Mean teacher with online pseudo labels.

    On several devices: `Trainer(strategy=DDPStrategy(broadcast_buffers=False), sync_batchnorm=True)`. Each
    rank fills a bank of its own, which must not be overwritten with rank 0's. It is made before the processes
    start, so each has its full size.

    Args:
        student: Network that is trained.
        cpsl: Whether CPSL corrects the pseudo labels.
    """

    def __init__(self, student: nn.Module, *, cpsl: bool) -> None:
        super().__init__()
        self.cpsl = cpsl
        self.student = student
        self.teacher = ExponentialMovingAverage(student)
        if cpsl:
            self.means = RunningClassMeans(NUM_CLASSES, FEATURE_DIM)
            self.clustering = ClassBalancedPrototypeClustering(
                NUM_CLASSES, FEATURE_DIM, bank_size=4096
            )
            self.rectifier = PseudoLabelRectifier()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimiser of all that learns; with CPSL the prototypes are part of it."""
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(learning, 1e-3, fused=True)

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the loss of a batch."""
        source = self.student(batch.source)
        logits = upsample(source.logits, batch.label)
        loss: Tensor = F.cross_entropy(logits, batch.label, ignore_index=255)
        if self.cpsl and self.global_step < 100:  # prototypes start as class means on the source
            self.means.update(source.features, batch.label)
            self.clustering.initialize(self.means.prototypes, self.means.distribution)

        with torch.no_grad():
            target = self.teacher.module(batch.target)
            soft = target.logits.softmax(dim=1)
            confidence, labels = soft.max(dim=1)
            if self.cpsl:
                prototypes = self.clustering.ema_prototypes
                labels = self.rectifier(soft, target.features, prototypes).labels
        trusted = (confidence > 0.968).float().mean()
        logits = self.student(batch.strong).logits
        loss = loss + trusted * F.cross_entropy(logits, labels, ignore_index=255)
        if self.cpsl:
            self.clusters = self.clustering(target.features, labels)
            loss = loss + 0.1 * self.clusters.loss
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Moves the averages, after the optimiser's step."""
        self.teacher.update(self.student, momentum=0.99)
        if self.cpsl:
            self.clustering.update(self.clusters, momentum=0.99)


def adapt(student: nn.Module, batches: Iterable[Batch], *, cpsl: bool) -> nn.Module:
    """Trains a mean teacher with online pseudo labels, and returns the teacher."""
    module = MeanTeacher(student, cpsl=cpsl)
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    return module.teacher.module
