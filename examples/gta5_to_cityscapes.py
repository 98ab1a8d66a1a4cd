"""GTA5 to Cityscapes through all stages of the paper, from Python, on one device.

    python examples/gta5_to_cityscapes.py --gta5 data/gta5 --cityscapes data/cityscapes

Each stage writes OUTPUT/STAGE/model.pt, which `cpsl predict --weights` and `cpsl.Segmenter.load` read.
`cpsl adapt` does the same with several devices, mixed precision, checkpoints and a report.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import PolynomialLR

import cpsl
from cpsl import data, methods, models

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES = data.CITYSCAPES_19

parser = argparse.ArgumentParser(description="GTA5 to Cityscapes through all stages of the paper")
parser.add_argument("--gta5", type=Path, required=True)
parser.add_argument("--cityscapes", type=Path, required=True)
parser.add_argument("--output", type=Path, default=Path("runs/from_python"))
parser.add_argument("--network", default="deeplabv2:resnet101")
parser.add_argument("--weights", default="pretrained", help="pretrained, random or a file")
parser.add_argument("--height", type=int, default=1024, help="of a whole image, in pixels")
parser.add_argument("--iterations", type=int, default=90_000, help="per stage")
parser.add_argument("--workers", type=int, default=4)


def sgd(network: models.SegmentationNetwork, rate: float, head_multiplier: float = 10) -> SGD:
    """Returns the optimizer of a network, whose head learns faster than its pretrained layers."""
    groups = models.parameter_groups(network, rate, head_multiplier=head_multiplier)
    return SGD(groups, rate, momentum=0.9, weight_decay=2e-4)


def main() -> None:
    """Trains and evaluates every stage."""
    args = parser.parse_args()
    torch.manual_seed(0)
    full_size = (args.height, 2 * args.height)
    view = data.WeakView.of_size(full_size)
    source, target = data.GTA5(args.gta5), data.Cityscapes(args.cityscapes, "train")
    validation = data.Cityscapes(args.cityscapes, "val")

    def train(
        method: methods.AdversarialWarmup | methods.SelfLabeling | methods.Distillation,
        *optimizers: Optimizer,
        pseudo_labels: Callable[[str], Tensor] | None = None,
    ) -> None:
        loaders = data.domain_loaders(
            source, target, view, 4, pseudo_labels=pseudo_labels, num_workers=args.workers
        )
        schedules = [PolynomialLR(o, args.iterations, power=0.9) for o in optimizers]
        for _, labeled, unlabeled in zip(range(args.iterations), *loaders, strict=False):
            for loss in method.losses(labeled.to(DEVICE), unlabeled.to(DEVICE)):
                loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            method.update()

    def finish(stage: str, network: models.SegmentationNetwork) -> cpsl.Segmenter:
        segmenter = cpsl.Segmenter(network.eval(), CLASSES, full_size)
        segmenter.save(args.output / stage / "model.pt")
        confusion = cpsl.ConfusionMatrix(len(CLASSES))
        for index in range(len(validation)):
            image, label, _ = validation[index]
            if label is not None:
                confusion.update(segmenter.predict(image).labels.cpu(), label)
        print(f"{stage}: mIoU {100 * confusion.miou:.1f}", flush=True)
        return segmenter

    # Stage 0: adversarial alignment of the output space.
    network = models.build_network(args.network, len(CLASSES), weights=args.weights).to(DEVICE)
    if args.weights != "random":
        models.freeze_batch_norm(network)
    discriminator = models.Discriminator(len(CLASSES)).to(DEVICE)
    adam = Adam(discriminator.parameters(), lr=1e-4, betas=(0.9, 0.99))
    train(methods.AdversarialWarmup(network, discriminator), sgd(network, 2.5e-4), adam)
    finish("warmup", network)

    # Between the stages: soft labels of the target, class means of its features, class distribution.
    soft_labels = data.SoftLabelStore(args.output / "pseudo_labels" / "soft")
    means = cpsl.ClassMeanPrototypes(len(CLASSES), network.feature_dim)
    counts = torch.zeros(len(CLASSES))
    for index, name in enumerate(target.names):
        whole = data.whole_image(target.image(index), full_size)[None].to(DEVICE)
        with torch.no_grad():
            logits, features = models.segment(network, whole / 255)
        soft_labels.write(name, logits.softmax(dim=1)[0])
        means.update(features, logits)
        counts += cpsl.class_counts(logits.argmax(dim=1), len(CLASSES)).cpu()
    start = {"prototypes": means.compute().prototypes, "class_distribution": counts / counts.sum()}
    torch.save(start, args.output / "pseudo_labels" / "start.pt")

    # Stage 1: self-labeling. BatchNorm is no longer frozen.
    network.train().requires_grad_()
    clustering = cpsl.ClassBalancedPrototypeClustering(len(CLASSES), network.feature_dim).to(DEVICE)
    clustering.initialize(start["prototypes"], start["class_distribution"])
    optimizer = sgd(network, 1e-4, head_multiplier=5)
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 5e-4})
    teacher = models.ExponentialMovingAverage(network)
    stage_1 = methods.SelfLabeling(network, teacher, clustering)
    train(stage_1, optimizer, pseudo_labels=soft_labels.read)
    segmenter = finish("self_label", network)

    # Stages 2 and 3: distillation into a copy. (The paper's students start from SimCLRv2 weights.)
    for stage in ("distill_1", "distill_2"):
        labels = data.HardLabelStore(args.output / stage / "labels")
        for index, name in enumerate(target.names):
            predicted = segmenter.predict(target.image(index), size=full_size, flip=True)
            labels.write(name, predicted.labels.masked_fill(predicted.confidence <= 0.95, 255))
        student = copy.deepcopy(segmenter.network).train()
        distillation = methods.Distillation(student, segmenter.model)
        train(distillation, sgd(student, 6e-4), pseudo_labels=labels.read)
        segmenter = finish(stage, student)


if __name__ == "__main__":
    main()
