"""Titles of stages and of label-free scores, in the report and in the terminal."""

STAGE_TITLES = {
    "source_only": "Source only",
    "warmup": "Warm-up",
    "self_label": "Self-labeling",
    "distill_1": "Distillation 1",
    "distill_2": "Distillation 2",
    "online": "Online self-labeling",
}
"""Titles of the stages."""

SCORES = {
    "information": "Certain predictions of many classes: mutual information (higher is better)",
    "flip_miou": "Consistency with the mirrored image, mean of the classes (higher is better)",
    "flip_agreement": "Pixels with the same class in the mirrored image (higher is better)",
    "density": "Pixels that resemble each other: soft neighborhood density (higher is better)",
    "entropy": "Uncertainty of the predictions: entropy (lower is more confident)",
    "class_variation": "Distance to the class frequencies of the source (lower is closer)",
}
"""Label-free scores of the report, that which chooses first, with their titles."""

SHORT_SCORES = {
    "information": "information (+)",
    "flip_miou": "consistency (+)",
    "flip_agreement": "agreement (+)",
    "density": "density (+)",
    "entropy": "entropy (-)",
    "class_variation": "distance (-)",
}
"""Their names in a terminal, and whether higher (+) or lower (-) is better."""


def title_of(stage: str) -> str:
    """Returns the name of a stage in the report."""
    return STAGE_TITLES.get(stage, stage)
