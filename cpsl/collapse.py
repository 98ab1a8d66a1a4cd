"""Distances of class distributions, and their collapse: a class lost, one nearly everywhere, or a drift."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpsl._internal.checking import check_shape
from cpsl.sinkhorn import check_distribution

PRESENT = 0.001
"""Share of the pixels from which on a class counts as predicted."""

LOST = 0.05
"""Part of its earlier share below which a class is lost; and all others together, if one takes nearly all."""

DRIFT = 0.1
"""Share of the pixels by which the distance to the source may grow; docs/choosing.md has the experiments."""


class Collapse(NamedTuple):
    """A class that collapsed, and why, in a sentence.

    Attributes:
        class_index: The class that was lost, or that took the pixels of others.
        reason: A sentence with the name of the class and its shares before and now.
    """

    class_index: int
    reason: str


def find_collapses(
    predicted: Tensor, earlier: Tensor, classes: Sequence[str], source: Tensor | None = None
) -> list[Collapse]:
    """Finds what an adaptation destroyed, from the class distributions of the predictions before and now.

    - A class is lost if its share falls below `LOST` times the earlier one, which was at least `PRESENT`. If
      the source's distribution is known, it must have the class.
    - One class takes nearly all if all others together fall below `LOST` times their earlier share.
    - The distribution drifts if its total variation from the source's grows by more than `DRIFT`. Without
      that of the source, no drift is detected: the earlier predictions may have been wrong.

    A wrong class that is corrected completely looks the same as a lost one. A collapse is therefore a reason
    to look at the predictions, and to prefer another network that did not collapse.

    Args:
        predicted: (K,) class frequencies of the predictions now, counts or shares.
        earlier: (K,) those of the source-only network, or of an earlier state, on the same images.
        classes: K names.
        source: (K,) class frequencies of the source's labels.

    Returns:
        The collapses, lost classes by their earlier share; the list is empty if there are none.

    Raises:
        ValueError: A distribution is not one over K classes.

    Example:
        >>> names = ["road", "sky", "fence"]
        >>> before, now = torch.tensor([0.6, 0.38, 0.02]), torch.tensor([0.6, 0.4, 0.0])
        >>> for collapse in find_collapses(now, before, names):
        ...     print(collapse.reason)
        fence is lost: 0.00 % of the predicted pixels, 2.00 % before; sky grew most, by 2.00 % of the pixels
        >>> find_collapses(before, before, names)
        []
    """
    given = [predicted, earlier] if source is None else [predicted, earlier, source]
    for distribution in given:
        check_distribution(distribution, len(classes))
    now, before, *rest = ((d.double() / d.double().sum()).cpu() for d in given)
    growing = int((now - before).argmax())
    grown = f"{classes[growing]} grew most, by {_percent(now[growing] - before[growing])} of the pixels"
    others_now, others_before = 1 - float(now[growing]), 1 - float(before[growing])
    lost = [
        k
        for k in now.lt(LOST * before).logical_and(before >= PRESENT).nonzero().flatten().tolist()
        if all(of_source[k] > 0 for of_source in rest)
    ]
    lost.sort(key=before.tolist().__getitem__, reverse=True)

    def shares(k: int) -> str:
        return f"{_percent(now[k])} of the predicted pixels, {_percent(before[k])} before"

    if others_before >= PRESENT and others_now < LOST * others_before:
        reason = f"{classes[growing]} takes nearly all: {shares(growing)}"
        names = ", ".join(classes[k] for k in lost)
        return [Collapse(growing, f"{reason}; lost: {names}" if names else reason)]
    ending = f"; {grown}" if len(lost) == 1 else ""
    found = [Collapse(k, f"{classes[k]} is lost: {shares(k)}{ending}") for k in lost]
    for of_source in rest:
        distance, closer = (float(total_variation(d, of_source)) for d in (now, before))
        if distance > closer + DRIFT:
            reason = (
                f"the classes drift from those of the source: {_percent(distance)} of the predicted pixels "
                f"would have to change class, {_percent(closer)} before; {grown}"
            )
            found.append(Collapse(growing, reason))
    return found


def find_unpredicted(predicted: Tensor, source: Tensor) -> list[int]:
    """Finds the classes of the source that a network never predicts, or hardly ever.

    The source's labels have at least `PRESENT` of their pixels of such a class, and the predictions less than
    `LOST` times that share. The source-only network may have missed it as well: `find_collapses`, which
    compares two networks, then finds nothing. The class may also be absent from the target.

    Args:
        predicted: (K,) class frequencies of the predictions, counts or shares.
        source: (K,) those of the source's labels.

    Returns:
        Indices of the classes, the most frequent in the source first.

    Raises:
        ValueError: A distribution is not one over the same K classes.

    Example:
        >>> find_unpredicted(torch.tensor([0.7, 0.3, 0.0]), torch.tensor([0.6, 0.35, 0.05]))
        [2]
    """
    check_distribution(predicted, len(source))
    now, of_source = (d.cpu() for d in _normalize(predicted, source))
    missing = (of_source >= PRESENT) & (now < LOST * of_source)
    return sorted(missing.nonzero().flatten().tolist(), key=lambda k: -float(of_source[k]))


def class_divergence(distribution: Tensor, reference: Tensor) -> Tensor:
    r"""Computes KL(r ‖ d) = Σ r log(r / d) in nats, for a class distribution d and its reference r.

    It is large if d lacks a class of the reference. Both are normalized; shares of d below 1e-12 count as
    1e-12, so that the result is finite.

    Args:
        distribution: d, (K,).
        reference: r, (K,).

    Returns:
        Scalar, at least 0, and 0 if both are equal.

    Raises:
        ValueError: One is not a class distribution.

    Example:
        >>> class_divergence(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
        tensor(0.1438, dtype=torch.float64)
    """
    d, r = _normalize(distribution, reference)
    return torch.xlogy(r, r / d.clamp_min(1e-12)).sum().clamp_min(0)


def total_variation(distribution: Tensor, reference: Tensor) -> Tensor:
    r"""Computes the total variation ½ Σ |d - r|: the share of the pixels whose class would have to change.

    Args:
        distribution: d, (K,); normalized to sum 1.
        reference: r, (K,); normalized to sum 1.

    Returns:
        Scalar in 0...1.

    Raises:
        ValueError: One is not a class distribution.

    Example:
        >>> total_variation(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
        tensor(0.2500, dtype=torch.float64)
    """
    d, r = _normalize(distribution, reference)
    return (d - r).abs().sum() / 2


def _normalize(distribution: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    d, r = distribution.double(), reference.double().to(distribution.device)
    check_shape("the distribution and its reference", d, *r.shape)
    if not d.isnan().any():  # NaN, of no pixels, remains NaN
        check_distribution(d, len(r))
    check_distribution(r, len(r))
    return d / d.sum(), r / r.sum()


def _percent(share: Tensor | float) -> str:
    return f"{100 * float(share):.2f} %"
