"""CPSL in a mean teacher, written out as a complete loop in plain PyTorch.

    python examples/mean_teacher.py data/gta5 data/cityscapes --network timm:convnext_tiny

`cpsl.methods.MeanTeacher` is the same step as a module. Here each line can be changed.
"""

import argparse

import torch

from cpsl import (
    ClassBalancedPrototypeClustering,
    PseudoLabelRectifier,
    RunningClassMeans,
    Segmenter,
    cross_entropy,
    warp,
)
from cpsl.data import CITYSCAPES_19, GTA5, Cityscapes, WeakView, domain_loaders
from cpsl.models import ExponentialMovingAverage, build_network, parameter_groups, resize, segment


def main() -> None:
    """Trains a student on the labeled source and on pseudo labels of its mean teacher for the target."""
    parser = argparse.ArgumentParser(description="CPSL in a mean teacher")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--network", default="lite0", help="see docs/networks.md")
    parser.add_argument("--height", type=int, default=512, help="of a whole image; width is twice that")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--output", default="mean_teacher.pt")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    view = WeakView.of_size((args.height, 2 * args.height))
    loaders = domain_loaders(GTA5(args.source), Cityscapes(args.target), view, batch_size=2)

    student = build_network(args.network, num_classes=19).to(device)
    teacher = ExponentialMovingAverage(student)
    dim, aligned = student.feature_dim, student.align_corners
    means = RunningClassMeans(num_classes=19, feature_dim=dim, align_corners=aligned).to(device)
    clustering = ClassBalancedPrototypeClustering(num_classes=19, feature_dim=dim, align_corners=aligned).to(
        device
    )
    rectifier = PseudoLabelRectifier(align_corners=aligned)
    optimizer = torch.optim.AdamW(parameter_groups(student, 1e-4))
    # Adam's step size does not depend on the weight of a loss: prototypes need a learning rate of their own.
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 1e-4, "weight_decay": 0.0})

    for step, source, target in zip(range(args.steps), *loaders, strict=False):
        source, target = source.to(device), target.to(device)

        # Supervised loss on the source.
        logits, features = segment(student, source.image / 255)
        loss = cross_entropy(resize(logits, source.label.shape[1:], align_corners=aligned), source.label)
        if step < 100:  # until then, the prototypes are the class means of the source
            means.update(features, source.label)
            clustering.initialize(means.prototypes, means.distribution)

        # Pseudo labels: the teacher's soft labels, rectified with the prototypes.
        with torch.no_grad():
            logits, features = segment(teacher, target.weak / 255)
            soft = logits.softmax(dim=1)
            labels = rectifier(soft, features, clustering.ema_prototypes).labels
            confident = (soft.amax(dim=1) > 0.968).float().mean()

        # The student trains on the strong view, the prototypes on the teacher's features.
        logits, _ = segment(student, target.strong / 255)
        views = target.weak_view, target.strong_view
        labels_in_strong, _ = warp(labels, *views, logits.shape[2:], align_corners=aligned)
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

    Segmenter(teacher, CITYSCAPES_19, view.full_size).save(args.output)


if __name__ == "__main__":
    main()
