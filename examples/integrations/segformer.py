"""SegFormer of Hugging Face's transformers, trained the way its users do: the model computes the loss."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from cpsl import ClassBalancedPrototypeClustering, PseudoLabelRectifier, RunningClassMeans
from streets import NUM_CLASSES, Batch

FEATURE_DIM = 64


class Network(nn.Module):
    """SegFormer whose classifier remembers what it saw: the fused map of all four scales, at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        config = SegformerConfig(
            hidden_sizes=[16, 32, 64, 128],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 4, 8],
            decoder_hidden_size=FEATURE_DIM,
            num_labels=NUM_CLASSES,
        )
        self.model = SegformerForSemanticSegmentation(config)  # or .from_pretrained(...)
        self.model.decode_head.classifier.register_forward_pre_hook(_remember)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of images in 0...1."""
        output, features = self.segment(image)
        return output.logits, features

    def segment(self, image: Tensor, labels: Tensor | None = None) -> tuple[Any, Tensor]:
        """Returns the model's own output, with its loss where there are labels (B, H, W), and features."""
        output = self.model(pixel_values=2 * image - 1, labels=labels)
        # Taken away: a module that holds a graph cannot be copied.
        features: Tensor = self.model.decode_head.classifier.__dict__.pop("seen")
        return output, features


def _remember(classifier: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    # Written to the module that was called, not to one that the hook was made with: the teacher is a copy.
    classifier.__dict__["seen"] = inputs[0]


def adapt(student: Network, batches: Iterable[Batch], *, cpsl: bool) -> nn.Module:
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
        output, features = student.segment(batch.source, batch.label)
        loss = output.loss
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
