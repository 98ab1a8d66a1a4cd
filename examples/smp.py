"""CPSL with a network of segmentation_models_pytorch.

    python examples/smp.py data/gta5 data/cityscapes

Needs `pip install segmentation-models-pytorch`, and crops whose sides are multiples of 32.
"""

import argparse
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from cpsl import ClassBalancedPrototypeClustering
from cpsl.data import GTA5, Cityscapes, WeakView, domain_loaders
from cpsl.methods import MeanTeacher
from cpsl.models import IMAGENET_MEAN, IMAGENET_STD, ExponentialMovingAverage, SegmentationOutput


class Network(nn.Module):
    """An FPN whose features come from its decoder, and logits from the first layer of its head."""

    def __init__(self, encoder: str, weights: str | None = "imagenet", **options: Any) -> None:
        super().__init__()
        self.fpn = smp.FPN(encoder, encoder_weights=weights, classes=19, **options)
        self.feature_dim: int = self.fpn.decoder.out_channels

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Returns logits (B, 19, H/4, W/4) and features (B, D, H/4, W/4) of images in 0...1."""
        image = normalize(image, IMAGENET_MEAN, IMAGENET_STD)
        features = self.fpn.decoder(self.fpn.encoder(image))
        return SegmentationOutput(self.fpn.segmentation_head[0](features), features)


def main() -> None:
    """Adapts the network to the target and saves the teacher."""
    parser = argparse.ArgumentParser(description="CPSL with segmentation_models_pytorch")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--random", action="store_true", help="start from random weights")
    parser.add_argument("--height", type=int, default=512, help="of a whole image, in pixels")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--output", default="smp.pt")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    view = WeakView.of_size((args.height, 2 * args.height))
    loaders = domain_loaders(GTA5(args.source), Cityscapes(args.target), view, batch_size=2)

    network = Network(args.encoder, None if args.random else "imagenet")
    clustering = ClassBalancedPrototypeClustering(num_classes=19, feature_dim=network.feature_dim)
    method = MeanTeacher(network, ExponentialMovingAverage(network), clustering).to(device)

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 1e-4, "weight_decay": 0.0})
    for _, source, target in zip(range(args.steps), *loaders, strict=False):
        for loss in method.losses(source.to(device), target.to(device)):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update()
    torch.save(method.teacher.module.state_dict(), args.output)


if __name__ == "__main__":
    main()
