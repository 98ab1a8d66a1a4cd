"""CPSL in a mean teacher, written out as a complete loop in plain PyTorch.

    python examples/mean_teacher.py data/gta5 data/cityscapes

`cpsl.methods.MeanTeacher` is the same step as a module. Here each line of it can be changed.
"""

import argparse

import torch

from cpsl import (
    ClassBalancedPrototypeClustering,
    PseudoLabelRectifier,
    RunningClassMeans,
    cross_entropy,
    warp,
)
from cpsl.data import GTA5, Cityscapes, WeakView, domain_loaders
from cpsl.models import DeepLabV2, ExponentialMovingAverage


def main() -> None:
    """Trains a student on the source and, with the labels of its average, on the target."""
    parser = argparse.ArgumentParser(description="CPSL in a mean teacher")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--height", type=int, default=512, help="of a whole image, in pixels")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--output", default="mean_teacher.pt")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    view = WeakView.of_size((args.height, 2 * args.height))
    loaders = domain_loaders(GTA5(args.source), Cityscapes(args.target), view, batch_size=2)

    student = DeepLabV2(num_classes=19, backbone="resnet_tiny", feature_dim=64).to(device)
    teacher = ExponentialMovingAverage(student)
    means = RunningClassMeans(num_classes=19, feature_dim=64).to(device)
    clustering = ClassBalancedPrototypeClustering(num_classes=19, feature_dim=64).to(device)
    rectifier = PseudoLabelRectifier()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    # Adam's steps do not depend on the weight of a loss: the learning rate decides how far prototypes move.
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 1e-4, "weight_decay": 0.0})

    for step, source, target in zip(range(args.steps), *loaders, strict=False):
        source, target = source.to(device), target.to(device)

        # The student learns the labels of the source.
        logits, features = student(source.image / 255)
        logits = torch.nn.functional.interpolate(
            logits, source.label.shape[1:], mode="bilinear", align_corners=True
        )
        loss = cross_entropy(logits, source.label)
        if step < 100:  # meanwhile the prototypes are the class means of the source
            means.update(features, source.label)
            clustering.initialize(means.prototypes, means.distribution)

        # The teacher labels the target, and the prototypes rectify the labels.
        with torch.no_grad():
            logits, features = teacher(target.weak / 255)
            soft = logits.softmax(dim=1)
            labels = rectifier(soft, features, clustering.ema_prototypes).labels
            confident = (soft.amax(dim=1) > 0.968).float().mean()

        # The student learns them on the strong view, the prototypes from the teacher's features.
        logits, _ = student(target.strong / 255)
        labels_in_strong, _ = warp(
            labels, target.weak_view, target.strong_view, logits.shape[2:], align_corners=True
        )
        loss = loss + confident * cross_entropy(logits, labels_in_strong)
        clusters = clustering(features, labels)
        loss = loss + 0.1 * clusters.loss

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(student, momentum=0.999)
        clustering.update(clusters, momentum=0.999)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, confident {confident.item():.3f}", flush=True)

    torch.save(teacher.module.state_dict(), args.output)


if __name__ == "__main__":
    main()
