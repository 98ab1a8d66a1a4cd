"""What the integrations learn from and are measured on: generated streets, small enough to lie in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from cpsl import ConfusionMatrix, cross_entropy
from cpsl.data import GTA5, Cityscapes, SegmentationDataset, write_streets

NUM_CLASSES = 19


class Batch(NamedTuple):
    """A batch of both domains.

    Attributes:
        source: (B, 3, H, W) labelled images, 0...1.
        label: (B, H, W) int64, 255 where ignored.
        target: (B, 3, H, W) unlabelled images.
        strong: (B, 3, H, W) the same images in other colours.
    """

    source: Tensor
    label: Tensor
    target: Tensor
    strong: Tensor


class Streets:
    """A labelled source (a game), an unlabelled target (a real street), labelled target images to measure on.

    Args:
        root: Folder that the streets are drawn into; what is there already is kept.
        size: (H, W) of an image.
        count: Training images of each domain; a quarter of it is for measuring.
    """

    def __init__(self, root: Path, size: tuple[int, int] = (64, 128), count: int = 240) -> None:
        game, real = root / "game", root / "real"
        write_streets(game, layout="gta5", style="game", count=count, size=size)
        write_streets(real, layout="cityscapes", style="real", count=count, size=size)
        write_streets(
            real, layout="cityscapes", style="real", count=count // 4, split="val", size=size
        )
        self.source, self.labels = _stack(GTA5(game))
        self.target, _ = _stack(Cityscapes(real, split="train"))
        self.validation = _stack(Cityscapes(real, split="val"))

    def batches(self, iterations: int, seed: int, batch_size: int = 4) -> Iterator[Batch]:
        """Yields batches of random images, half of them mirrored."""
        random = torch.Generator().manual_seed(seed)
        other_colors = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
        for _ in range(iterations):
            labelled, unlabelled = torch.randint(
                len(self.source), (2, batch_size), generator=random
            )
            source, label = self.source[labelled] / 255, self.labels[labelled].long()
            target = self.target[unlabelled] / 255
            if torch.rand((), generator=random) < 0.5:
                source, label, target = source.flip(-1), label.flip(-1), target.flip(-1)
            yield Batch(source, label, target, other_colors(target))

    @torch.no_grad()
    def miou(self, network: nn.Module) -> float:
        """Returns the mIoU of a network on the target's labelled images, in percent."""
        training = network.training
        network.eval()
        confusion = ConfusionMatrix(NUM_CLASSES)
        for image, label in zip(*(part.split(20) for part in self.validation), strict=True):
            logits, _ = network(image / 255)
            confusion.update(upsample(logits, label).argmax(dim=1), label)
        network.train(training)
        return 100 * confusion.miou.item()


def upsample(logits: Tensor, like: Tensor) -> Tensor:
    """Brings logits (B, K, h, w) to the resolution of labels or images (..., H, W)."""
    return F.interpolate(logits, like.shape[-2:], mode="bilinear", align_corners=False)


def train_on_source(network: nn.Module, streets: Streets, iterations: int, seed: int) -> None:
    """Trains what adaptation starts from; from pretrained weights it would be shorter, or left out."""
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, fused=True)
    decay = torch.optim.lr_scheduler.PolynomialLR(optimizer, iterations, power=0.9)
    network.train()
    for batch in streets.batches(iterations, seed):
        logits, _ = network(batch.source)
        loss = cross_entropy(upsample(logits, batch.label), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


def _stack(dataset: SegmentationDataset) -> tuple[Tensor, Tensor]:
    samples = [dataset[index] for index in range(len(dataset))]
    labels = [sample.label for sample in samples if sample.label is not None]
    return torch.stack([sample.image for sample in samples]), torch.stack(labels)
