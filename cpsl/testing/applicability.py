"""Conditions under which a check applies: on the batch, and on the kind of loss."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from cpsl.testing.batches import SegmentationBatch, all_ignored
from cpsl.testing.outcome import TEACHER, Loss, Violation, evaluate, require_finite, require_same

ROUNDING = 1e-5  # relative; on a GPU the order of a sum may change from call to call

Property = Callable[[Loss, SegmentationBatch], bool]
"""A property of a loss, which is measured on a batch."""


class Need(NamedTuple):
    """What a batch must contain for a violation to be detectable.

    Attributes:
        what: Description.
        holds: Returns whether a batch satisfies it.
    """

    what: str
    holds: Callable[[SegmentationBatch], bool]


class LossCheck:
    """A check, called with a loss and a batch.

    If a loss fails, its properties are measured: a loss to which the check does not apply passes. If the loss
    itself raises an exception, notes that name the check and the inputs are added to it.

    Args:
        function: Raises a Violation.
        needs: What the batch must contain.
        only_if: Properties of the losses to which the check applies.

    Attributes:
        needs: As above.
        only_if: As above.

    Raises:
        AssertionError: The loss violates the requirement; names the violation, its size and its usual cause.
        ValueError: The batch cannot reveal the violation.
    """

    __name__: str

    def __init__(
        self,
        function: Callable[[Loss, SegmentationBatch], None],
        needs: tuple[Need, ...] = (),
        only_if: tuple[Property, ...] = (),
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self.needs = needs
        self.only_if = only_if

    def __call__(self, loss: Loss, batch: SegmentationBatch) -> None:
        """Raises an AssertionError if the check applies to the loss and the loss fails."""
        __tracebackhide__ = True  # pytest then shows the test
        missing = [need.what for need in self.needs if not need.holds(batch)]
        if missing:
            raise ValueError(f"{self.__name__} needs a batch with {' and '.join(missing)}")
        try:
            self.function(loss, batch)
        except Violation as violation:
            if not all(has(loss, batch, condition) for condition in self.only_if):
                return
            failure = str(violation)
        except Exception as error:
            error.add_note(f"It was called by {self.__name__}.")
            raise
        else:
            return
        raise AssertionError(failure)

    def __repr__(self) -> str:
        return self.__name__


def loss_check(
    *conditions: Need | Property,
) -> Callable[[Callable[[Loss, SegmentationBatch], None]], LossCheck]:
    """Decorates a function as a check that applies under some conditions."""
    needs = tuple(condition for condition in conditions if isinstance(condition, Need))
    only_if = tuple(condition for condition in conditions if not isinstance(condition, Need))
    return lambda function: LossCheck(function, needs, only_if)


VALID = Need("valid pixels", lambda batch: bool(batch.valid.any()))
VALID_AND_IGNORED = Need(
    "valid and ignored pixels", lambda batch: bool(batch.valid.any() and not batch.valid.all())
)
SEVERAL_PIXELS = Need("several pixels", lambda batch: batch.labels.shape[-2:].numel() > 1)
SEVERAL_IMAGES = Need("several images", lambda batch: len(batch.labels) > 1)


def has(loss: Loss, batch: SegmentationBatch, condition: Property) -> bool:
    """Returns whether a loss has a property; True if the loss fails, so that checks report it."""
    try:
        return condition(loss, batch)
    except Violation:
        return True


def is_repeatable(loss: Loss, batch: SegmentationBatch) -> bool:
    """Returns whether equal inputs and random numbers give equal results; False for a loss with state."""
    return not _changes(loss, batch, batch)


def is_deterministic(loss: Loss, batch: SegmentationBatch) -> bool:
    """Returns whether the result does not depend on random numbers, nor on earlier calls."""
    return not any(_changes(loss, batch, batch, seed) for seed in (0, 1, 2))


def uses_labels(loss: Loss, batch: SegmentationBatch) -> bool:
    """Returns whether other classes or other ignored pixels change value or gradients."""
    classes = (batch.labels + 1) % len(batch.prototypes)
    others = torch.where(batch.valid, classes.to(batch.labels.dtype), batch.labels)
    return _changes(loss, batch, batch._replace(labels=others)) or _changes(loss, batch, all_ignored(batch))


def uses_teacher(loss: Loss, batch: SegmentationBatch) -> bool:
    """Returns whether other outputs of the teacher change value or gradients."""
    others = {name: -2 * getattr(batch, name).flip(1) for name in TEACHER}
    return _changes(loss, batch, batch._replace(**others))


def _changes(loss: Loss, batch: SegmentationBatch, other: SegmentationBatch, seed: int = 0) -> bool:
    """Returns whether the loss of another batch differs or fails."""
    outcome = evaluate(loss, batch)
    require_finite(outcome, "", "")  # NaN is not equal to itself
    try:
        require_same(evaluate(loss, other, seed=seed), outcome, "", "", ROUNDING)
    except Exception:  # the loss itself may reject the other batch
        return True
    return False
