"""The online method with any network of timm, transformers, SMP or torchvision, in a plain loop.

    python examples/any_network.py data/gta5 data/cityscapes --network timm:convnext_tiny
    python examples/any_network.py data/gta5 data/cityscapes --network transformers:nvidia/mit-b5
    python examples/any_network.py data/gta5 data/cityscapes --network smp:Unet/resnet34

Requires the library in the name: `pip install timm`, transformers or segmentation-models-pytorch.
"""

import argparse
from itertools import islice

import torch

from cpsl import ClassBalancedPrototypeClustering, Segmenter
from cpsl.data import CITYSCAPES_19, GTA5, Cityscapes, WeakView, domain_loaders
from cpsl.methods import OnlineSelfLabeling
from cpsl.models import ExponentialMovingAverage, build_network, parameter_groups


def main() -> None:
    """Adapts a network to the target domain and saves the teacher."""
    parser = argparse.ArgumentParser(description="The online method with any network")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--network", default="timm:convnext_tiny")
    parser.add_argument("--weights", default="pretrained", help="pretrained, random or a file")
    parser.add_argument("--height", type=int, default=512, help="of a whole image; width is twice that")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--micro-batches", type=int, default=2, help="images per step and domain")
    parser.add_argument("--output", default="any_network.pt")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = args.height, 2 * args.height
    view = WeakView.of_size(size)
    loaders = domain_loaders(GTA5(args.source), Cityscapes(args.target), view, batch_size=1)

    network = build_network(args.network, num_classes=19, weights=args.weights)
    teacher = ExponentialMovingAverage(network)
    clustering = ClassBalancedPrototypeClustering(
        num_classes=19,
        feature_dim=network.feature_dim,
        temperature=0.1,
        sampling="stratified",
        prototype_update="labels",  # needs no optimizer
        align_corners=network.align_corners,
    )
    method = OnlineSelfLabeling(network, teacher, clustering).to(device)

    # New layers have a larger learning rate than pretrained ones.
    optimizer = torch.optim.AdamW(parameter_groups(network, 6e-5))

    # Gradient accumulation: a step sums the gradients of several micro-batches.
    batches = zip(*loaders, strict=True)
    for _ in range(args.steps):
        for part, (source, target) in enumerate(islice(batches, args.micro_batches), 1):
            last = part == args.micro_batches
            for loss in method.losses(source.to(device), target.to(device), last_micro_batch=last):
                (loss / args.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update()
    Segmenter(teacher, CITYSCAPES_19, size).save(args.output)  # for cpsl predict, evaluate and export


if __name__ == "__main__":
    main()
