"""The formulas of `benchmarks/communication.py` agree with the counted bytes."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from communication import Run, count, predict

TINY = Run(feature_dim=8, bank_size=256, micro_batches=2)


def test_counted_bytes_equal_the_formulas() -> None:
    step, last = count("self_label", 2, TINY)
    passed = {purpose: size for purpose, (size, messages) in step.items()}
    assert passed == predict("self_label", TINY, 2)
    # A checkpoint gathers the banks of the ranks.
    bank = TINY.bank_bytes(2)
    assert bank < last["flags"][0] < bank + 10_000


def test_only_sampled_pixels_grow_with_the_number_of_ranks() -> None:
    assert predict("self_label", TINY, 1) == {}
    two, eight = (predict("self_label", TINY, ranks) for ranks in (2, 8))
    assert eight["sampled pixels"] == 4 * two["sampled pixels"]
    assert {purpose for purpose in two if eight[purpose] != two[purpose]} == {"sampled pixels"}


def test_micro_batches_repeat_the_assignment_but_not_the_gradients() -> None:
    one, four = (predict("self_label", replace(TINY, micro_batches=n), 2) for n in (1, 4))
    assert four["gradients"] == one["gradients"]
    assert four["assignment"] == 4 * one["assignment"]
