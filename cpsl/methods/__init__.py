"""The training steps of the paper, and one that does it online, as modules that yield their losses.

A method combines networks and components, and does not depend on files, settings or the command line:

    for loss in method.losses(source, target):
        loss.backward()
    optimizer.step()
    method.update()

Gradient accumulation, mixed precision and clipping are up to the training loop. Losses are yielded one at a
time, so that the graph of each pass is freed before the next pass. `method(source, target)` returns their sum
and needs more memory.
"""

from cpsl.methods.distillation import Distillation
from cpsl.methods.online import OnlineSelfLabeling
from cpsl.methods.self_labeling import SelfLabeling
from cpsl.methods.step import Method, Supervision
from cpsl.methods.warmup import AdversarialWarmup

__all__ = ["AdversarialWarmup", "Distillation", "Method", "OnlineSelfLabeling", "SelfLabeling", "Supervision"]
