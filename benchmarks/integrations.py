"""What CPSL adds to a mean teacher, with networks of four frameworks: mIoU on the target, over seeds.

    python benchmarks/integrations.py
    python benchmarks/integrations.py --only timm --seeds 1

The networks are small and have random weights; Lightning trains the last. The online method trains twice:
without CPSL, as a mean teacher with mixed and masked images, and with it. Both start from the same network,
trained on the source, and train on the same batches of generated streets.
"""

import argparse
import copy
import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import PolynomialLR

from cpsl import ClassBalancedPrototypeClustering, ConfusionMatrix
from cpsl.data import GTA5, Cityscapes, WeakView, domain_loaders, write_streets
from cpsl.methods import AdversarialWarmup, OnlineSelfLabeling
from cpsl.models import ExponentialMovingAverage, build_network, check_network, resize, segment

SIZE = (64, 128)
CLASSES, FEATURES = 19, 64


SEGFORMER = {
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 4, 8],
    "decoder_hidden_size": FEATURES,
}
PYRAMID = {"decoder_pyramid_channels": FEATURES, "decoder_segmentation_channels": FEATURES}
DEEPLAB = {"feature_dim": FEATURES, "dilations": [1, 2, 4]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "smp": ("smp:FPN/tu-mobilenetv3_small_050", PYRAMID),
    "transformers": ("transformers:segformer", SEGFORMER),
    "timm": ("timm:regnetx_002", {"feature_dim": FEATURES}),
    "lightning": ("deeplabv2:resnet_tiny", DEEPLAB),
}
"""Name and arguments of each network."""

sys.path.append(str(Path(__file__).parents[1] / "examples"))


class Streets:
    """Generated streets: a labeled game, unlabeled real streets to adapt to, labeled ones to evaluate on."""

    def __init__(self, root: Path, count: int = 240) -> None:
        game, real = root / "game", root / "real"
        write_streets(game, layout="gta5", style="game", count=count, size=SIZE)
        for split, images in (("train", count), ("val", count // 4)):
            write_streets(real, layout="cityscapes", style="real", count=images, split=split, size=SIZE)
        self.source, self.target = GTA5(game), Cityscapes(real)
        self.validation = Cityscapes(real, "val")

    def loaders(self, seed: int) -> tuple[Any, Any]:
        """Returns loaders of whole images, half of them mirrored."""
        view = WeakView(full_size=SIZE, crop=SIZE, width=SIZE[1], scale=(1.0, 1.0))
        return domain_loaders(self.source, self.target, view, batch_size=4, seed=seed)

    @torch.no_grad()
    def miou(self, network: nn.Module) -> float:
        """Returns the mIoU of a network on the validation streets, in percent."""
        network.eval()
        confusion = ConfusionMatrix(CLASSES)
        for index in range(len(self.validation)):
            image, label, _ = self.validation[index]
            assert label is not None
            logits, _ = segment(network, image[None] / 255)
            logits = resize(logits, SIZE, check_network(network).align_corners)
            confusion.update(logits.argmax(dim=1)[0], label)
        network.train()
        return 100 * confusion.miou.item()


def train(
    method: AdversarialWarmup | OnlineSelfLabeling, loaders: tuple[Any, Any], steps: int, rate: float
) -> None:
    """Trains a method in a plain loop, with a learning rate that decays to zero."""
    optimizer = AdamW([p for p in method.parameters() if p.requires_grad], rate)
    schedule = PolynomialLR(optimizer, steps, power=0.9)
    for _, source, target in zip(range(steps), *loaders, strict=False):
        for loss in method.losses(source, target):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        method.update()


def compare(name: str, streets: Streets, seed: int, start: int, iterations: int) -> list[float]:
    """Returns the mIoU, in percent, of the source-only network and of mean teachers without and with CPSL.

    The source-only network takes `start` steps, the mean teachers `iterations`.
    """
    torch.manual_seed(seed)
    library, arguments = NETWORKS[name]
    network = build_network(library, CLASSES, weights="random", **arguments)
    train(AdversarialWarmup(network), streets.loaders(seed), start, 3e-3)
    results = [streets.miou(network)]
    for cpsl in (False, True):
        torch.manual_seed(seed)
        student: Any = copy.deepcopy(network)
        clustering = ClassBalancedPrototypeClustering(
            CLASSES,
            student.feature_dim,
            bank_size=4096,
            temperature=0.1,
            sampling="stratified",
            prototype_update="labels",
            align_corners=student.align_corners,
        )
        teacher = ExponentialMovingAverage(student)
        method = OnlineSelfLabeling(
            student, teacher, clustering if cpsl else None, masked_patch=16, momentum=0.99
        )
        if name == "lightning":
            options = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
            quiet: dict[str, Any] = dict.fromkeys(options, False)
            trainer = lightning.Trainer(max_steps=iterations, **quiet)
            module = import_module("lightning_module").Adaptation(lambda method=method: method)
            trainer.fit(module, list(streets.loaders(seed + 1)))
        else:
            train(method, streets.loaders(seed + 1), iterations, 1e-3)
        results.append(streets.miou(teacher.module))
    return results


def main() -> None:
    """Prints a line per seed, and means and standard deviations."""
    parser = argparse.ArgumentParser(description="What CPSL adds to a mean teacher")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=400, help="steps on the source")
    parser.add_argument("--iterations", type=int, default=150, help="steps of the mean teachers")
    parser.add_argument("--streets", type=Path, default=Path("runs/integrations"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

    streets = Streets(arguments.streets)
    print("| Network of | Seed | Source only | Mean teacher | + CPSL |\n|---|---|---|---|---|")
    for name in arguments.only:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(compare(name, streets, seed, arguments.start, arguments.iterations))
            print(_row(name, str(seed), *(f"{value:.1f}" for value in rows[-1])), flush=True)
        if len(rows) > 1:
            columns = (f"{mean(column):.1f} ± {stdev(column):.1f}" for column in zip(*rows, strict=True))
            print(_row(f"**{name}**", "mean", *columns), flush=True)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
