"""The clusterings of the stages, from their settings."""

from collections.abc import Callable
from functools import partial

from cpsl.app.config import Authors, Config
from cpsl.authors.clustering import AuthorsClustering
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.models import SegmentationNetwork


def online_clustering(config: Config, network: SegmentationNetwork) -> ClassBalancedPrototypeClustering:
    """Builds the clustering of the online method: its prototypes follow the labels, without an optimizer."""
    settings = config.online
    return ClassBalancedPrototypeClustering(
        network.num_classes,
        network.feature_dim,
        bank_size=settings.bank_size,
        samples_per_image=settings.samples_per_image,
        temperature=settings.temperature,
        sampling="stratified",
        prototype_update="labels",
        align_corners=network.align_corners,
    )


def self_label_clustering(
    config: Config, num_classes: int, feature_dim: int
) -> ClassBalancedPrototypeClustering:
    """Builds the clustering of the stage `self_label`, that of the paper."""
    settings, authors = config.self_label, config.authors
    build: Callable[..., ClassBalancedPrototypeClustering] = ClassBalancedPrototypeClustering
    if authors != Authors():
        build = partial(
            AuthorsClustering,
            image_by_image=authors.image_by_image,
            dot_product_bank_scores=authors.dot_product_bank_scores,
            logit_assignments=authors.logit_assignments,
        )
    return build(
        num_classes,
        feature_dim,
        bank_size=settings.bank_size,
        samples_per_image=settings.samples_per_image,
        temperature=settings.temperature,
        epsilon=settings.epsilon,
        sinkhorn_iterations=settings.sinkhorn_iterations,
        sampling=settings.sampling,
        distribution_momentum=settings.distribution_momentum,
    )
