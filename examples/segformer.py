"""CPSL with SegFormer of Hugging Face's transformers, with gradient accumulation.

    python examples/segformer.py data/gta5 data/cityscapes

Needs `pip install transformers`.
"""

import argparse
from itertools import islice

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from transformers import SegformerForSemanticSegmentation

from cpsl import ClassBalancedPrototypeClustering
from cpsl.data import GTA5, Cityscapes, WeakView, domain_loaders
from cpsl.methods import MeanTeacher
from cpsl.models import IMAGENET_MEAN, IMAGENET_STD, ExponentialMovingAverage, SegmentationOutput


class Network(nn.Module):
    """SegFormer whose classifier is called separately: its inputs are the features."""

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.feature_dim: int = model.config.decoder_hidden_size
        self.classifier = model.decode_head.classifier
        model.decode_head.classifier = nn.Identity()
        self.model = model

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Returns logits (B, K, H/4, W/4) and features (B, D, H/4, W/4) of images (B, 3, H, W) in 0...1."""
        features = self.model(pixel_values=normalize(image, IMAGENET_MEAN, IMAGENET_STD)).logits
        return SegmentationOutput(self.classifier(features), features)


def main() -> None:
    """Adapts SegFormer to the target and saves the teacher."""
    parser = argparse.ArgumentParser(description="CPSL with SegFormer")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--checkpoint", default="nvidia/mit-b0", help="name on the hub or folder")
    parser.add_argument("--height", type=int, default=512, help="of a whole image, in pixels")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--micro-batches", type=int, default=2, help="images per step and domain")
    parser.add_argument("--output", default="segformer", help="folder for `from_pretrained`")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    view = WeakView.of_size((args.height, 2 * args.height))
    loaders = domain_loaders(GTA5(args.source), Cityscapes(args.target), view, batch_size=1)

    model = SegformerForSemanticSegmentation.from_pretrained(args.checkpoint, num_labels=19)
    network = Network(model)
    clustering = ClassBalancedPrototypeClustering(num_classes=19, feature_dim=network.feature_dim)
    teacher = ExponentialMovingAverage(network)
    method = MeanTeacher(network, teacher, clustering, align_corners=False)  # as in SegFormer
    method.to(device)

    optimizer = torch.optim.AdamW(model.segformer.parameters(), lr=6e-5)
    decoder = [*model.decode_head.parameters(), *network.classifier.parameters()]
    optimizer.add_param_group({"params": decoder, "lr": 6e-4})
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 1e-4, "weight_decay": 0.0})

    # A step has the gradients of several micro-batches, which need the memory of one.
    batches = zip(*loaders, strict=True)
    for _ in range(args.steps):
        for part, (source, target) in enumerate(islice(batches, args.micro_batches), 1):
            last = part == args.micro_batches
            for loss in method.losses(source.to(device), target.to(device), last_micro_batch=last):
                (loss / args.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update()
    adapted = method.teacher.module
    adapted.model.decode_head.classifier = adapted.classifier
    adapted.model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
