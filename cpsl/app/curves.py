"""Titles of the curves of a run in TensorBoard: what is drawn, and its unit or range."""

from collections.abc import Mapping
from typing import Any

from cpsl.app.titles import SCORES

TITLES = {
    "loss": "loss, sum of all terms",
    "loss_source": "loss of source images (cross-entropy with labels)",
    "loss_target": "loss of target images (pseudo labels)",
    "loss_masked": "loss of masked target images (pseudo labels)",
    "loss_distillation": "loss of distillation (divergence from the teacher)",
    "loss_contrast": "loss of contrast (features and prototypes, both domains)",
    "loss_self_label": "loss of clustering (cross-entropy with assignments)",
    "loss_consistency": "loss of consistency (weak and strong view)",
    "loss_adversarial": "loss of adversarial alignment (network)",
    "loss_discriminator": "loss of adversarial alignment (discriminator)",
    "confident": "pseudo labels above the confidence threshold (share of pixels, 0 to 1)",
    "agreement": "pseudo labels that the student predicts as well (share of target pixels, 0 to 1)",
    "confidence": "confidence of the pseudo labels (mean, 0 to 1)",
    "marginal_error": "deviation of assignments from the class distribution (0 to 1)",
    "learning_rate": "learning rate of the network (the highest of its layers)",
    "overflowed": "iterations skipped for overflow of float16 (share, 0 to 1)",
    "miou": "mIoU of labeled target images (percent)",
    "flip_miou": "without labels, IoU with the mirror image, mean of classes (0 to 1, higher is better)",
    "flip_agreement": "without labels, agreement with the mirror image (share, higher is better)",
    "information": "without labels, mutual information (0 to 1, higher is better)",
    "density": "without labels, soft neighborhood density (nats, higher is better)",
    "entropy": "without labels, entropy of predictions (0 to 1, lower is more confident)",
    "class_variation": "without labels, distance of classes to the source (0 to 1, lower is closer)",
}
"""Title of each recorded scalar, by its name in `scalars.jsonl`."""


def result_by_title(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns what TensorBoard shows of the evaluation of a stage: mIoU, scores without labels, IoU by class.

    Example:
        >>> result_by_title({"miou": 41.4, "scores": {}, "iou": {"road": 82.1, "train": None}})
        {'mIoU of labeled target images (percent)': 41.4, 'IoU of road (percent)': 82.1}
    """
    figures = {TITLES["miou"]: metrics["miou"]}
    figures |= {TITLES[name]: metrics["scores"].get(name) for name in SCORES}
    figures |= {f"IoU of {name} (percent)": iou for name, iou in metrics["iou"].items()}
    return {title: value for title, value in figures.items() if value is not None}
