"""The online method, written out as a complete loop in plain PyTorch.

    python examples/online.py data/gta5 data/cityscapes --network timm:convnext_tiny

`cpsl.methods.OnlineSelfLabeling` is the same step as a module. `cpsl adapt` trains on the source alone first.
"""

import argparse

import torch

from cpsl import (
    ClassBalancedPrototypeClustering,
    DiceThresholds,
    RunningClassMeans,
    Segmenter,
    ShareLimits,
    agreeing_labels,
    class_counts,
    cross_entropy,
    data,
    prototype_contrast,
    prototype_similarity,
    warp,
)
from cpsl.geometry import resize_labels
from cpsl.mixing import classmix, mask_patches
from cpsl.models import ExponentialMovingAverage, build_network, parameter_groups, resize, segment


def main() -> None:
    """Trains a student on the labeled source and on the target with pseudo labels of its moving average."""
    parser = argparse.ArgumentParser(description="CPSL in one online stage")
    parser.add_argument("source", help="folder of GTA5 or in its layout")
    parser.add_argument("target", help="folder of Cityscapes or in its layout")
    parser.add_argument("--network", default="lite0", help="see docs/networks.md")
    parser.add_argument("--height", type=int, default=512, help="of a whole image; width is twice that")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--output", default="online.pt")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    view = data.WeakView.of_size((args.height, 2 * args.height))
    # Mixed and masked images take the place of RandAugment and the cutout in the strong views.
    strong = data.StrongAugmentation(jitter=0.25, operations=0, cutout=0)
    labeled, unlabeled = data.GTA5(args.source), data.Cityscapes(args.target)
    sources = data.training_loader(data.SourceViews(labeled, view, style_from=unlabeled), 2, seed=0)
    targets = data.training_loader(data.TargetViews(unlabeled, view, strong), 2, seed=1)

    student = build_network(args.network, num_classes=19).to(device)
    teacher = ExponentialMovingAverage(student, momentum=0.999)
    dim, align = student.feature_dim, student.align_corners
    means = RunningClassMeans(num_classes=19, feature_dim=dim, align_corners=align).to(device)
    clustering = ClassBalancedPrototypeClustering(
        19, dim, bank_size=16_384, samples_per_image=512, temperature=0.1,
        sampling="stratified", prototype_update="labels", align_corners=align,
    ).to(device)  # fmt: skip
    thresholds = DiceThresholds(num_classes=19).to(device)
    counts = torch.zeros(19)  # of the source's labels, about 100 of them
    for index in range(0, len(labeled), max(len(labeled) // 100, 1)):
        if (label := labeled[index].label) is not None:
            counts += class_counts(label, 19)
    limits = ShareLimits(counts).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(student, 6e-5))

    def contrast(features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy of the similarities to the prototypes, on the grid of the features."""
        cosines, grid = prototype_similarity(features, clustering.prototypes), features.shape[2:]
        weights = resize(weights[:, None], grid, align)[:, 0]
        return prototype_contrast(cosines, resize_labels(labels, grid, align), weights)

    for step, source, target in zip(range(args.steps), sources, targets, strict=False):
        source, target = source.to(device), target.to(device)

        # 1. Cross-entropy on the source. At first the prototypes are the class means of its features.
        logits, features = segment(student, source.image / 255)
        loss = cross_entropy(resize(logits, source.label.shape[1:], align), source.label)
        if step < 100:
            means.update(features, source.label)
            clustering.initialize(*means.compute())

        # 2. Features are similar to the prototype of their class. Each graph is freed before the next pass.
        loss = loss + 0.3 * contrast(features, source.label, torch.ones_like(source.label.float()))
        loss.backward()

        with torch.no_grad():
            # 3. The teacher labels the weak view; thresholds balance the classes, limits bound their growth.
            logits, features = segment(teacher, target.weak / 255)
            probabilities = logits.softmax(dim=1)
            confident = (probabilities.amax(dim=1) > 0.968).float().mean()
            soft = limits(thresholds(probabilities))
            thresholds.update(probabilities)
            limits.update(probabilities, soft.argmax(dim=1))

            # 4. The labels follow the strong view, and half of the classes of a source image are pasted.
            both, views = [soft, clustering.assign(features)], (target.weak_view, target.strong_view)
            warped, valid = warp(torch.cat(both, 1), *views, align_corners=align, output_align_corners=False)
            in_strong, assigned = warped.chunk(2, dim=1)
            labels = in_strong.argmax(dim=1).masked_fill(~valid, 255)
            mixed = classmix(target.strong, labels, source.image, source.label)
            weights = torch.where(mixed.pasted, 1.0, confident)
            # The labels of the target are reliable where the clusters agree with them.
            reliable = torch.where(mixed.pasted, mixed.labels, agreeing_labels(labels, assigned))

        # 5. Cross-entropy on the mixed image: pasted labels are correct, the others perhaps.
        logits, mixed_features = segment(student, mixed.image / 255)
        loss_target = cross_entropy(resize(logits, labels.shape[1:], align), mixed.labels, weights=weights)
        loss_target = loss_target + 0.3 * contrast(mixed_features, reliable, weights)
        loss_target.backward()

        # 6. Cross-entropy on the masked image: the context has to explain the masked patches.
        logits, _ = segment(student, mask_patches(target.strong / 255, patch=64, share=0.7))
        loss_masked = confident * cross_entropy(resize(logits, labels.shape[1:], align), labels)
        loss_masked.backward()

        # 7. The pixels of the teacher move the prototypes, and its probabilities the class distribution.
        clustering.update(clustering(features, soft.argmax(dim=1), soft_labels=probabilities), momentum=0.999)

        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
        if step % 100 == 0:
            print(f"step {step}: loss {(loss + loss_target + loss_masked).item():.3f}", flush=True)

    Segmenter(teacher, data.CITYSCAPES_19, view.full_size).save(args.output)


if __name__ == "__main__":
    main()
