"""CPSL with a convolutional backbone of timm, in this library's DeepLabV2.

    python examples/timm_backbone.py data/gta5 data/cityscapes --backbone convnext_tiny

Needs `pip install timm`.
"""

import argparse

import timm
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import PolynomialLR

from cpsl import ClassBalancedPrototypeClustering
from cpsl.data import GTA5, Cityscapes, WeakView, domain_loaders
from cpsl.methods import MeanTeacher
from cpsl.models import IMAGENET_MEAN, IMAGENET_STD, DeepLabV2, ExponentialMovingAverage


class Backbone(nn.Module):
    """One feature map of a timm network; `DeepLabV2` reads its `channels` and `stride`.

    Args:
        name: A network that returns maps (B, C, h, w), such as those of `timm.list_models("convnext*")`.
        pretrained: Whether timm downloads its weights.
        level: Index of the feature map, from fine to coarse.
    """

    def __init__(self, name: str, *, pretrained: bool = True, level: int = 2) -> None:
        super().__init__()
        self.network = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=(level,)
        )
        self.channels: int = self.network.feature_info.channels()[0]
        self.stride: int = self.network.feature_info.reduction()[0]

    def forward(self, image: Tensor) -> Tensor:
        """Returns (B, channels, h, w) of normalized images (B, 3, H, W)."""
        features: Tensor = self.network(image)[0]
        return features


def main() -> None:
    """Adapts DeepLabV2 to the target and saves the teacher."""
    parser = argparse.ArgumentParser(description="CPSL with a backbone of timm")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--backbone", default="convnext_tiny")
    parser.add_argument("--random", action="store_true", help="start from random weights")
    parser.add_argument("--height", type=int, default=512, help="of a whole image, in pixels")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--output", default="timm_backbone.pt")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    view = WeakView.of_size((args.height, 2 * args.height))
    loaders = domain_loaders(GTA5(args.source), Cityscapes(args.target), view, batch_size=2)

    network = DeepLabV2(
        num_classes=19,
        backbone=Backbone(args.backbone, pretrained=not args.random),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    clustering = ClassBalancedPrototypeClustering(num_classes=19, feature_dim=network.feature_dim)
    method = MeanTeacher(network, ExponentialMovingAverage(network), clustering).to(device)

    # The new layers learn faster than the pretrained ones.
    optimizer = torch.optim.AdamW(network.backbone.parameters(), lr=6e-5)
    optimizer.add_param_group({"params": network.head.parameters(), "lr": 6e-4})
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 1e-4, "weight_decay": 0.0})
    schedule = PolynomialLR(optimizer, args.steps, power=0.9)
    for _, source, target in zip(range(args.steps), *loaders, strict=False):
        loss = method(source.to(device), target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        method.update()
    torch.save(method.teacher.module.state_dict(), args.output)


if __name__ == "__main__":
    main()
