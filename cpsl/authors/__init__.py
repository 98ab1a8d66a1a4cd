"""Compatibility with the authors' code: their checkpoints, and each point where it differs from the paper.

docs/fidelity.md explains the differences. The recipe `authors` of the command line uses all of them.
"""

from cpsl.authors.checkpoints import (
    ReleaseCheckpoint,
    load_release_checkpoint,
    read_release_checkpoint,
    save_release_checkpoint,
)
from cpsl.authors.clustering import AuthorsClustering
from cpsl.authors.losses import probability_distillation
from cpsl.authors.optimizer import RepeatedSGD
from cpsl.authors.self_labeling import AuthorsSelfLabeling
from cpsl.authors.views import AuthorsStrongAugmentation

__all__ = [
    "AuthorsClustering",
    "AuthorsSelfLabeling",
    "AuthorsStrongAugmentation",
    "ReleaseCheckpoint",
    "RepeatedSGD",
    "load_release_checkpoint",
    "probability_distillation",
    "read_release_checkpoint",
    "save_release_checkpoint",
]
