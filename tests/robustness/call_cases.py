"""Calls of the library with shapes, types and values that do not fit."""

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cpsl
from case import Case
from cpsl import alignment, authors, data, losses, models, sampling
from cpsl.authors import clustering as authors_clustering
from cpsl.authors import geometry as authors_geometry
from cpsl.data import color, predictions, streets, views
from cpsl.data.views import StrongChanges
from cpsl.geometry import View
from cpsl.models import ema, resnet


def labels(*shape: int, value: int = 0) -> Tensor:
    return torch.full(shape, value)


def pixels(*shape: int, value: int = 0) -> Tensor:
    return torch.full(shape, value, dtype=torch.uint8)


def clustering(**options: Any) -> cpsl.ClassBalancedPrototypeClustering:
    return cpsl.ClassBalancedPrototypeClustering(2, 4, bank_size=8, samples_per_image=4, **options)


def changes(batch: int) -> list[StrongChanges]:
    view, random = View.whole((8, 8)), np.random.default_rng(0)
    one, _ = data.StrongAugmentation().sample_changes(view, random)
    return [one] * batch


class Unlabeled:
    """A data set of one image without a label."""

    label_space = data.LabelSpace(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    names: tuple[str, ...] = ("one",)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> data.Sample:
        return data.Sample(self.image(index), None, "one")

    def image(self, index: int) -> Tensor:
        return pixels(3, 16, 16)


NAN = float("nan")
FOLDER = tempfile.gettempdir()
MAPS = torch.ones(1, 2, 4, 4)  # of two classes
FEATURES = torch.ones(1, 4, 4, 4)
UNLABELED = Unlabeled()
WEAK = data.WeakView((16, 16), (8, 8), 16)
VIEW, TWO_VIEWS = View.whole((8, 8)), View.whole((8, 8), 2)

# Each call, and what its error must name: the argument, its shape, type or value.
CALLS = {
    "sinkhorn(ones(2, 3, 4))": "(2, 3, 4)",
    "sinkhorn(labels(4, 2))": "int64",
    "sinkhorn(ones(4, 2), epsilon=NAN)": "epsilon",
    "sinkhorn(ones(4, 2), iterations=0)": "iterations",
    "sinkhorn(ones(4, 2), ones(3))": "(3,)",
    "sinkhorn(ones(4, 2), zeros(2))": "class distribution",
    "sinkhorn(ones(4, 2), tensor([1, -1.0]))": "-1",
    "sinkhorn(ones(4, 2), tensor([1, NAN]))": "nan",
    "marginal_error(ones(4, 2), ones(3))": "(3,)",
    "DistributionAligner(2, momentum=2)": "momentum",
    "DistributionAligner(2, initial=ones(3))": "(3,)",
    "DistributionAligner(2).update(labels(4, value=9))": "9",
    "DistributionAligner(2).update(ones(1, 3, 4, 4))": "(1, 3, 4, 4)",
    "class_counts(labels(4, value=9), 2)": "9",
    "class_counts(ones(4), 2)": "float32",
    "PixelMemoryBank(0, 4)": "capacity",
    "PixelMemoryBank(8, 4).push(ones(2, 5))": "(2, 5)",
    "PixelMemoryBank(8, 4).push(ones(2, 4), labels(3))": "(3,)",
    "clustering(temperature=0)": "temperature",
    "clustering(sampling='all')": "sampling",
    "clustering()(ones(1, 5, 4, 4))": "(1, 5, 4, 4)",
    "clustering()(FEATURES, labels(2, 8, 8))": "(2, 8, 8)",
    "clustering()(FEATURES, labels(1, 4, 4, value=7))": "7",
    "clustering().initialize(ones(3, 4), ones(2))": "(3, 4)",
    "clustering().initialize(ones(2, 4) * NAN, ones(2))": "prototypes",
    "AuthorsClustering(2, 4, bank_size=8, logit_assignments=True)(FEATURES)": "logits",
    "prototype_similarity(FEATURES, ones(2, 5))": "(2, 5)",
    "ClassMeanPrototypes(2, 4).update(FEATURES, ones(1, 3, 4, 4))": "(1, 3, 4, 4)",
    "PseudoLabelRectifier(threshold=2)": "threshold",
    "PseudoLabelRectifier()(ones(1, 3, 8, 8), FEATURES, ones(2, 4))": "(1, 3, 8, 8)",
    "PseudoLabelRectifier().rectify(MAPS, ones(1, 2, 8, 8))": "(1, 2, 8, 8)",
    "cross_entropy(MAPS, labels(1, 8, 8))": "(1, 8, 8)",
    "cross_entropy(MAPS, labels(1, 4, 4, value=2))": "[2]",
    "cross_entropy(MAPS, ones(1, 4, 4))": "float32",
    "symmetric_cross_entropy(MAPS, labels(1, 8, 8))": "(1, 8, 8)",
    "distillation(MAPS, ones(1, 3, 4, 4))": "(1, 3, 4, 4)",
    "prototype_consistency(MAPS, ones(1, 2, 8, 8))": "(1, 2, 8, 8)",
    "prototype_consistency(MAPS, MAPS, ones(1, 2) > 0)": "(1, 2)",
    "pixel_contrast(ones(3, 4), labels(3), ones(5, 4), labels(6))": "(6,)",
    "View(ones(2, 3), (8, 8))": "(2, 3)",
    "View(ones(1, 2, 3).double(), (8, 8))": "float64",
    "View.whole((0, 8))": "(0, 8)",
    "VIEW.cropped(0, 0, (-1, 4))": "(-1, 4)",
    "TWO_VIEWS.rotated(ones(3))": "(3,)",
    "View.stack([VIEW, View.whole((4, 4))])": "(4, 4)",
    "warp(ones(2, 1, 8, 8), VIEW, VIEW)": "2",
    "warp(ones(8, 8), VIEW, VIEW)": "(8, 8)",
    "warp_upsampled(ones(2, 1, 8, 8), VIEW, VIEW, (4, 4), (8, 8))": "2",
    "cutmix(ones(1, 3, 8, 8), labels(1, 4, 4), ones(1, 3, 4, 4), labels(1, 4, 4))": "(1, 3, 4, 4)",
    "cutmix(*[ones(1, 3, 4, 4), labels(1, 4, 4)] * 2, probability=2)": "probability",
    "class_quotas(ones(2) > 0, ones(3), 4)": "(3,)",
    "class_quotas(ones(2) > 0, ones(2), -1)": "total",
    "sample_class_proportional(labels(0), ones(2), 4)": "pixels",
    "sample_class_proportional(labels(2, 2), ones(2), 4)": "(2, 2)",
    "sample_uniform(2, 0, 4, ones(1))": "pixels",
    "crop_labels(labels(4, 4), (8, 8), 4)": "(4, 4)",
    "ConfusionMatrix(2).update(labels(4), labels(5))": "(5,)",
    "ConfusionMatrix(2).update(labels(4, value=2), labels(4))": "prediction",
    "LabelSpace((), ())": "classes",
    "LabelSpace(('road', 'road'), ((0, 0, 0),) * 2)": "road",
    "LabelSpace(('road',), ((0, 0),))": "color",
    "CITYSCAPES_19.subset(('sea',))": "sea",
    "GTA5('no/folder')": "no/folder",
    "Synthia('no/folder')": "no/folder",
    "Cityscapes('no/folder')": "no/folder",
    "SegmentationFolder('source/images', 'source/labels')": "classes",
    "Subset(UNLABELED, [3])": "3",
    "SourceViews(UNLABELED, WEAK)[data.training.SeededIndex(0, 0)]": "label",
    "WeakView(crop=(0, 8))": "crop",
    "WeakView(scale=(0, 1))": "scale",
    "SeededSampler(0, 2, 0)": "images",
    "SeededSampler(4, 0, 0)": "batch_size",
    "SoftLabelStore(FOLDER).write('a', ones(2, 4, 4))": "a.png",
    "SoftLabelStore(FOLDER).write('a', ones(2, 4, 4) * NAN)": "a.png",
    "SoftLabelStore(FOLDER).write('../a', ones(1, 4, 4))": "../a",
    "HardLabelStore(FOLDER).write('a', labels(4, 4))": "int64",
    "HardLabelStore(FOLDER, ignore_index=0)": "ignore_index",
    "HardLabelStore(FOLDER, ignore_index=250).write('a', pixels(2, 2, value=250))": "250",
    "LabelIdStore(FOLDER, UNLABELED.label_space)": "a, b",
    "LabelIdStore(FOLDER, CITYSCAPES_19).write('a', labels(2, 2, value=255))": "255",
    "ColorStore(FOLDER, CITYSCAPES_19).write('a', labels(2, 2, value=-1))": "-1",
    "render(ones(3, 8, 8), VIEW)": "float32",
    "render(pixels(3, 8, 8), TWO_VIEWS)": "2",
    "render_label(ones(8, 8), VIEW)": "float32",
    "render_strong(ones(3, 8, 8), changes(1)[0])": "float32",
    "render_strong_batch(pixels(2, 3, 8, 8), changes(1))": "1",
    "lab_statistics(ones(3, 8, 8))": "float32",
    "whole_image(pixels(3, 8, 8), (0, 8))": "(0, 8)",
    "draw_street(0, 'film')": "film",
    "draw_street(0, 'game', (8, 8))": "32",
    "write_streets(FOLDER, layout='kitti', style='game', count=1)": "kitti",
    "DeepLabV2(2, 'vgg')": "vgg",
    "DeepLabV2(2, nn.Conv2d(3, 4, 1))": "Conv2d",
    "DeepLabV2(0, 'resnet_tiny')": "num_classes",
    "DeepLabV2(2, 'resnet_tiny')(pixels(1, 3, 32, 32))": "uint8",
    "DeepLabV2(2, 'resnet_tiny')(ones(1, 1, 32, 32))": "(1, 1, 32, 32)",
    "Discriminator(2)(ones(1, 3, 32, 32))": "(1, 3, 32, 32)",
    "resnet_tiny(stride=16)": "16",
    "ExponentialMovingAverage(resnet_tiny(), 'frozen')": "frozen",
    "ExponentialMovingAverage(resnet_tiny()).update(nn.Linear(2, 2))": "conv1.weight",
    "update_moving_average([ones(1)], [ones(1)], 2)": "momentum",
    "update_moving_average([ones(2)], [ones(3)], 0.5)": "(3,)",
    "load_backbone_weights(resnet_tiny(), 'no.pth')": "no.pth",
    "load_backbone_weights(resnet_tiny(), 'imagenet', 'resnet_tiny')": "resnet_tiny",
    "read_release_checkpoint('no.pkl')": "no.pkl",
    "save_release_checkpoint('x.pkl', DeepLabV2(2, 'resnet_tiny'))": "ResNet-101",
}

# The calls use the names of torch, of the library and of this module.
NAMES: dict[str, Any] = {}
for module in (
    torch,
    *(models, ema, resnet),
    *(data, color, predictions, streets, views),
    *(authors, authors_clustering, authors_geometry),
    *(alignment, losses, sampling, cpsl),
):
    NAMES.update(vars(module))
NAMES.update(globals())
LIBRARY = [
    Case("library calls", call, names=name, act=partial(eval, call, NAMES)) for call, name in CALLS.items()
]
