"""Data sets for domain adaptation, the views they are trained on and their pseudo labels."""

from cpsl.data.batched import render_strong_batch
from cpsl.data.changes import ColorOperation, StrongChanges
from cpsl.data.check import DatasetCheck, check_dataset
from cpsl.data.cityscapes import Cityscapes
from cpsl.data.color import LabStatistics, lab_statistics, transfer_color, transfer_color_batch
from cpsl.data.folder import SegmentationFolder
from cpsl.data.gta5 import GTA5
from cpsl.data.labels import (
    CITYSCAPES_13,
    CITYSCAPES_16,
    CITYSCAPES_19,
    IGNORE_INDEX,
    LabelSpace,
    distinct_palette,
)
from cpsl.data.predictions import ColorStore, LabelIdStore
from cpsl.data.pseudo_labels import HardLabelStore, SoftLabelStore
from cpsl.data.sample import Sample, SegmentationDataset, Subset
from cpsl.data.sampler import DrawSampler
from cpsl.data.streets import draw_street, write_streets
from cpsl.data.synthia import Synthia
from cpsl.data.training import (
    Draw,
    SourceBatch,
    SourceViews,
    TargetBatch,
    TargetViews,
    collate,
    whole_image,
)
from cpsl.data.views import StrongAugmentation, WeakView, render, render_label, render_strong

__all__ = [
    "CITYSCAPES_13",
    "CITYSCAPES_16",
    "CITYSCAPES_19",
    "GTA5",
    "IGNORE_INDEX",
    "Cityscapes",
    "ColorOperation",
    "ColorStore",
    "DatasetCheck",
    "Draw",
    "DrawSampler",
    "HardLabelStore",
    "LabStatistics",
    "LabelIdStore",
    "LabelSpace",
    "Sample",
    "SegmentationDataset",
    "SegmentationFolder",
    "SoftLabelStore",
    "SourceBatch",
    "SourceViews",
    "StrongAugmentation",
    "StrongChanges",
    "Subset",
    "Synthia",
    "TargetBatch",
    "TargetViews",
    "WeakView",
    "check_dataset",
    "collate",
    "distinct_palette",
    "draw_street",
    "lab_statistics",
    "render",
    "render_label",
    "render_strong",
    "render_strong_batch",
    "transfer_color",
    "transfer_color_batch",
    "whole_image",
    "write_streets",
]
