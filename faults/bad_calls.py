"""Calls of the library with shapes, types and values that do not fit, and what the error must say."""

# mypy: disable-error-code="arg-type"
# Many of these calls are what types are there to forbid.

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import cpsl
from cpsl import data, models
from cpsl.geometry import View

Call = tuple[str, Callable[[], object], tuple[str, ...]]

ones, zeros = torch.ones, torch.zeros
NAN = float("nan")


def _labels(*shape: int, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.int64)


def _bytes(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.uint8)


def _clustering(**options: Any) -> cpsl.ClassBalancedPrototypeClustering:
    return cpsl.ClassBalancedPrototypeClustering(2, 4, bank_size=8, samples_per_image=4, **options)


def _model() -> models.DeepLabV2:
    return models.DeepLabV2(2, "resnet_tiny", 8)


def _folder() -> Path:
    return Path(tempfile.mkdtemp())


def _changes(batch: int = 1) -> data.StrongChanges:
    view = View.whole((8, 8))
    one, _ = data.StrongAugmentation().draw_changes(view, np.random.default_rng(0))
    return data.StrongChanges.stack([one] * batch)


class _Crowd:
    """A data set without labels."""

    label_space = data.LabelSpace(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    names: tuple[str, ...] = ("one",)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> data.Sample:
        return data.Sample(self.image(index), None, "one")

    def image(self, index: int) -> torch.Tensor:
        return _bytes(3, 16, 16)


whole = View.whole((8, 8))
CALLS: list[Call] = [
    # Assignment and class distribution.
    ("sinkhorn: three axes", lambda: cpsl.sinkhorn(ones(2, 3, 4)), (r"\(N, K\)", r"\(2, 3, 4\)")),
    ("sinkhorn: whole numbers", lambda: cpsl.sinkhorn(_labels(4, 2)), ("floating point", "int64")),
    (
        "sinkhorn: epsilon 0",
        lambda: cpsl.sinkhorn(ones(4, 2), epsilon=0),
        ("epsilon must be positive, got 0",),
    ),
    (
        "sinkhorn: epsilon NaN",
        lambda: cpsl.sinkhorn(ones(4, 2), epsilon=NAN),
        ("epsilon must be positive, got nan",),
    ),
    (
        "sinkhorn: no iterations",
        lambda: cpsl.sinkhorn(ones(4, 2), iterations=0),
        ("iterations must be at least 1, got 0",),
    ),
    (
        "sinkhorn: marginal of other classes",
        lambda: cpsl.sinkhorn(ones(4, 2), ones(3)),
        ("2 classes", r"\(3,\)"),
    ),
    ("sinkhorn: marginal of zeros", lambda: cpsl.sinkhorn(ones(4, 2), zeros(2)), ("not all zero",)),
    (
        "sinkhorn: negative marginal",
        lambda: cpsl.sinkhorn(ones(4, 2), torch.tensor([1.0, -1])),
        ("non-negative",),
    ),
    (
        "sinkhorn: marginal with NaN",
        lambda: cpsl.sinkhorn(ones(4, 2), torch.tensor([1.0, NAN])),
        ("finite",),
    ),
    (
        "marginal_error: other classes",
        lambda: cpsl.marginal_error(ones(4, 2), ones(3)),
        ("2 classes", r"\(3,\)"),
    ),
    (
        "DistributionAligner: momentum",
        lambda: cpsl.DistributionAligner(2, momentum=2),
        ("momentum must lie in 0...1, got 2",),
    ),
    (
        "DistributionAligner: start of other classes",
        lambda: cpsl.DistributionAligner(2, initial=ones(3)),
        ("2 classes", r"\(3,\)"),
    ),
    (
        "DistributionAligner: label of no class",
        lambda: cpsl.DistributionAligner(2).update(_labels(4, value=9)),
        (r"0...1 or 255", r"\[9\]"),
    ),
    (
        "DistributionAligner: probabilities of other classes",
        lambda: cpsl.DistributionAligner(2).update(ones(1, 3, 4, 4)),
        ("2 classes on axis 1", r"\(1, 3, 4, 4\)"),
    ),
    (
        "class_counts: label of no class",
        lambda: cpsl.class_counts(_labels(4, value=2), 2),
        ("0...1", r"\[2\]"),
    ),
    ("class_counts: floating point", lambda: cpsl.class_counts(ones(4), 2), ("integer", "float32")),
    # Memory and clustering.
    ("PixelMemoryBank: no place", lambda: cpsl.PixelMemoryBank(0, 4), ("must be positive, got 0",)),
    (
        "PixelMemoryBank: other channels",
        lambda: cpsl.PixelMemoryBank(8, 4).push(ones(2, 5)),
        (r"\(N, 4\)", r"\(2, 5\)"),
    ),
    (
        "PixelMemoryBank: labels of other pixels",
        lambda: cpsl.PixelMemoryBank(8, 4).push(ones(2, 4), _labels(3)),
        (r"\(2,\)", r"\(3,\)"),
    ),
    (
        "clustering: temperature 0",
        lambda: _clustering(temperature=0),
        ("temperature must be positive, got 0",),
    ),
    (
        "clustering: unknown sampling",
        lambda: _clustering(sampling="all"),
        ("sampling must be", "'all'"),
    ),
    (
        "clustering: other channels",
        lambda: _clustering()(ones(1, 5, 4, 4)),
        (r"\(B, 4, h, w\)", r"\(1, 5, 4, 4\)"),
    ),
    (
        "clustering: labels on another grid",
        lambda: _clustering()(ones(1, 4, 4, 4), _labels(1, 8, 8)),
        ("on the grid of the features", r"\(1, 8, 8\)"),
    ),
    (
        "clustering: labels of no class",
        lambda: _clustering()(ones(1, 4, 4, 4), _labels(1, 4, 4, value=7)),
        ("0...1 or 255", "7"),
    ),
    (
        "clustering: prototypes of another shape",
        lambda: _clustering().initialize(ones(3, 4), ones(2)),
        (r"\(2, 4\)", r"\(3, 4\)"),
    ),
    (
        "clustering: prototypes with NaN",
        lambda: _clustering().initialize(ones(2, 4) * NAN, ones(2)),
        ("prototypes must be finite",),
    ),
    (
        "clustering: distribution without mass",
        lambda: _clustering().initialize(ones(2, 4), zeros(2)),
        ("not all zero",),
    ),
    (
        "clustering: no logits",
        lambda: _clustering(logit_assignments=True)(ones(1, 4, 4, 4)),
        ("logits",),
    ),
    # Prototypes and rectification.
    (
        "prototype_similarity: other channels",
        lambda: cpsl.prototype_similarity(ones(1, 4, 2, 2), ones(2, 5)),
        (r"\(2, 5\)",),
    ),
    (
        "ClassMeanPrototypes: other classes",
        lambda: cpsl.ClassMeanPrototypes(2, 4).update(ones(1, 4, 2, 2), ones(1, 3, 2, 2)),
        (r"\(1, 2, h, w\)", r"\(1, 3, 2, 2\)"),
    ),
    (
        "PseudoLabelRectifier: threshold",
        lambda: cpsl.PseudoLabelRectifier(threshold=2),
        ("threshold must lie in 0...1, got 2",),
    ),
    (
        "PseudoLabelRectifier: unknown word",
        lambda: cpsl.PseudoLabelRectifier(interpolate="both"),
        ("interpolate must be", "'both'"),
    ),
    (
        "PseudoLabelRectifier: other classes",
        lambda: cpsl.PseudoLabelRectifier()(ones(1, 3, 8, 8), ones(1, 4, 2, 2), ones(2, 4)),
        ("2 prototypes", r"\(1, 3, 8, 8\)"),
    ),
    (
        "PseudoLabelRectifier: other shapes",
        lambda: cpsl.PseudoLabelRectifier().rectify(ones(1, 2, 8, 8), ones(1, 2, 4, 4)),
        (r"\(1, 2, 4, 4\)", "one shape"),
    ),
    # Losses.
    (
        "cross_entropy: another grid",
        lambda: cpsl.cross_entropy(ones(1, 2, 4, 4), _labels(1, 8, 8)),
        ("same grid", r"\(1, 8, 8\)"),
    ),
    (
        "cross_entropy: label of no class",
        lambda: cpsl.cross_entropy(ones(1, 2, 4, 4), _labels(1, 4, 4, value=2)),
        ("0...1 or 255", r"\[2\]"),
    ),
    (
        "cross_entropy: labels in floating point",
        lambda: cpsl.cross_entropy(ones(1, 2, 4, 4), ones(1, 4, 4)),
        ("integer", "float32"),
    ),
    (
        "symmetric_cross_entropy: another grid",
        lambda: cpsl.symmetric_cross_entropy(ones(1, 2, 4, 4), _labels(1, 8, 8)),
        ("same grid",),
    ),
    (
        "symmetric_cross_entropy: label of no class",
        lambda: cpsl.symmetric_cross_entropy(ones(1, 2, 4, 4), _labels(1, 4, 4, value=2)),
        ("0...1 or 255", r"\[2\]"),
    ),
    (
        "distillation: other shapes",
        lambda: cpsl.distillation(ones(1, 2, 4, 4), ones(1, 3, 4, 4)),
        ("one shape", r"\(1, 3, 4, 4\)"),
    ),
    (
        "prototype_consistency: other shapes",
        lambda: cpsl.prototype_consistency(ones(1, 2, 4, 4), ones(1, 2, 8, 8)),
        ("one shape|same shape", r"\(1, 2, 8, 8\)"),
    ),
    (
        "prototype_consistency: valid of another shape",
        lambda: cpsl.prototype_consistency(ones(1, 2, 4, 4), ones(1, 2, 4, 4), ones(1, 2).bool()),
        ("valid must be", r"\(1, 2\)"),
    ),
    (
        "pixel_contrast: other bank",
        lambda: cpsl.pixel_contrast(ones(3, 4), _labels(3), ones(5, 4), _labels(6)),
        (r"\(6,\)",),
    ),
    # Geometry and mixing.
    (
        "View: matrix of another shape",
        lambda: View(ones(2, 3), (8, 8)),
        (r"\(B, 2, 3\)", r"\(2, 3\)"),
    ),
    (
        "View: matrix of float64",
        lambda: View(ones(1, 2, 3).double(), (8, 8)),
        ("float32", "float64"),
    ),
    ("View.whole: no size", lambda: View.whole((0, 8)), ("size must be positive", r"\(0, 8\)")),
    (
        "View.resized: no size",
        lambda: whole.resized((8, 0)),
        ("size must be positive", r"\(8, 0\)"),
    ),
    (
        "View.cropped: no size",
        lambda: whole.cropped(0, 0, (-1, 4)),
        ("size must be positive", r"\(-1, 4\)"),
    ),
    (
        "View.rotated: values of other samples",
        lambda: View.whole((8, 8), 3).rotated(ones(2)),
        ("3 views", r"\(2,\)"),
    ),
    (
        "View.stack: other sizes",
        lambda: View.stack([whole, View.whole((4, 4))]),
        ("one size", r"\(4, 4\)"),
    ),
    (
        "carry: fewer views",
        lambda: cpsl.carry(ones(2, 1, 8, 8), whole, whole),
        ("2 maps need as many views",),
    ),
    (
        "carry: two axes",
        lambda: cpsl.carry(ones(8, 8), whole, whole),
        (r"\(B, C, h, w\)", r"\(8, 8\)"),
    ),
    (
        "carry: unknown layout",
        lambda: cpsl.carry(ones(1, 1, 8, 8), whole, whole, layout="grid"),
        ("layout", "'grid'"),
    ),
    (
        "carry_enlarged: fewer views",
        lambda: cpsl.carry_enlarged(ones(2, 1, 8, 8), whole, whole, (4, 4), (8, 8)),
        ("2 maps need as many views",),
    ),
    (
        "cutmix: other sizes",
        lambda: cpsl.cutmix(ones(1, 3, 8, 8), _labels(1, 4, 4), ones(1, 3, 4, 4), _labels(1, 4, 4)),
        (r"\(1, 3, 8, 8\)", r"\(1, 3, 4, 4\)"),
    ),
    (
        "cutmix: probability",
        lambda: cpsl.cutmix(
            ones(1, 3, 8, 8), _labels(1, 8, 8), ones(1, 3, 8, 8), _labels(1, 8, 8), probability=2
        ),
        ("probability must lie in 0...1, got 2",),
    ),
    # Sampling and metrics.
    (
        "class_quotas: other classes",
        lambda: cpsl.class_quotas(ones(2).bool(), ones(3), 4),
        (r"\(2,\)", r"\(3,\)"),
    ),
    (
        "class_quotas: negative draws",
        lambda: cpsl.class_quotas(ones(2).bool(), ones(2), -1),
        ("total must be 0 or more, got -1",),
    ),
    (
        "draw_class_proportional: no pixels",
        lambda: cpsl.draw_class_proportional(_labels(0), ones(2), 4),
        ("no pixels to draw from",),
    ),
    (
        "draw_class_proportional: two axes",
        lambda: cpsl.draw_class_proportional(_labels(2, 2), ones(2), 4),
        (r"\(P,\)", r"\(2, 2\)"),
    ),
    (
        "draw_uniform: no pixels",
        lambda: cpsl.draw_uniform(2, 0, 4, ones(1)),
        ("no pixels to draw from",),
    ),
    (
        "labels_of_crop: two axes",
        lambda: cpsl.labels_of_crop(_labels(4, 4), (8, 8), 4),
        (r"\(B, h, w\)", r"\(4, 4\)"),
    ),
    (
        "ConfusionMatrix: other shapes",
        lambda: cpsl.ConfusionMatrix(2).update(_labels(4), _labels(5)),
        (r"\(4,\)", r"\(5,\)"),
    ),
    (
        "ConfusionMatrix: prediction of no class",
        lambda: cpsl.ConfusionMatrix(2).update(_labels(4, value=2), _labels(4)),
        ("prediction must be 0...1",),
    ),
    # Data.
    ("LabelSpace: no classes", lambda: data.LabelSpace((), ()), ("1 to 255 classes, got 0",)),
    (
        "LabelSpace: name given twice",
        lambda: data.LabelSpace(("a", "a"), ((0, 0, 0),) * 2),
        ("repeat: a",),
    ),
    (
        "LabelSpace: colour of two numbers",
        lambda: data.LabelSpace(("a",), ((0, 0),)),
        ("three numbers",),
    ),
    (
        "LabelSpace.subset: unknown class",
        lambda: data.CITYSCAPES_19.subset(("sea",)),
        ("sea", "road"),
    ),
    ("GTA5: no folder", lambda: data.GTA5("no"), ("there is no folder no/images",)),
    ("Synthia: no folder", lambda: data.Synthia("no"), ("there is no folder no/RGB",)),
    (
        "Cityscapes: no folder",
        lambda: data.Cityscapes("no"),
        ("there is no folder no/leftImg8bit/train",),
    ),
    (
        "SegmentationFolder: no classes",
        lambda: data.SegmentationFolder("source/images"),
        ("1 to 255 classes",),
    ),
    ("Subset: image that is not there", lambda: data.Subset(_Crowd(), [3]), ("0...0", "3")),
    (
        "SourceViews: no label",
        lambda: data.SourceViews(_Crowd(), data.WeakView((16, 16), (8, 8), 16))[data.Draw(0, 0)],
        ("needs a label",),
    ),
    ("WeakView: no crop", lambda: data.WeakView(crop=(0, 8)), ("crop", r"\(0, 8\)")),
    ("WeakView: no scale", lambda: data.WeakView(scale=(0, 1)), ("scale", r"\(0, 1\)")),
    (
        "StrongAugmentation: unknown order",
        lambda: data.StrongAugmentation(order="mixed"),
        ("order must be", "'mixed'"),
    ),
    ("DrawSampler: no images", lambda: data.DrawSampler(0, 2, 0), ("no images to draw from",)),
    (
        "DrawSampler: no batch",
        lambda: data.DrawSampler(4, 0, 0),
        ("batch_size must be at least 1, got 0",),
    ),
    (
        "SoftLabelStore: no probabilities",
        lambda: data.SoftLabelStore(_folder()).write("a", ones(2, 4, 4)),
        ("sum to 1", "a.png"),
    ),
    (
        "SoftLabelStore: NaN",
        lambda: data.SoftLabelStore(_folder()).write("a", ones(2, 4, 4) * NAN),
        ("must be probabilities", "a.png"),
    ),
    (
        "SoftLabelStore: name that leaves",
        lambda: data.SoftLabelStore(_folder()).write("../a", ones(1, 4, 4)),
        ("no path below a folder", "../a"),
    ),
    (
        "HardLabelStore: whole numbers of 64 bits",
        lambda: data.HardLabelStore(_folder()).write("a", _labels(4, 4)),
        ("uint8 expected", "int64"),
    ),
    (
        "HardLabelStore: void 0",
        lambda: data.HardLabelStore(_folder(), void=0),
        ("void must lie in 1...255, got 0",),
    ),
    (
        "HardLabelStore: class that means void",
        lambda: data.HardLabelStore(_folder(), void=250).write("a", _bytes(2, 2) + 250),
        ("250 means void",),
    ),
    (
        "LabelIdStore: foreign classes",
        lambda: data.LabelIdStore(_folder(), _Crowd.label_space),
        ("no id: a, b",),
    ),
    (
        "LabelIdStore: label of no class",
        lambda: data.LabelIdStore(_folder(), data.CITYSCAPES_19).write(
            "a", _labels(2, 2, value=255)
        ),
        ("0...18", "255"),
    ),
    (
        "ColorStore: negative label",
        lambda: data.ColorStore(_folder(), data.CITYSCAPES_19).write("a", _labels(2, 2, value=-1)),
        ("0 or more", "-1"),
    ),
    ("render: floating point", lambda: data.render(ones(3, 8, 8), whole), ("uint8", "float32")),
    (
        "render: two views",
        lambda: data.render(_bytes(3, 8, 8), View.whole((8, 8), 2)),
        ("one view, got 2",),
    ),
    (
        "render_label: floating point",
        lambda: data.render_label(ones(8, 8), whole),
        ("uint8", "float32"),
    ),
    (
        "render_strong: two views",
        lambda: data.render_strong(_bytes(3, 8, 8), _changes(2)),
        ("one view's changes, got 2",),
    ),
    (
        "render_strong_batch: fewer changes",
        lambda: data.render_strong_batch(_bytes(2, 3, 8, 8), _changes()),
        ("2 images need as many changes, got 1",),
    ),
    (
        "lab_statistics: floating point",
        lambda: data.lab_statistics(ones(3, 8, 8)),
        ("uint8", "float32"),
    ),
    (
        "whole_image: no size",
        lambda: data.whole_image(_bytes(3, 8, 8), (0, 8)),
        ("size must be positive", r"\(0, 8\)"),
    ),
    (
        "draw_street: unknown style",
        lambda: data.draw_street(0, "film"),
        ("style must be", "'film'"),
    ),
    ("draw_street: too small", lambda: data.draw_street(0, "game", (8, 8)), ("at least 32",)),
    (
        "write_streets: unknown layout",
        lambda: data.write_streets(_folder(), layout="kitti", style="game", count=1),
        ("layout must be", "'kitti'"),
    ),
    # Models.
    (
        "DeepLabV2: unknown backbone",
        lambda: models.DeepLabV2(2, "vgg"),
        ("backbone must be one of resnet101", "'vgg'"),
    ),
    (
        "DeepLabV2: backbone without a contract",
        lambda: models.DeepLabV2(2, nn.Conv2d(3, 4, 1)),
        ("channels", "Conv2d"),
    ),
    (
        "DeepLabV2: no classes",
        lambda: models.DeepLabV2(0, "resnet_tiny"),
        ("num_classes and feature_dim must be positive, got 0",),
    ),
    (
        "DeepLabV2: bytes",
        lambda: _model()(_bytes(1, 3, 32, 32)),
        ("float in 0...1, got torch.uint8", "divide by 255"),
    ),
    (
        "DeepLabV2: grey images",
        lambda: _model()(ones(1, 1, 32, 32)),
        (r"\(B, 3, H, W\)", r"\(1, 1, 32, 32\)"),
    ),
    (
        "Discriminator: other classes",
        lambda: models.Discriminator(2)(ones(1, 3, 32, 32)),
        ("2", r"\(1, 3, 32, 32\)"),
    ),
    ("resnet_tiny: stride", lambda: models.resnet_tiny(stride=16), ("must be 4 or 8, got 16",)),
    (
        "ExponentialMovingAverage: unknown mode",
        lambda: models.ExponentialMovingAverage(_model(), "frozen"),
        ("mode must be", "'frozen'"),
    ),
    (
        "ExponentialMovingAverage: another network",
        lambda: models.ExponentialMovingAverage(_model()).update(nn.Linear(2, 2)),
        ("differ",),
    ),
    (
        "update_moving_average: momentum",
        lambda: models.update_moving_average([ones(1)], [ones(1)], 2),
        ("momentum must lie in 0...1, got 2",),
    ),
    (
        "update_moving_average: other shapes",
        lambda: models.update_moving_average([ones(2)], [ones(3)], 0.5),
        (r"\(2,\)", r"\(3,\)"),
    ),
    (
        "load_backbone_weights: no file",
        lambda: models.load_backbone_weights(_model().backbone, "no.pth"),
        ("no file of weights at no.pth",),
    ),
    (
        "load_backbone_weights: no ImageNet weights",
        lambda: models.load_backbone_weights(_model().backbone, "imagenet", "resnet_tiny"),
        ("no ImageNet weights for the backbone",),
    ),
    (
        "read_release_checkpoint: no file",
        lambda: models.read_release_checkpoint("no.pkl"),
        ("no.pkl",),
    ),
    (
        "load_release_checkpoint: no file",
        lambda: models.load_release_checkpoint("no.pkl"),
        ("no.pkl",),
    ),
    (
        "save_release_checkpoint: another network",
        lambda: models.save_release_checkpoint("x.pkl", _model()),
        ("ResNet-101",),
    ),
]
