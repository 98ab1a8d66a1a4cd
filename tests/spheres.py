"""Pixels with known classes, as noisy directions on a sphere: which prototypes rectify their labels best?

`python tests/spheres.py` prints the table of docs/method.md: six target domains, three seeds.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl import (
    ClassBalancedPrototypeClustering,
    ClassMeanPrototypes,
    ConfusionMatrix,
    PseudoLabelRectifier,
    class_counts,
)

FREQUENCIES = torch.tensor([0.36, 0.24, 0.14, 0.09, 0.06, 0.04, 0.03, 0.015, 0.01, 0.007, 0.005, 0.003])
PRESENCE = torch.tensor([1.0] * 7 + [0.6, 0.4, 0.3, 0.2, 0.12])  # share of the images with the class
K, D = len(FREQUENCIES), 32
RARE = slice(7, K)
DOMAINS = [(noise, shift) for noise in (0.6, 1.0, 1.5) for shift in (0.6, 1.2)]


class Spheres(NamedTuple):
    """Images of a target domain.

    Attributes:
        features: (N, D, h, w).
        soft_labels: (N, K, h, w) of a classifier of the source.
        labels: (N, h, w) the truth.
        prototypes: (K, D) class means by the predictions of the classifier.
        distribution: (K,) frequencies of these predictions.
    """

    features: Tensor
    soft_labels: Tensor
    labels: Tensor
    prototypes: Tensor
    distribution: Tensor


def make_spheres(
    noise: float, shift: float, seed: int, images: int = 200, size: tuple[int, int] = (16, 32)
) -> Spheres:
    """Draws a target domain whose rare classes occur in few images and are shifted towards frequent ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    neighbors = slice(0, K - RARE.start)  # each rare class resembles a frequent one
    source = F.normalize(normal(K, D), dim=1)
    source[RARE] = F.normalize(source[RARE] + source[neighbors], dim=1)
    target = source + shift * (0.5 * F.normalize(normal(1, D), dim=1) + 0.5 * normal(K, D) / D**0.5)
    target[RARE] += 0.6 * shift * source[neighbors]
    target = F.normalize(target, dim=1)

    present = torch.rand(images, K, generator=generator) < PRESENCE
    pixels = size[0] * size[1]
    labels = torch.multinomial(FREQUENCIES / PRESENCE * present, pixels, True, generator=generator)
    directions = target[labels] + noise * (normal(images, pixels, D) + 0.4 * normal(images, 1, D)) / D**0.5
    features = F.normalize(directions, dim=2)
    soft = (12 * features @ source.t() + 0.7 * FREQUENCIES.log()).softmax(dim=2)

    features, soft = (maps.mT.unflatten(2, size).contiguous() for maps in (features, soft))
    means = ClassMeanPrototypes(K, D)
    means.update(features, soft)
    prototypes, seen = means.compute()
    prototypes = torch.where(seen[:, None] > 0, prototypes, source)
    counts = class_counts(soft.argmax(dim=1), K)
    return Spheres(features, soft, labels.unflatten(1, size), prototypes, counts / counts.sum())


class Scores(NamedTuple):
    """IoU in percent: mean over all classes, and over the rare ones."""

    miou: float
    rare: float


def adapt(spheres: Spheres, rectifier: PseudoLabelRectifier, steps: int, **options: Any) -> Scores:
    """Clusters for a number of steps (none: still prototypes) and scores the rectified labels."""
    torch.manual_seed(0)
    options = {"bank_size": 2048, "samples_per_image": 64, "momentum": 0.99, **options}
    clustering = ClassBalancedPrototypeClustering(K, D, **options)
    clustering.initialize(spheres.prototypes, spheres.distribution)
    # The loss has the weight 0.1.
    optimizer = torch.optim.SGD([clustering.prototypes], lr=0.1 * 0.08, momentum=0.9)
    for step in range(steps):
        batch = torch.arange(4 * step, 4 * step + 4) % len(spheres.features)
        features, soft = spheres.features[batch], spheres.soft_labels[batch]
        delta = clustering.aligner.distribution
        labels = rectifier(soft, features, clustering.ema_prototypes, delta).labels
        output = clustering(features, labels)
        if clustering.prototypes.requires_grad:
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        clustering.update(output)
    delta = clustering.aligner.distribution
    rectified = rectifier(spheres.soft_labels, spheres.features, clustering.ema_prototypes, delta)
    confusion = ConfusionMatrix(K)
    confusion.update(rectified.labels, spheres.labels)
    iou = 100 * confusion.iou
    return Scores(iou.nanmean().item(), iou[RARE].nanmean().item())


STILL: dict[str, Any] = {}
PAPER: dict[str, Any] = {"prototype_update": "gradient"}
ASSIGNED: dict[str, Any] = {"prototype_update": "assignments"}
ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("still", {}, STILL),
    ("gradient (the paper)", {}, PAPER),
    ("assignments", {}, ASSIGNED),
    ("gradient, γ = 1", {"prior_correction": 1}, PAPER),
    ("still, γ = 0.25", {"prior_correction": 0.25}, STILL),
    ("assignments, γ = 0.25", {"prior_correction": 0.25}, ASSIGNED),
]
"""Names, options of the rectifier and of the clustering; without the latter the prototypes stand still."""


def main() -> None:
    torch.set_num_threads(1)
    print("noise / shift", *DOMAINS, "mean", sep=" | ")
    drawn = [[make_spheres(*domain, seed) for seed in range(3)] for domain in DOMAINS]
    for name, rectifier, clustering in ROWS:
        steps = 600 if clustering else 0
        scores = [
            [adapt(each, PseudoLabelRectifier(**rectifier), steps, **clustering) for each in domain]
            for domain in drawn
        ]
        means = torch.tensor(scores).mean(dim=1)
        cells = [f"{miou:.1f} / {rare:.1f}" for miou, rare in [*means.tolist(), means.mean(dim=0).tolist()]]
        print(name, *cells, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
