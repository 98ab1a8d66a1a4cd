"""Classes of the source that a network does not predict, in words for the report and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cpsl.app.words import listing, plural, share
from cpsl.collapse import find_unpredicted


def describe_unpredicted(
    metrics: Mapping[str, Any], source_labels: Mapping[str, Sequence[float]], classes: Sequence[str]
) -> str | None:
    """Names the classes of the source that a network never predicts, or hardly ever, in a sentence.

    Args:
        metrics: Of the network, with `class_frequency`.
        source_labels: Class frequencies by source; each source counts the same.
        classes: K names.

    Returns:
        The sentence, "" if all are predicted; None if predictions or source labels were not counted.

    Example:
        >>> source, classes = {"source": [0.7, 0.25, 0.05]}, ("road", "sky", "car")
        >>> describe_unpredicted({"class_frequency": [0.7, 0.3, 0.0]}, source, classes)
        "1 of 3 classes of the source is never predicted: car (5.0 % of the source's labels)."
        >>> describe_unpredicted({"class_frequency": [0.6, 0.3, 0.1]}, source, classes)
        ''
    """
    shares = metrics.get("class_frequency") or []
    counted = [frequencies for frequencies in source_labels.values() if sum(frequencies) > 0]
    if not counted or not sum(shares) > 0:
        return None
    predicted, source = torch.tensor(shares), torch.tensor(counted).mean(dim=0)
    if not (found := find_unpredicted(predicted, source)):
        return ""
    first, *others = found
    named = [f"{classes[first]} ({share(float(source[first]))} of the source's labels)"]
    named += [f"{classes[k]} ({share(float(source[k]))})" for k in others]
    of = plural(int((source > 0).sum()), "class")
    never = "hardly ever" if predicted[found].any() else "never"
    are = "are" if others else "is"
    return f"{len(found)} of {of} of the source {are} {never} predicted: {listing(named)}."
