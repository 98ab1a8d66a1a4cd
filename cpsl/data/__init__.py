"""Data sets for domain adaptation, the views they are trained on and their pseudo labels."""

from cpsl.data.cache import CachedDataset
from cpsl.data.check import DatasetCheck, Finding, check_dataset
from cpsl.data.cityscapes import Cityscapes
from cpsl.data.folder import SegmentationFolder
from cpsl.data.gta5 import GTA5
from cpsl.data.jitter import ColorJitter
from cpsl.data.labels import CITYSCAPES_13, CITYSCAPES_16, CITYSCAPES_19, IGNORE_INDEX, LabelSpace
from cpsl.data.loader import domain_loaders, training_loader
from cpsl.data.names import Pattern
from cpsl.data.orientation import rotated_images
from cpsl.data.palette import class_colors
from cpsl.data.propose import propose_settings
from cpsl.data.pseudo_labels import HardLabelStore, SoftLabelStore
from cpsl.data.rare_classes import RareClassSampling, count_classes, rare_class_probabilities
from cpsl.data.sample import Sample, SegmentationDataset, Subset
from cpsl.data.sampler import MixedSampling, SeededSampler
from cpsl.data.streets import write_streets
from cpsl.data.synthia import Synthia
from cpsl.data.training import (
    JoinedViews,
    SourceBatch,
    SourceViews,
    TargetBatch,
    TargetViews,
    collate,
    whole_image,
)
from cpsl.data.values import ClassMap, count_stored_values
from cpsl.data.views import StrongAugmentation, WeakView

__all__ = [
    "CITYSCAPES_13",
    "CITYSCAPES_16",
    "CITYSCAPES_19",
    "GTA5",
    "IGNORE_INDEX",
    "CachedDataset",
    "Cityscapes",
    "ClassMap",
    "ColorJitter",
    "DatasetCheck",
    "Finding",
    "HardLabelStore",
    "JoinedViews",
    "LabelSpace",
    "MixedSampling",
    "Pattern",
    "RareClassSampling",
    "Sample",
    "SeededSampler",
    "SegmentationDataset",
    "SegmentationFolder",
    "SoftLabelStore",
    "SourceBatch",
    "SourceViews",
    "StrongAugmentation",
    "Subset",
    "Synthia",
    "TargetBatch",
    "TargetViews",
    "WeakView",
    "check_dataset",
    "class_colors",
    "collate",
    "count_classes",
    "count_stored_values",
    "domain_loaders",
    "propose_settings",
    "rare_class_probabilities",
    "rotated_images",
    "training_loader",
    "whole_image",
    "write_streets",
]
