"""BatchNorm statistics of the target before the online stage, unless they make the predictions worse."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cpsl.app.config import Config
from cpsl.app.datasets import target_batches
from cpsl.app.evaluate import evaluating
from cpsl.data import StrongAugmentation
from cpsl.methods.step import to_float
from cpsl.models import SegmentationNetwork, adapt_batch_norm, segment
from cpsl.scores import LabelFreeScores
from cpsl.training import Process, logger

BATCHES = 12
"""Batches of target images that are measured."""

LARGEST_LOSS = 0.03
"""Part of its mutual information that a network may lose; docs/method.md has the experiments."""


def mix_target_statistics(
    network: SegmentationNetwork, strong: StrongAugmentation, config: Config, process: Process
) -> None:
    """Mixes statistics of the target into those of the source, in the share that the settings name.

    Where the target shows other things than the source, they spoil the predictions, which then tell less
    about the pixels: such statistics are not kept.
    """
    share = config.online.target_statistics
    is_trained = config.online.start not in ("pretrained", "random")
    if not (share and is_trained and any(isinstance(part, _BatchNorm) for part in network.modules())):
        return
    # Whole batches of one process: every rank has the same images, and accumulation does not matter.
    alone, whole = Process(process.device), replace(config, gradient_accumulation_steps=1)
    batches = target_batches(whole, "online", alone, config.online.batch_size, 0, strong=strong)
    images = [batch.weak for batch in islice(batches, BATCHES)]
    source = {key: value.clone() for key, value in network.state_dict().items()}
    before = _information(network, images)
    adapt_batch_norm(network, map(to_float, images), share)
    after = _information(network, images)
    if after < (1 - LARGEST_LOSS) * before:
        network.load_state_dict(source)
        logger.info(
            "online: BatchNorm keeps the statistics of the source, since with those of the target the "
            f"predictions tell less about the pixels (mutual information {after:.3f} instead of {before:.3f})"
        )


@torch.no_grad()
def _information(network: SegmentationNetwork, images: Sequence[Tensor]) -> float:
    """Returns the mutual information of pixels and predicted classes."""
    scores = LabelFreeScores(network.num_classes).to(images[0].device)
    with evaluating(network):
        for batch in images:
            scores.update(segment(network, to_float(batch)).logits)
    return float(scores.compute().information)
