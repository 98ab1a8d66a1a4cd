"""CPSL in PyTorch Lightning: a module that trains any method of `cpsl.methods`.

    python examples/lightning_module.py data/gta5 data/cityscapes --devices 4

Needs `pip install '.[train,lightning]'` in a clone of the repository.
"""

import argparse
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from cpsl import ClassBalancedPrototypeClustering
from cpsl.data import GTA5, Cityscapes, SourceBatch, TargetBatch, WeakView, domain_loaders
from cpsl.methods import AdversarialWarmup, Distillation, OnlineSelfLabeling, SelfLabeling
from cpsl.models import ExponentialMovingAverage, build_network

Method = AdversarialWarmup | SelfLabeling | Distillation | OnlineSelfLabeling


class Adaptation(lightning.LightningModule):
    """Trains a method; Lightning owns the loop, devices, precision and accumulation.

    Args:
        build: Returns the method; its call returns the sum of its losses for a batch of each domain.
    """

    method: Method

    def __init__(self, build: Callable[[], Method]) -> None:
        super().__init__()
        self.build = build

    def configure_model(self) -> None:
        """Builds the method when the processes have joined: each of them holds its share of the bank."""
        if not hasattr(self, "method"):  # Lightning calls this for each `fit` and each validation
            self.method = self.build()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer of everything that is trained."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3)

    def training_step(self, batch: tuple[SourceBatch, TargetBatch]) -> Tensor:
        """Returns the loss of a source batch and a target batch."""
        loss: Tensor = self.method(*batch)
        self.log_dict(self.method.metrics)
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Updates the moving averages after each step of the optimizer."""
        super().optimizer_step(*arguments, **options)
        self.method.update()


def online() -> OnlineSelfLabeling:
    """Builds the online method of a small network."""
    network = build_network("lite0", num_classes=19)
    clustering = ClassBalancedPrototypeClustering(
        num_classes=19,
        feature_dim=network.feature_dim,
        temperature=0.1,
        sampling="stratified",
        prototype_update="labels",  # needs no optimizer
        align_corners=network.align_corners,
    )
    return OnlineSelfLabeling(network, ExponentialMovingAverage(network), clustering)


class Domains(lightning.LightningDataModule):
    """Loads both domains; each process asks for its share once it knows its rank."""

    def __init__(self, source: str, target: str, height: int) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.view = WeakView.of_size((height, 2 * height))

    def train_dataloader(self) -> list[DataLoader[Any]]:
        """Returns the loaders of source and target."""
        return [*domain_loaders(GTA5(self.source), Cityscapes(self.target), self.view, batch_size=2)]


def main() -> None:
    """Adapts a network to the target and saves a checkpoint."""
    parser = argparse.ArgumentParser(description="CPSL in Lightning")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--height", type=int, default=512, help="of a whole image, in pixels")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--output", default="lightning_module.ckpt")
    args = parser.parse_args()

    trainer = lightning.Trainer(
        devices=args.devices,
        # Each process keeps its own part of the memory bank, which is a buffer.
        strategy=DDPStrategy(broadcast_buffers=False) if args.devices > 1 else "auto",
        sync_batchnorm=torch.cuda.is_available(),
        use_distributed_sampler=False,  # the loaders know the ranks
        max_steps=args.steps,
    )
    trainer.fit(Adaptation(online), datamodule=Domains(args.source, args.target, args.height))
    trainer.save_checkpoint(args.output)


if __name__ == "__main__":
    main()
